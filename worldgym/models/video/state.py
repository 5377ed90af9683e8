"""State of imagined episodes.

Example::

    forked = state.index(torch.tensor([2, 2, 0]))
    rekeyed = state.with_keys(keys)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from worldgym.models.video.dynamics import Cache
from worldgym.nn import RowBatch


@dataclass(frozen=True)
class ImaginedState(RowBatch):
    """State of B imagined episodes. A world model's `step` returns a new one and does not change this one.

    Args:
        latent: `(B,C,h,w)` float32, the current clean latent.
        states: `(B,S)` float32, current proprioception in the data's units.
        cache: memory of the dynamics.
        keys: `(B,)` int64 noise keys; together with the frame count they determine every random number of a row.
    """

    latent: Tensor
    states: Tensor
    cache: Cache
    keys: Tensor

    @property
    def batch_size(self) -> int:
        """B."""
        return len(self.latent)

    def with_keys(self, keys: Tensor) -> ImaginedState:
        """The same state with new noise keys `(B,)` int64."""
        return self.replace(keys=keys)

    def index(self, rows: Tensor) -> ImaginedState:
        """Rows `rows (B',)` int64 as a new state that shares no memory with this one."""
        # Indexing keeps the latents' memory format, which affects the rounding of convolutions; index_select does not.
        return super().index(rows).replace(latent=self.latent[rows.to(self.latent.device)])
