"""Prediction of the rows of a batch in several threads.

Rows are independent, so parts of a batch can be predicted in parallel. On a CPU this is faster than more threads inside
each operation for up to about a hundred rows: a frame takes dozens of small matrix products, and at each of them such
threads wait for one another. With hundreds of rows there is no difference.

Example::

    results = in_threads(lambda part: advance(part), state.split(2))
    state = ImaginedState.cat(results)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

In = TypeVar("In")
Out = TypeVar("Out")


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
