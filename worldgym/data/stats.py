"""`meta/stats.json`: statistics for normalising the inputs of a policy, updated while a dataset grows.

Example::

    from worldgym.data.stats import RunningStats
    stats = RunningStats(action_dim=4, state_dim=4)
    stats.add(state, actions, {IMAGE_KEY: image_moments(frames)})
    stats.summary()["action"]["std"]        # [.., .., .., ..]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from worldgym.data.lerobot import (
    DATA_PATH,
    FILES_PER_CHUNK,
    STATE_KEY,
    EpisodeRecord,
    read_table,
    shard_path,
)

_EVERY = 8  # image moments use every eighth frame, since successive frames are similar


@dataclass(frozen=True)
class ImageMoments:
    """Per-channel moments of `count` frames, pixels scaled to [0, 1]; the moments are `(3,)` float64."""

    count: int
    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray
    high: np.ndarray


def image_moments(frames: np.ndarray) -> ImageMoments:
    """Moments of every eighth frame of `(F, H, W, 3)` uint8."""
    some = frames[::_EVERY].reshape(-1, 3)
    # The moments follow from a histogram of 256 values per channel, without a float copy of the frames.
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
    """Statistics of states, actions and images over all episodes added so far.

    Args:
        action_dim: action dimension, A.
        state_dim: proprioception dimension, S.
        cameras: LeRobot feature names of the cameras.
    """

    def __init__(self, action_dim: int, state_dim: int, cameras: Sequence[str] = ()) -> None:
        self._dims, self._cameras = (action_dim, state_dim), tuple(cameras)
        self._states: list[np.ndarray] = []
        self._actions: list[np.ndarray] = []
        self._images: dict[str, list[ImageMoments]] = {key: [] for key in cameras}

    def add(self, state: np.ndarray, actions: np.ndarray | None, images: Mapping[str, ImageMoments]) -> None:
        """Add one episode: `state (T+1, S)`, `actions (T, A)` or None, and the moments of its frames by camera."""
        self._states.append(state)
        if actions is not None:
            self._actions.append(actions)
        for key, moments in images.items():
            self._images[key].append(moments)

    def add_files(
        self, root: Path, files: Sequence[Mapping[str, Any]], records: Sequence[EpisodeRecord]
    ) -> None:
        """Add the episodes of an existing dataset one by one, so that the sums equal those of a single write.

        Raises:
            DatasetError: a file is damaged.
        """
        states = [STATE_KEY] if self._dims[1] else []
        by_file: dict[str, list[EpisodeRecord]] = {}
        for record in records:
            shard = record.chunk * FILES_PER_CHUNK + record.file
            by_file.setdefault(shard_path(DATA_PATH, shard), []).append(record)
        data = [entry["path"] for entry in files if entry["kind"] == "data"]
        last = [entry["path"] for entry in files if entry["kind"] == "final"]
        for path, final in zip(data, last, strict=True):
            acted = ["action"] if self._dims[0] else []
            table = read_table(root / path, [*states, *acted, "episode_index"])
            actions = flat_column(table["action"], self._dims[0]) if acted else None
            rows, ends = (
                np.zeros((table.num_rows, 0), np.float32),
                np.zeros((len(by_file[path]), 0), np.float32),
            )
            if states:
                rows = flat_column(table[STATE_KEY], self._dims[1])
                ends = flat_column(read_table(root / final, states)[STATE_KEY], self._dims[1])
            first = 0
            for record, end in zip(by_file[path], ends, strict=True):
                span = slice(first, first + record.steps)
                own = None if actions is None or np.isnan(actions[span]).any() else actions[span]
                self.add(np.concatenate([rows[span], end[None]]), own, {})
                first += record.steps
        names = ("count", "mean", "std", "min", "max")
        columns = [f"stats/{key}/{name}" for key in self._images for name in names]
        for entry in files:
            if entry["kind"] == "episodes":
                self._add_images(read_table(root / entry["path"], columns))

    def _add_images(self, table: pa.Table) -> None:
        for key, kept in self._images.items():
            columns = [
                table[f"stats/{key}/{name}"].to_pylist() for name in ("count", "mean", "std", "min", "max")
            ]
            for count, *rest in zip(*columns, strict=True):
                kept.append(
                    ImageMoments(int(count[0]), *(np.array(item, np.float64).reshape(3) for item in rest))
                )

    def copy(self) -> RunningStats:
        """Independent copy; the arrays are shared, since they are never modified."""
        other = RunningStats(*self._dims, self._cameras)
        other._states, other._actions = list(self._states), list(self._actions)
        other._images = {key: list(kept) for key, kept in self._images.items()}
        return other

    def summary(self) -> dict[str, Any]:
        """Content of `meta/stats.json`; empty if there are no episodes."""
        if not self._states:
            return {}
        out: dict[str, Any] = {}
        vectors = [(STATE_KEY, self._states)] if self._dims[1] else []
        acted = [("action", self._actions)] if self._actions else []
        for name, parts in (*vectors, *acted):
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
        out |= {key: _image_summary(kept) for key, kept in self._images.items()}
        return out


def _image_summary(images: list[ImageMoments]) -> dict[str, Any]:
    weights = np.array([item.count for item in images], np.float64)
    weights /= weights.sum()
    mean = weights @ np.stack([item.mean for item in images])
    square = weights @ np.stack([item.std**2 + item.mean**2 for item in images])
    values = {
        "min": np.stack([item.low for item in images]).min(axis=0),
        "max": np.stack([item.high for item in images]).max(axis=0),
        "mean": mean,
        "std": np.sqrt(np.maximum(square - mean**2, 0.0)),
    }
    out: dict[str, Any] = {name: value.reshape(3, 1, 1).tolist() for name, value in values.items()}
    out["count"] = [sum(item.count for item in images)]
    return out


def flat_column(column: pa.ChunkedArray, size: int) -> np.ndarray:
    """Convert a column of fixed-size lists to an array `(rows, size)` float32."""
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    flat = np.concatenate(parts) if parts else np.empty(0, np.float32)
    return flat.astype(np.float32, copy=False).reshape(-1, size)
