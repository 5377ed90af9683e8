"""`meta/stats.json`: what a policy needs to normalise its inputs, kept up to date while a dataset grows.

Example::

    from worldgym.data.stats import RunningStats
    stats = RunningStats(action_dim=4, state_dim=4)
    stats.add(state, actions, image_moments(frames))
    stats.summary()["action"]["std"]        # [.., .., .., ..]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from worldgym.data.lerobot import IMAGE_KEY

_EVERY = 8  # frames of an episode look alike; the moments of every eighth are as good


@dataclass(frozen=True)
class ImageMoments:
    """Per-channel moments of some frames, scaled to [0, 1]: `count` frames, the rest `(3,)` float64."""

    count: int
    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray
    high: np.ndarray


def image_moments(frames: np.ndarray) -> ImageMoments:
    """Moments of every eighth frame of `(F, H, W, 3)` uint8."""
    some = frames[::_EVERY].reshape(-1, 3)
    # One sort-free pass over 256 values a channel instead of a float copy of the frames.
    counts = np.stack([np.bincount(some[:, channel], minlength=256) for channel in range(3)]).astype(
        np.float64
    )
    values = np.arange(256) / 255.0
    mean = counts @ values / len(some)
    variance = np.maximum(counts @ values**2 / len(some) - mean**2, 0.0)
    return ImageMoments(
        count=len(frames[::_EVERY]),
        mean=mean,
        std=np.sqrt(variance),
        low=some.min(axis=0) / 255.0,
        high=some.max(axis=0) / 255.0,
    )


class RunningStats:
    """Statistics of states, actions and images over all episodes so far.

    Args:
        action_dim: A.
        state_dim: S.
    """

    DATA_COLUMNS = ("observation.state", "action", "is_last")

    def __init__(self, action_dim: int, state_dim: int) -> None:
        self._dims = (action_dim, state_dim)
        self._states: list[np.ndarray] = []
        self._actions: list[np.ndarray] = []
        self._images: list[ImageMoments] = []

    @staticmethod
    def image_columns() -> list[str]:
        """Columns of `meta/episodes` that `add_image_table` reads."""
        return [f"stats/{IMAGE_KEY}/{name}" for name in ("count", "mean", "std", "min", "max")]

    def add(self, state: np.ndarray, actions: np.ndarray, images: ImageMoments | None) -> None:
        """Add one episode: `(T+1, S)` states, `(T, A)` actions without padding, moments of its frames."""
        self._states.append(state)
        self._actions.append(actions)
        if images is not None:
            self._images.append(images)

    def add_table(self, table: pa.Table) -> None:
        """Add the states and actions of a data file; padding rows don't count as actions."""
        state = flat_column(table["observation.state"], self._dims[1])
        actions = flat_column(table["action"], self._dims[0])
        self.add(state, actions[~table["is_last"].to_numpy()], None)

    def add_image_table(self, table: pa.Table) -> None:
        """Add the image moments of a file of `meta/episodes`."""
        columns = [table[name].to_pylist() for name in self.image_columns()]
        for count, *rest in zip(*columns, strict=True):
            self._images.append(
                ImageMoments(int(count[0]), *(np.array(item, np.float64).reshape(3) for item in rest))
            )

    def copy(self) -> RunningStats:
        """An independent copy (the arrays themselves are shared, nobody writes them)."""
        other = RunningStats(*self._dims)
        other._states, other._actions, other._images = (
            list(self._states),
            list(self._actions),
            list(self._images),
        )
        return other

    def summary(self) -> dict[str, Any]:
        """The content of `meta/stats.json`; empty while there is no episode."""
        if not self._states:
            return {}
        out: dict[str, Any] = {}
        for name, parts in (("observation.state", self._states), ("action", self._actions)):
            values = np.concatenate(parts).astype(np.float64)
            low, high = np.quantile(values, [0.01, 0.99], axis=0)
            out[name] = {
                "min": values.min(axis=0).tolist(),
                "max": values.max(axis=0).tolist(),
                "mean": values.mean(axis=0).tolist(),
                "std": values.std(axis=0).tolist(),
                "q01": low.tolist(),
                "q99": high.tolist(),
                "count": [len(values)],
            }
        out[IMAGE_KEY] = self._image_summary()
        return out

    def _image_summary(self) -> dict[str, Any]:
        weights = np.array([item.count for item in self._images], np.float64)
        weights /= weights.sum()
        mean = weights @ np.stack([item.mean for item in self._images])
        square = weights @ np.stack([item.std**2 + item.mean**2 for item in self._images])
        values = {
            "min": np.stack([item.low for item in self._images]).min(axis=0),
            "max": np.stack([item.high for item in self._images]).max(axis=0),
            "mean": mean,
            "std": np.sqrt(np.maximum(square - mean**2, 0.0)),
        }
        out: dict[str, Any] = {name: value.reshape(3, 1, 1).tolist() for name, value in values.items()}
        out["count"] = [sum(item.count for item in self._images)]
        return out


def flat_column(column: pa.ChunkedArray, size: int) -> np.ndarray:
    """A fixed-size list column as `(rows, size)` float32."""
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    flat = np.concatenate(parts) if parts else np.empty(0, np.float32)
    return flat.astype(np.float32, copy=False).reshape(-1, size)
