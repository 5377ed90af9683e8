"""State of imagined episodes, and prediction of their rows in several threads.

Rows are independent, so parts of a batch can be predicted in parallel. On a CPU this is faster than more threads inside
each operation for up to about a hundred rows: a frame takes dozens of small matrix products, and at each of them such
threads wait for one another. With hundreds of rows there is no difference.

Example::

    parts = state.split(2)
    results = in_threads(lambda part: advance(part), parts)
    state = ImaginedState.cat(results)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from worldgym.models.video.dynamics import Cache
from worldgym.nn import RowBatch

In = TypeVar("In")
Out = TypeVar("Out")


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


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    usual = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "worldgym-rows", initializer=torch.set_num_threads, initargs=(1,))
    list(pool.map(lambda _: None, range(threads)))
    torch.set_num_threads(usual)  # the setting is per thread, but it also sets the default of new threads
    return pool


def in_threads(work: Callable[[In], Out], parts: Sequence[In]) -> list[Out]:
    """`[work(part) for part in parts]`, with one thread per part and one torch thread in each."""
    if len(parts) == 1:
        return [work(parts[0])]
    return list(_pool(len(parts)).map(work, parts))
