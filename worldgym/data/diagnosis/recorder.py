"""Keeps what a diagnosis needs of each episode: actions, states and picture changes, but no frames.

The memory is bounded: of large datasets, every n-th episode is kept so that at most `MAX_VALUES` numbers are stored.

Example::

    recorder = Recorder(specs, fps=10.0, steps=20_000)
    recorder.add(0, episode, actions_in_units)
    recorder.rows[0].change.shape        # (T, number of cameras)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from worldgym.data.episode import Episode
from worldgym.errors import ConfigError
from worldgym.specs import Specs

MAX_VALUES = 20_000_000  # stored numbers, 4 bytes each
MAX_FRAMES = 4000  # frames per episode and camera whose change is measured; the first ones
SIDE = 64  # larger frames are subsampled to at most this many rows and columns before they are compared
_CHUNK = 64  # frames that are compared at once


@dataclass(frozen=True)
class Rows:
    """One episode of T steps.

    Args:
        number: number of the episode.
        actions: `(T, A)` float32 in recorded units, or None.
        state: `(T+1, S)` float32; S is 0 if none was recorded.
        change: `(P, C)` float32, mean absolute difference of successive frames of each camera, 0 to 255; P is T, or
            less for an episode of more than `MAX_FRAMES` frames.
    """

    number: int
    actions: np.ndarray | None
    state: np.ndarray
    change: np.ndarray

    @property
    def steps(self) -> int:
        """Number of steps, T."""
        return len(self.state) - 1


class Recorder:
    """Collects the episodes of a dataset one by one.

    Args:
        specs: cameras, state fields and action spec.
        fps: rows per second.
        steps: number of steps of all episodes that will be added.
        no_state: reason why the states are not measurements and are not used, or None.
        recorded_sizes: by camera, size `(height, width)` of the recorded pictures, if it is not that of the specs.

    Raises:
        ConfigError: `fps` is not positive.
    """

    def __init__(
        self,
        specs: Specs,
        fps: float,
        steps: int,
        no_state: str | None = None,
        recorded_sizes: dict[str, tuple[int, int]] | None = None,
    ) -> None:
        if not (math.isfinite(fps) and fps > 0):
            raise ConfigError(f"fps is {fps}, expected a positive number of rows per second")
        self.specs, self.fps = specs, float(fps)
        self.no_state, self.recorded_sizes = no_state, recorded_sizes or {}
        width = specs.observation.state_dim + (0 if specs.action is None else specs.action.dim)
        width += len(specs.observation.cameras)
        self._every = max(1, math.ceil(steps * width / MAX_VALUES))
        self._seen = 0
        self.lengths: list[int] = []
        self.unclipped = False  # whether actions were given as recorded
        self.rows: list[Rows] = []

    def add(self, number: int, episode: Episode, actions: np.ndarray | None = None) -> None:
        """Add an episode.

        Args:
            number: number of the episode.
            episode: the episode, with frames of all cameras.
            actions: `(T, A)` in recorded units before any clipping; None to use the normalised actions of the episode
                and the action spec.
        """
        self.lengths.append(episode.length)
        self._seen += 1
        if (self._seen - 1) % self._every:
            return
        if actions is None and episode.actions is not None and self.specs.action is not None:
            actions = self.specs.action.denormalise(episode.actions)
        elif actions is not None:
            self.unclipped = True
        views = [camera.name for camera in self.specs.observation.views]
        frames = [episode.frames, *(episode.views[name] for name in views)]
        change = np.stack([picture_change(item) for item in frames], axis=1)
        state = episode.state if self.no_state is None else episode.state[:, :0]
        kept = None if actions is None else np.asarray(actions, np.float32)
        self.rows.append(Rows(number, kept, state, change))


def picture_change(frames: np.ndarray) -> np.ndarray:
    """Mean absolute difference of successive frames.

    Args:
        frames: `(F, H, W, 3)` uint8; of more than `MAX_FRAMES`, the first ones are used.

    Returns:
        `(F-1,)` float32, 0 to 255.
    """
    rows, columns = (math.ceil(side / SIDE) for side in frames.shape[1:3])
    small = frames[:MAX_FRAMES, ::rows, ::columns]
    out = np.empty(len(small) - 1, np.float32)
    for first in range(0, len(out), _CHUNK):
        part = small[first : first + _CHUNK + 1].astype(np.int16)
        out[first : first + _CHUNK] = np.abs(np.diff(part, axis=0)).mean((1, 2, 3))
    return out
