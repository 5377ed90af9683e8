"""`EpisodeArrays`: many episodes concatenated in memory, the training data of the trainers.

Example::

    arrays = dataset.load_arrays()
    arrays.frames[arrays.rows(3)]                 # the (T+1, H, W, 3) frames of the fourth episode
    arrays.keep(arrays.has_action)                # without the episodes that have no actions
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from worldgym.specs import Specs


@dataclass(frozen=True, eq=False)
class EpisodeArrays:
    """Concatenated episodes; F is the total number of frames, N the number of episodes.

    Args:
        frames: `(F, H, W, 3)` uint8 of the main camera.
        states: `(F, S)` float32, in the units of the recording.
        actions: `(F, A)` float32 in [-1, 1]; `actions[f]` leads from frame f to f+1. Zero at the last frame of an
            episode and in episodes without actions.
        success: `(F,)` bool; False in episodes without success labels.
        progress: `(F,)` float32 in [0, 1]; NaN where unknown.
        is_last: `(F,)` bool, True at the last frame of an episode, where the action is padding.
        offsets: `(N+1,)` int64; episode i has rows `offsets[i]:offsets[i+1]`.
        instructions: N instructions.
        tasks: N task names.
        behaviours: N behaviour names.
        provenance: N dicts.
        indices: `(N,)` int64, index of each episode in its dataset.
        views: by name, `(F, H', W', 3)` uint8, frames of the other requested cameras.
        has_action: `(N,)` bool, whether the episode has actions; None means all True.
        has_success: `(N,)` bool, whether the success of the episode is labelled; None means all True.
        specs: specs of the dataset, or None for arrays that do not come from a dataset.
    """

    frames: np.ndarray
    states: np.ndarray
    actions: np.ndarray
    success: np.ndarray
    progress: np.ndarray
    is_last: np.ndarray
    offsets: np.ndarray
    instructions: list[str]
    tasks: list[str]
    behaviours: list[str]
    provenance: list[dict[str, Any]]
    indices: np.ndarray
    views: dict[str, np.ndarray] = field(default_factory=dict)
    has_action: np.ndarray = None  # type: ignore[assignment]
    has_success: np.ndarray = None  # type: ignore[assignment]
    specs: Specs | None = None

    def __post_init__(self) -> None:
        for name in ("has_action", "has_success"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, np.ones(len(self), bool))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """`(N,)` int64, number of actions T of each episode."""
        return np.diff(self.offsets) - 1

    def rows(self, episode: int) -> slice:
        """The T+1 rows of one episode."""
        return slice(int(self.offsets[episode]), int(self.offsets[episode + 1]))

    @classmethod
    def together(cls, parts: Sequence[EpisodeArrays]) -> EpisodeArrays:
        """The episodes of several datasets of one form, one dataset after the other; specs are those of the first.

        Raises:
            ValueError: numpy's, for frames, states or actions of different shapes.
        """
        if len(parts) == 1:
            return parts[0]
        whole: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in (
                "frames", "states", "actions", "success", "progress", "is_last", "indices", "has_action", "has_success",
            )
        }  # fmt: skip
        for name in ("instructions", "tasks", "behaviours", "provenance"):
            whole[name] = [item for part in parts for item in getattr(part, name)]
        whole["views"] = {
            name: np.concatenate([part.views[name] for part in parts]) for name in parts[0].views
        }
        steps = np.concatenate([np.diff(part.offsets) for part in parts])
        return replace(parts[0], **whole, offsets=np.concatenate([[0], np.cumsum(steps)]).astype(np.int64))

    def keep(self, chosen: np.ndarray) -> EpisodeArrays:
        """Copy of the episodes where `chosen (N,)` is True; returns `self` if all are chosen."""
        if chosen.all():
            return self
        numbers = np.flatnonzero(chosen)
        rows = np.flatnonzero(np.repeat(chosen, np.diff(self.offsets)))
        changes: dict[str, Any] = {
            name: getattr(self, name)[rows]
            for name in ("frames", "states", "actions", "success", "progress", "is_last")
        }
        for name in ("instructions", "tasks", "behaviours", "provenance"):
            changes[name] = [getattr(self, name)[i] for i in numbers]
        for name in ("indices", "has_action", "has_success"):
            changes[name] = getattr(self, name)[numbers]
        changes["views"] = {name: frames[rows] for name, frames in self.views.items()}
        changes["offsets"] = np.concatenate([[0], np.cumsum(np.diff(self.offsets)[numbers])]).astype(np.int64)
        return replace(self, **changes)
