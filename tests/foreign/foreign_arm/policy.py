"""A flow-matching policy of its own, with worldgym's head: state, two pictures and words in, seven joints out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from worldgym.protocols import Evaluation, PolicyOutput
from worldgym.registry import HEADS
from worldgym.specs import Specs
from worldgym.text import embed

WIDTH, CHUNK = 32, 5


class FlowPolicy(nn.Module):
    chunk = CHUNK

    def __init__(self, specs: Specs) -> None:
        super().__init__()
        self.specs, seen = specs, specs.observation
        pixels = sum(3 * (c.height // 8) * (c.width // 8) for c in seen.cameras)
        self.body = nn.Sequential(
            nn.Linear(pixels + seen.state_dim + 384, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)
        )
        self.place = nn.Parameter(0.02 * torch.randn(CHUNK, WIDTH))
        self.head = HEADS.get("flow")(WIDTH, CHUNK, specs.action.dim, steps=4)

    @classmethod
    def for_data(cls, specs: Specs, preset: str, arrays: Any = None) -> FlowPolicy:
        return cls(specs)

    def _read(self, observation: Any) -> Tensor:
        parts = []
        for name, key in self.specs.observation.camera_keys.items():
            camera = next(c for c in self.specs.observation.cameras if c.name == name)
            picture = torch.as_tensor(observation[key]).permute(0, 3, 1, 2).float() / 255
            parts.append(
                nn.functional.adaptive_avg_pool2d(picture, (camera.height // 8, camera.width // 8)).flatten(1)
            )
        words = observation["instruction"]
        parts += [
            torch.as_tensor(observation["state"]).float(),
            torch.as_tensor(embed([str(text) for text in words])),
        ]
        return self.body(torch.cat(parts, 1))[:, None] + self.place

    def act(self, observation: Any, *, temperature: Any = 1.0, generator: Any = None) -> PolicyOutput:
        heat = temperature.get("action", 1.0) if isinstance(temperature, dict) else float(temperature)
        with torch.no_grad():
            actions, log_probs, trace = self.head.sample(self._read(observation), heat, generator)
        trace = {**trace, "heat": torch.full((len(actions),), heat)}
        return PolicyOutput(actions, {"action": log_probs}, trace, temperature)

    def evaluate(self, observation: Any, trace: Any, components: Any = None) -> Evaluation:
        log_probs, entropies = self.head.evaluate(self._read(observation), trace, trace["heat"])
        return Evaluation({"action": log_probs}, {"action": entropies})

    def loss(self, batch: Any, components: Any = None) -> dict[str, Tensor]:
        actions = torch.as_tensor(np.asarray(batch["actions"]))
        return {"action": self.head.loss(self._read(batch["observation"]), actions, ~actions.isnan())}

    def features(self, observation: Any, layer: int = -1) -> Tensor:
        return self._read(observation)

    def save_pretrained(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "config.json").write_text(
            json.dumps({"type": "foreign_flow", "specs": self.specs.to_dict()})
        )
        save_file(
            {k: v.contiguous() for k, v in self.state_dict().items()}, Path(folder) / "weights.safetensors"
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> FlowPolicy:
        facts = json.loads((Path(folder) / "config.json").read_text())
        policy = cls(Specs.from_dict(facts["specs"]))
        policy.load_state_dict(load_file(Path(folder) / "weights.safetensors"))
        return policy.eval()
