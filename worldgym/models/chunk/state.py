"""State of the imagined episodes of a chunk world model.

Example::

    state = model.begin(frames, actions, states=states)
    state.slots.positions                # (B, M, 2), in image widths
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from worldgym.models.chunk.slots import Slots
from worldgym.nn import RowBatch


@dataclass(frozen=True)
class ChunkState(RowBatch):
    """State of B imagined episodes.

    Args:
        latent: `(B,C,h,w)` float32, the current latents.
        states: `(B,S)` float32, current proprioception, data units.
        last: `(B,S)` its last change, normalised.
        acted: `(B,A)` the last action; zeros at the start of an episode.
        anchor: `(B,C,h,w)` latents of the first frame.
        features: `(B,f,4h,4w)` the anchor on the finer grid; None without parts.
        first: `(B,P,2)` positions of hand and objects in the anchor; None without parts.
        slots: the objects; None without parts.
        keys: `(B,)` int64, from which the member that each episode follows is drawn; None for a single model.
        members: members of the ensemble; 1 for a single model.
    """

    latent: Tensor
    states: Tensor
    last: Tensor
    acted: Tensor
    anchor: Tensor
    features: Tensor | None = None
    first: Tensor | None = None
    slots: Slots | None = None
    keys: Tensor | None = None
    members: int = 1

    @property
    def batch_size(self) -> int:
        """B."""
        return len(self.latent)

    @property
    def member(self) -> Tensor | None:
        """`(B,)` int64, the member of the ensemble that each episode follows; None for a single model."""
        if self.keys is None:
            return None
        mixed = (self.keys ^ (self.keys >> 31)) * 0x1E3779B97F4A7C15  # neighbouring keys have unrelated members
        return (mixed >> 33) % self.members
