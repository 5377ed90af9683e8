"""A world model: the state moves linearly with the action, and a small network draws the frame from the state."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from my_robot.saving import SavedPart
from worldgym.protocols import Decode, Imagined
from worldgym.specs import Specs


class CartState(NamedTuple):
    """What `step` needs of the past. Other models keep latents and a key-value cache here."""

    states: Tensor  # (B, S)


class MyWorldModel(SavedPart):
    type = "my_world_model"

    def __init__(self, specs: Specs) -> None:
        super().__init__(specs)
        self.action_dim, self.size = specs.action.dim, (*specs.observation.main.size, 3)
        dim, pixels = specs.observation.state_dim, torch.Size(self.size).numel()
        self.move = nn.Linear(dim + self.action_dim, dim)
        hidden = [nn.Linear(dim, 128), nn.GELU(), nn.Linear(128, 256), nn.GELU()]
        self.draw = nn.Sequential(*hidden, nn.Linear(256, pixels))

    def loss(self, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """Scalars by name, of a `worldgym.data.batch.Batch`; the training command minimises their sum."""
        state, action, known = batch["state"], batch["action"], batch["frame_mask"]
        predicted = state[:, :-1] + self.move(torch.cat([state[:, :-1], action], -1))
        error, pixels = (predicted - state[:, 1:]).square(), self.draw(state) - batch["frames"].flatten(2) / 255
        return {"state": error[known[:, 1:]].mean(), "pixels": pixels.square()[known].mean()}

    def begin(self, frames: Tensor, actions: Tensor, generator: Any = None, *, states: Any = None) -> CartState:
        blank = torch.zeros(len(frames), self.specs.observation.state_dim, device=self.device)
        return CartState(blank if states is None else states[:, -1].to(self.device).float())

    @torch.no_grad()
    def step(self, state: CartState, actions: Tensor, *, decode: Decode = "all") -> tuple[CartState, Imagined]:
        now, path = state.states, []
        for action in actions.to(self.device).float().unbind(1):
            now = now + self.move(torch.cat([now, action], -1))
            path.append(now)
        states = torch.stack(path, 1)
        shown = {"all": states, "last": states[:, -1:], "none": states[:, :0]}[decode]
        frames = (255 * self.draw(shown).clamp(0, 1)).to(torch.uint8).unflatten(-1, self.size)
        return CartState(now), Imagined(frames, states[..., None, None], states, now.new_zeros(len(now)))

    def fork(self, state: CartState, index: Tensor) -> CartState:
        return CartState(state.states[index.to(self.device)])

    def merge(self, state: CartState, rows: Tensor, other: CartState) -> CartState:
        return CartState(state.states.index_copy(0, rows.to(self.device), other.states))

    def observe(self, state: CartState, frames: Tensor) -> CartState:
        return state
