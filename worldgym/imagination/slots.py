"""Bookkeeping of many imagined episodes: one row per slot, plain NumPy, copied and replaced by row.

Autoreset, `reset_mask`, `save_state` and `fork` all copy rows ("take") or replace rows ("put"). With every per-episode
number in one class, each of them is one line and includes every field.

Example::

    from worldgym.imagination.slots import Slots
    slots = Slots.empty(4)
    slots.elapsed += 5
    pair = slots.take([0, 0])  # two copies of slot 0
    slots.put([2, 3], pair)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Index = Sequence[int] | NDArray[np.int64]


@dataclass
class Slots:
    """Per-episode state that does not belong to the world model; every array has `num_envs` rows.

    Args:
        instruction: instruction of the episode, object array of str.
        task: task name from the start set, "" when unknown, object array of str.
        embedding: sentence embeddings (num_envs, 384) float32, or (num_envs, 0) when they are not used.
        elapsed: imagined frames since the start of the episode.
        unjudged: imagined frames since the last judgement.
        returned: sum of rewards so far.
        last_p: the judge's last valid probability of success, the baseline of difference rewards; NaN if there is none.
        streak: number of successive success judgements, up to the last judgement.
        success_once: whether success was judged at any time.
        over: whether the episode has ended and waits for a reset.
        highest: highest judged probability of success so far, in the episode and in each of its F other futures,
            (num_envs, 1 + F); (num_envs, 0) without other futures.
    """

    instruction: NDArray[np.object_]
    task: NDArray[np.object_]
    embedding: NDArray[np.float32]
    elapsed: NDArray[np.int64]
    unjudged: NDArray[np.int64]
    returned: NDArray[np.float64]
    last_p: NDArray[np.float64]
    streak: NDArray[np.int64]
    success_once: NDArray[np.bool_]
    over: NDArray[np.bool_]
    highest: NDArray[np.float64]

    @classmethod
    def empty(cls, count: int, embedding_dim: int = 0) -> Slots:
        """`count` fresh episodes without an instruction."""
        return cls(
            instruction=np.full(count, "", dtype=object),
            task=np.full(count, "", dtype=object),
            embedding=np.zeros((count, embedding_dim), np.float32),
            elapsed=np.zeros(count, np.int64),
            unjudged=np.zeros(count, np.int64),
            returned=np.zeros(count, np.float64),
            last_p=np.zeros(count, np.float64),
            streak=np.zeros(count, np.int64),
            success_once=np.zeros(count, np.bool_),
            over=np.zeros(count, np.bool_),
            highest=np.zeros((count, 0)),
        )

    def take(self, index: Index) -> Slots:
        """Copies of the rows `index`."""
        rows = np.asarray(index, np.int64)
        return Slots(**{field.name: getattr(self, field.name)[rows].copy() for field in fields(self)})

    def put(self, index: Index, other: Slots) -> None:
        """Replace the rows `index` by all rows of `other`, in order."""
        rows = np.asarray(index, np.int64)
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(other, field.name)
