"""Computation of the rows of a batch in several threads.

Rows are independent, so parts of a batch can be computed in parallel. On a CPU this is faster than more threads inside
each operation for up to about a hundred rows: a network takes dozens of small matrix products, and at each of them such
threads wait for one another. With hundreds of rows there is no difference.

Example::

    results = in_threads(lambda part: advance(part), state.split(2))
    state = ImaginedState.cat(results)
    logits = torch.cat(by_rows(lambda part: net(x[part]), len(x), x.device))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

# Fewer rows than this are not split. Smaller parts would still be faster, but another split changes the rounding in
# bfloat16, and the recorded results were made with this one.
ROWS_PER_THREAD = 12

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


def by_rows(work: Callable[[slice], Out], rows: int, device: torch.device) -> list[Out]:
    """`work` for consecutive parts of `rows` rows, without gradients; on a CPU in as many threads as torch uses.

    Returns:
        the result of each part, in order; one part on other devices and for a few rows.
    """

    @torch.no_grad()
    def part_of(part: slice) -> Out:
        return work(part)

    pieces = max(1, min(torch.get_num_threads(), rows // ROWS_PER_THREAD)) if device.type == "cpu" else 1
    edges = [round(i * rows / pieces) for i in range(pieces + 1)]
    return in_threads(part_of, [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)])
