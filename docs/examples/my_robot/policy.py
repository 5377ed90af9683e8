"""A policy: frame, state and instruction in, a chunk of five actions out, with one of worldgym's action heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from my_robot.saving import SavedPart
from worldgym.protocols import Evaluation, PolicyOutput
from worldgym.registry import HEADS
from worldgym.specs import Specs
from worldgym.text import embed

WIDTH = 64


class MyPolicy(SavedPart):
    type, chunk = "my_policy", 5

    def __init__(self, specs: Specs) -> None:
        super().__init__(specs)
        inputs = 3 * 8 * 8 + specs.observation.state_dim + 384
        self.body = nn.Sequential(nn.Linear(inputs, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU())
        self.position = nn.Parameter(0.02 * torch.randn(self.chunk, WIDTH))
        self.head = HEADS.get("l1")(WIDTH, specs.action.dim)  # others: `worldgym list --kinds heads`

    def features(self, observation: Any, layer: int = -1) -> Tensor:
        """`(B, K, WIDTH)`, one token for each action of the chunk."""
        image = torch.as_tensor(observation["image"]).to(self.device).permute(0, 3, 1, 2).float() / 255
        image = nn.functional.adaptive_avg_pool2d(image, 8).flatten(1)
        text = torch.as_tensor(embed([str(text) for text in observation["instruction"]])).to(self.device)
        state = torch.as_tensor(observation["state"]).to(self.device).float()
        return self.body(torch.cat([image, state, text], 1))[:, None] + self.position

    @torch.no_grad()
    def act(self, observation: Any, *, temperature: Any = 1.0, generator: Any = None) -> PolicyOutput:
        """Enough for evaluation, audits and rollouts. `temperature` is a number or a dict by component."""
        heat = temperature.get("action", 1.0) if isinstance(temperature, dict) else float(temperature)
        actions, log_probs, trace = self.head.sample(self.features(observation), heat, generator)
        trace["temperature"] = actions.new_full((len(actions),), heat)
        return PolicyOutput(actions, {"action": log_probs}, trace, temperature)

    def evaluate(self, observation: Any, trace: Any, components: Any = None) -> Evaluation:
        """For policy gradients: differentiable log-probabilities and entropies of what `act` sampled."""
        found = self.head.evaluate(self.features(observation), trace, trace["temperature"])
        return Evaluation({"action": found[0]}, {"action": found[1]})

    def loss(self, batch: Any, components: Any = None) -> dict[str, Tensor]:
        """For supervised training: a differentiable scalar for each component."""
        actions = torch.as_tensor(np.asarray(batch["actions"])).to(self.device)  # (B, K, A), NaN after an episode's end
        return {"action": self.head.loss(self.features(batch["observation"]), actions, ~actions.isnan())}
