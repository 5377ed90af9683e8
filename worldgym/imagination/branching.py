"""Saving, restoring and forking imagined episodes, and the random stream of each slot.

Unlike on a robot, any moment of an imagined episode can be stored, restored and continued in many ways. A tree of
branches costs one copy of the model's memory, not a reset.

Example::

    saved = envs.save_state()
    envs.step(actions)
    envs.restore_state(saved)  # bit for bit the state before the step
    branches = envs.fork([0] * 64)  # an environment of 64 slots that continue slot 0
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import Self

from worldgym.imagination.batched_env import BatchedEnv
from worldgym.imagination.episodes import ImaginedEpisodes, SavedState
from worldgym.imagination.options import rekey


class BranchingVectorEnv(BatchedEnv):
    """The part of `WorldModelVectorEnv` that saves, restores and copies whole episodes."""

    _episodes: ImaginedEpisodes | None

    def save_state(self) -> SavedState:
        """All slots, including their random streams, as a value that later steps do not change."""
        if self._episodes is None:
            raise RuntimeError("nothing to save before reset; call reset(seed=...) first")
        streams = [copy.deepcopy(dict(stream.bit_generator.state)) for stream in self.np_random]
        return SavedState(self._episodes.take(np.arange(self.num_envs)), streams)

    def restore_state(self, state: SavedState) -> None:
        """Inverse of `save_state`: the same actions then give identical bits, autoresets included.

        Raises:
            ValueError: the state was saved with another number of slots.
        """
        if not isinstance(state, SavedState) or state.num_envs != self.num_envs:
            got = f"{state.num_envs} slots" if isinstance(state, SavedState) else f"a {type(state).__name__}"
            raise ValueError(f"got {got}; expected the result of save_state() with {self.num_envs} slots")
        self._episodes = state.episodes.take(np.arange(self.num_envs))
        for stream, saved in zip(self.np_random, state.streams, strict=True):
            stream.bit_generator.state = copy.deepcopy(saved)

    def fork(self, index: Sequence[int] | NDArray[np.int64], *, fresh_noise: bool = False) -> Self:
        """A new environment of `len(index)` slots: slot j continues the current episode of slot `index[j]`.

        Copies share weights, judge and starts, but nothing that a later step changes. The model's noise is copied, so
        equal actions give equal frames in all copies of a slot. The starts that copies draw later differ, because
        copy j gets its own stream, derived from its parent's stream and j.

        Args:
            index: slots to continue, in any order, repetitions allowed.
            fresh_noise: True gives each copy its own noise, so that equal actions lead to different predictions.

        Raises:
            ValueError: an index outside 0..num_envs-1, an empty index, or fresh noise from a model without noise keys.
        """
        rows = np.asarray(index, np.int64)
        if rows.ndim != 1 or len(rows) == 0 or rows.min() < 0 or rows.max() >= self.num_envs:
            raise ValueError(f"index={index}; expected a non-empty list of slots in 0..{self.num_envs - 1}")
        if self._episodes is None:
            raise RuntimeError("nothing to fork before reset; call reset(seed=...) first")
        draws = [int(copy.deepcopy(stream).integers(2**62)) for stream in self.np_random]
        forked = copy.copy(self)
        forked._set_size(len(rows))
        forked._episodes = self._episodes.take(rows)
        streams = [np.random.default_rng([draws[i], j]) for j, i in enumerate(rows)]
        if fresh_noise:
            seeds = torch.tensor([int(s.integers(2**62)) for s in streams])
            forked._episodes.state = rekey(forked._episodes.state, seeds)
        forked._streams = list(streams)
        forked._seeds = [-1] * len(rows)
        return forked
