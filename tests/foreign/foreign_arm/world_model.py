"""A world model in sixty lines: the state moves linearly with the action, and a small network paints both cameras."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from worldgym.protocols import Imagined
from worldgym.specs import Specs


class State(NamedTuple):
    states: Tensor  # (B, S)


class StateWorldModel(nn.Module):
    def __init__(self, specs: Specs) -> None:
        super().__init__()
        self.specs, self.action_dim = specs, specs.action.dim
        dim, self.cameras = specs.observation.state_dim, specs.observation.cameras
        self.move = nn.Linear(dim + self.action_dim, dim)
        self.see = nn.ModuleDict({c.name: nn.Linear(c.height * c.width * 3, dim) for c in self.cameras[:1]})
        self.paint = nn.ModuleDict({c.name: nn.Linear(dim, c.height * c.width * 3) for c in self.cameras})

    @classmethod
    def for_data(cls, specs: Specs, preset: str, arrays: Any) -> StateWorldModel:
        return cls(specs)

    def loss(self, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        state, action = batch["state"], batch["action"]
        moved = state[:, :-1] + self.move(torch.cat([state[:, :-1], action], -1))
        known = batch["frame_mask"][:, 1:, None] & batch["has_action"][:, None, None]
        pictures = {self.cameras[0].name: batch["frames"], **batch["views"]}
        painted = [(self._draw(state, n) - p.flatten(2) / 255).square().mean() for n, p in pictures.items()]
        return {
            "state": (known * (moved - state[:, 1:]).square()).mean(),
            "pixels": torch.stack(painted).sum(),
        }

    def _draw(self, states: Tensor, name: str) -> Tensor:
        return self.paint[name](states).sigmoid()

    def _frames(self, states: Tensor, name: str) -> Tensor:
        size = next(c.size for c in self.cameras if c.name == name)
        return (255 * self._draw(states, name)).round().to(torch.uint8).unflatten(-1, (*size, 3))

    @torch.no_grad()
    def begin(self, frames, actions, generator=None, *, states=None, views=None) -> State:
        guess = (
            self.see[self.cameras[0].name](frames[:, -1].flatten(1) / 255)
            if states is None
            else states[:, -1]
        )
        return State(guess.float())

    @torch.no_grad()
    def step(self, state: State, actions: Tensor, *, decode: str = "all") -> tuple[State, Imagined]:
        now, path = state.states, []
        for k in range(actions.shape[1]):
            now = now + self.move(torch.cat([now, actions[:, k].float()], -1))
            path.append(now)
        states = torch.stack(path, 1)
        shown = {"all": states, "last": states[:, -1:], "none": states[:, :0]}[decode]
        main, *others = (c.name for c in self.cameras)
        views = {name: self._frames(shown, name) for name in others}
        unsure = torch.zeros(len(now))
        return State(now), Imagined(
            self._frames(shown, main), states[..., None, None], states, unsure, views=views
        )

    def fork(self, state: State, index: Tensor) -> State:
        return State(state.states[index])

    def merge(self, state: State, rows: Tensor, other: State) -> State:
        return State(state.states.index_copy(0, rows, other.states))

    def observe(self, state: State, frames: Tensor, states: Tensor | None = None, views: Any = None) -> State:
        return state if states is None else State(states.float())

    def save_pretrained(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        facts = {"type": "foreign_states", "specs": self.specs.to_dict()}
        (Path(folder) / "config.json").write_text(json.dumps(facts))
        save_file(
            {k: v.contiguous() for k, v in self.state_dict().items()}, Path(folder) / "weights.safetensors"
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> StateWorldModel:
        facts = json.loads((Path(folder) / "config.json").read_text())
        model = cls(Specs.from_dict(facts["specs"]))
        model.load_state_dict(load_file(Path(folder) / "weights.safetensors"))
        return model.eval()
