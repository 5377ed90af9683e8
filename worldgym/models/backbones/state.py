"""State of the imagined episodes of a `DiffusersWorldModel`.

A latent frame holds 4 frames, and chunks may have any length. So a state also holds the actions since the last whole
latent frame; the next step predicts that latent frame again, with the same noise and all actions.

Example::

    state = model.begin(frames, actions, states=states)
    state.filled                         # (B,) actions since the last whole latent frame, 0 to 3
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldgym.nn import RowBatch


@dataclass(frozen=True)
class BackboneState(RowBatch):
    """State of B imagined episodes; W is the window with the first frame, r the actions of a latent frame.

    Args:
        latent: `(B,C,h,w)` float32, latents of the current frame.
        states: `(B,S)` float32, current proprioception, data units.
        last: `(B,S)` its last change, normalised.
        acted: `(B,A)` the last action; zeros at the start.
        context: `(B,W,C,h,w)` float32, whole latent frames: the first one, then the last ones, at the front.
        moves: `(B,W,r,A)` the actions that led to each; zeros for the first.
        count: `(B,)` int64, whole latent frames since the start, with the first.
        pending: `(B,r,A)` actions since the last whole latent frame, at the front.
        filled: `(B,)` int64, how many these are, 0 to r - 1.
        keys: `(B,)` int64 noise keys; with `count` they determine every random number of a row.
        cache: per layer, keys and values `(B,W,N,2,heads,D)` of `context`; empty with full attention.
    """

    latent: Tensor
    states: Tensor
    last: Tensor
    acted: Tensor
    context: Tensor
    moves: Tensor
    count: Tensor
    pending: Tensor
    filled: Tensor
    keys: Tensor
    cache: tuple[Tensor, ...] = ()

    @property
    def batch_size(self) -> int:
        """B."""
        return len(self.latent)

    @property
    def known(self) -> Tensor:
        """`(B,)` int64, latent frames in the window."""
        return self.count.clamp(max=self.context.shape[1])

    def with_keys(self, keys: Tensor) -> BackboneState:
        """The same state with new noise keys `(B,)` int64."""
        return self.replace(keys=keys)

    def groups(self) -> list[Tensor]:
        """Rows that have as many latent frames in the window and as many pending actions, as index tensors."""
        kinds = torch.stack([self.known, self.filled], 1).cpu()
        return [torch.nonzero((kinds == kind).all(1)).flatten() for kind in kinds.unique(dim=0)]


def pushed(window: Tensor, new: Tensor, known: int) -> Tensor:
    """`window (B,W,...)`, of which `known` entries are used, with `new (B,...)` behind them.

    A full window loses its second entry: the first one stays.
    """
    if known < window.shape[1]:
        out = window.clone()
        out[:, known] = new
        return out
    return torch.cat([window[:, :1], window[:, 2:], new[:, None].to(window.dtype)], 1)
