"""Where imaginations stand, and what can be done with their rows: take some, replace some, cut and join.

Rows are independent, so a batch can be imagined in pieces at once. On a CPU that beats more threads inside each
operation up to about a hundred rows: a frame is dozens of small matrix products, at each of which such threads wait
for one another. With hundreds of rows it makes no difference.

Example::

    parts = cut(state, 2)
    results = in_threads(lambda part: advance(part), parts)
    state = join(results)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from worldgym.models.dynamics import Cache

In = TypeVar("In")
Out = TypeVar("Out")
ROW_DIM = (1, 1, 0, 0, 0, 0, 0)  # where the rows are in each part of a `Cache`


class ImaginedState(NamedTuple):
    """Where B imaginations stand. Treat as immutable: a world model's `step` returns a new one.

    Args:
        latent: `(B,C,h,w)` float32, the current clean latent.
        states: `(B,S)` float32, current proprioception in the data's units.
        cache: keys and values of the last frames.
        keys: `(B,)` int64 noise keys; with the frame count they decide every random number of a row.
    """

    latent: Tensor
    states: Tensor
    cache: Cache
    keys: Tensor

    @property
    def batch_size(self) -> int:
        """B."""
        return len(self.latent)


def take(state: ImaginedState, index: Tensor, keys: Tensor | None = None) -> ImaginedState:
    """Rows `index (B',)` as a new state that shares nothing with the old; with `keys (B',)` their noise is new."""
    keys = state.keys[index.cpu()] if keys is None else keys
    index = index.to(state.latent.device)
    cache = Cache(*(part.index_select(dim, index) for part, dim in zip(state.cache, ROW_DIM, strict=True)))
    return ImaginedState(state.latent[index], state.states[index], cache, keys)


def put(state: ImaginedState, rows: Tensor, other: ImaginedState) -> ImaginedState:
    """`state` with its rows `rows` replaced by all rows of `other`, in order."""
    cpu, rows = rows.cpu(), rows.to(state.latent.device)
    over = lambda a, b, i: a.index_copy(0, i, b.to(a.dtype))  # noqa: E731
    cache = Cache(
        *(
            mine.index_copy(dim, rows, yours.to(mine.dtype))
            for mine, yours, dim in zip(state.cache, other.cache, ROW_DIM, strict=True)
        )
    )
    return ImaginedState(
        over(state.latent, other.latent, rows),
        over(state.states, other.states, rows),
        cache,
        over(state.keys, other.keys, cpu),
    )


def cut(state: ImaginedState, pieces: int) -> list[ImaginedState]:
    """Consecutive rows in nearly equal pieces, as views."""
    c = state.cache
    parts = zip(
        *(part.chunk(pieces, dim) for part, dim in ((state.latent, 0), (state.states, 0), (state.keys, 0))),
        *(part.chunk(pieces, dim) for part, dim in zip(c, ROW_DIM, strict=True)),
        strict=True,
    )
    return [ImaginedState(z, s, Cache(*cache), key) for z, s, key, *cache in parts]


def join(states: Sequence[ImaginedState]) -> ImaginedState:
    """Inverse of `cut`."""
    if len(states) == 1:
        return states[0]
    parts = zip(*(state.cache for state in states), strict=True)
    cache = Cache(*(torch.cat(part, dim) for part, dim in zip(parts, ROW_DIM, strict=True)))
    latent, proprio, _, noise = zip(*states, strict=True)
    return ImaginedState(torch.cat(latent), torch.cat(proprio), cache, torch.cat(noise))


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    usual = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "worldgym-rows", initializer=torch.set_num_threads, initargs=(1,))
    list(pool.map(lambda _: None, range(threads)))
    torch.set_num_threads(usual)  # the setting is a thread's own, its default for new threads is everybody's
    return pool


def in_threads(work: Callable[[In], Out], parts: Sequence[In]) -> list[Out]:
    """`[work(part) for part in parts]`, a thread for each part and one torch thread in each."""
    if len(parts) == 1:
        return [work(parts[0])]
    return list(_pool(len(parts)).map(work, parts))
