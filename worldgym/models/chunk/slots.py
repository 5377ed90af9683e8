"""Positions: proprioception at every step of a chunk, the hand in the image, and the objects.

Which object moves, and by how much, is decided on positions, where a few thousand parameters suffice; the picture
network only has to show it. An object keeps its position until the hand's path gives a reason to move it.

Example::

    path = kinematics(states, last, before, actions)                       # (B, K, S), normalised
    slots = motion(slots, path, hand.place(path), lengths)         # positions after the chunk
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldgym.models.chunk.config import ChunkConfig
from worldgym.nn import RowBatch


@dataclass(frozen=True)
class Slots(RowBatch):
    """Objects of B episodes.

    Args:
        positions: `(B,M,2)` right and down, in image widths.
        present: `(B,M)` in [0, 1], probability that the object is in the image.
        memory: `(B,M,D)` numbers that each slot keeps, such as whether it is held.
        which: `(B,M)` int64, the object of each slot; None if there is a slot for every object, in order.
    """

    positions: Tensor
    present: Tensor
    memory: Tensor
    which: Tensor | None = None

    @staticmethod
    def new(positions: Tensor, present: Tensor, memory: int, which: Tensor | None = None) -> Slots:
        """Slots at known positions, with an empty memory."""
        return Slots(positions, present, positions.new_zeros(*present.shape, memory), which)


class Kinematics(nn.Module):
    """Proprioception after each action: a network applied once per action.

    Its inputs are the current state, its last change, this action and the one before (controllers lag), and where the
    nearest object lies from the hand (fingers stop at an object).
    """

    def __init__(self, config: ChunkConfig) -> None:
        super().__init__()
        s, a, w = config.state_dim, config.action_dim, config.kin_width
        self.linear = nn.Linear(2 * a, s)
        self.net = nn.Sequential(
            nn.Linear(2 * s + 2 * a + 2, w), nn.SiLU(), nn.Linear(w, w), nn.SiLU(), nn.Linear(w, w), nn.SiLU(),
            nn.Linear(w, s),
        )  # fmt: skip
        for layer in (self.linear, self.net[-1]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.place = nn.Sequential(
            nn.Linear(s, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)
        )

    def forward(
        self, states: Tensor, last: Tensor, before: Tensor, actions: Tensor, objects: Tensor | None = None
    ) -> Tensor:
        """Normalised proprioception `(B,K,S)` after each of `actions (B,K,A)`.

        Args:
            states: `(B,S)` normalised proprioception before the chunk.
            last: `(B,S)` its change in the step before.
            before: `(B,A)` the action before the chunk; zeros at the start of an episode.
            actions: `(B,K,A)` in [-1, 1].
            objects: `(B,M,2)` positions of the objects; None without slots.
        """
        path = []
        for action in actions.unbind(1):
            near = states.new_zeros(len(states), 2)
            if objects is not None and objects.shape[1]:
                away = objects - self.place(states).detach()[:, None]
                nearest = away.square().sum(-1).argmin(-1)
                near = away[torch.arange(len(away), device=away.device), nearest].clamp(-0.25, 0.25) * 4
            both = torch.cat([action, before], -1)
            last = self.linear(both) + self.net(torch.cat([states, last, both, near], -1))
            states, before = states + last, action
            path.append(states)
        return torch.stack(path, 1)


class SlotMotion(nn.Module):
    """Moves the objects along the path of the hand."""

    def __init__(self, config: ChunkConfig) -> None:
        super().__init__()
        m, d, w, s = len(config.objects), config.memory, config.slot_width, config.state_dim
        self.chunk = config.chunk
        self.name = nn.Parameter(0.1 * torch.randn(m, 16))
        points = config.chunk + 1
        self.into = nn.Sequential(
            nn.Linear(2 + 1 + d + 16 + points * (2 + s), w), nn.SiLU(), nn.Linear(w, w), nn.SiLU()
        )
        self.attend = nn.MultiheadAttention(w, 4, batch_first=True)
        self.keep = nn.GRUCell(w, d)
        self.out = nn.Sequential(nn.Linear(w + d, w), nn.SiLU(), nn.Linear(w, 4))
        nn.init.zeros_(self.out[-1].weight)
        with torch.no_grad():
            self.out[-1].bias.copy_(torch.tensor([0.0, 0.0, -2.0, 0.0]))

    def forward(self, slots: Slots, path: Tensor, hand: Tensor) -> Slots:
        """The slots after a chunk.

        Args:
            slots: before the chunk.
            path: `(B,k+1,S)` normalised proprioception before the chunk and after each of its k <= K actions.
            hand: `(B,k+1,2)` the hand in the image, in image widths.
        """
        missing = self.chunk + 1 - path.shape[1]
        if missing:  # a chunk that ends early: the hand rests at its last place
            path = torch.cat([path, path[:, -1:].expand(-1, missing, -1)], 1)
            hand = torch.cat([hand, hand[:, -1:].expand(-1, missing, -1)], 1)
        b, m = slots.present.shape
        name = self.name.expand(b, -1, -1) if slots.which is None else self.name[slots.which]
        away = 4 * (hand[:, None] - slots.positions[:, :, None]).clamp(-0.5, 0.5)
        inputs = [
            2 * slots.positions - 1, slots.present[..., None], slots.memory, name,
            away.flatten(2), path.flatten(1)[:, None].expand(-1, m, -1),
        ]  # fmt: skip
        x = self.into(torch.cat(inputs, -1))
        x = x + self.attend(x, x, x, need_weights=False)[0]
        memory = self.keep(x.flatten(0, 1), slots.memory.flatten(0, 1)).unflatten(0, (b, m))
        out = self.out(torch.cat([x, memory], -1))
        moved = torch.sigmoid(out[..., 2:3]) * 0.3 * torch.tanh(out[..., :2])
        present = torch.sigmoid(torch.logit(slots.present.clamp(1e-3, 1 - 1e-3)) + out[..., 3])
        return Slots(slots.positions + moved, present, memory, slots.which)
