"""From an episode to the rows of a LeRobot file.

Kept apart from the writer so that what a row says can be tested without a disk.

Example::

    from worldgym.data.table import Pending, data_table
    item = Pending.of(episode, "png")
    table = data_table(item, schema, index=0, first_row=0, task_index={episode.instruction: 0}, fps=5.0)
    table.num_rows == episode.length + 1
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from worldgym.data.episode import Episode
from worldgym.data.lerobot import IMAGE_KEY, EpisodeRecord, Images
from worldgym.data.png import encode_png
from worldgym.data.stats import ImageMoments, image_moments


@dataclass
class Pending:
    """An appended episode that is not committed yet.

    Args:
        pngs: the T+1 encoded frames, or None when they go to a video.
        frames: the frames themselves, or None when `pngs` holds them.
        episode_fields: instruction, task, split, domain, behaviour, success.
    """

    pngs: list[bytes] | None
    frames: np.ndarray | None
    state: np.ndarray
    actions: np.ndarray
    success: np.ndarray
    progress: np.ndarray
    episode_fields: dict[str, Any]
    provenance_json: str
    images: ImageMoments

    @classmethod
    def of(cls, episode: Episode, images: Images) -> Pending:
        """Encode the frames and copy the rest, so that the caller may reuse its arrays."""
        return cls(
            pngs=[encode_png(frame) for frame in episode.frames] if images == "png" else None,
            frames=episode.frames.copy() if images == "mp4" else None,
            state=episode.state.copy(),
            actions=episode.actions.copy(),
            success=episode.success.copy(),
            progress=episode.progress.copy(),
            episode_fields={
                "instruction": episode.instruction,
                "task": episode.task,
                "split": episode.split,
                "domain": episode.domain,
                "behaviour": episode.behaviour,
                "success": episode.succeeded,
            },
            provenance_json=json.dumps(episode.provenance, allow_nan=False, sort_keys=True),
            images=image_moments(episode.frames),
        )

    @property
    def steps(self) -> int:
        """Number of actions, T."""
        return len(self.actions)

    def record(
        self, index: int, first_row: int, chunk: int, file: int, row_group: int, video_start: float
    ) -> EpisodeRecord:
        """The episode's record, once it has a place."""
        return EpisodeRecord(
            index=index,
            steps=self.steps,
            first_row=first_row,
            chunk=chunk,
            file=file,
            row_group=row_group,
            provenance_json=self.provenance_json,
            video_start=video_start,
            **self.episode_fields,
        )


def data_table(
    item: Pending, schema: pa.Schema, index: int, first_row: int, task_index: dict[str, int], fps: float
) -> pa.Table:
    """The T+1 rows of one episode; see `worldgym.data.lerobot` for what the padding row means."""
    steps, rows = item.steps, item.steps + 1
    before = np.logical_or.accumulate(item.success)
    reward = np.zeros(rows, np.float32)
    reward[:-1] = item.success[1:] & ~before[:-1]  # 1 on the step of the first success
    done = np.zeros(rows, bool)
    done[-2:] = True  # row T-1 ends the episode; the padding row must never look as if it went on
    following = np.append(item.success[1:], item.success[-1])
    last = np.zeros(rows, bool)
    last[-1] = True
    actions = np.concatenate([item.actions, np.zeros((1, item.actions.shape[1]), np.float32)])
    frame_index = np.arange(rows, dtype=np.int64)
    values: dict[str, Any] = {
        "observation.state": _lists(item.state),
        "action": _lists(actions),
        "next.reward": reward,
        "next.done": done,
        "next.success": following,
        "success": item.success,
        "progress": item.progress,
        "is_last": last,
        "timestamp": (frame_index / fps).astype(np.float32),
        "frame_index": frame_index,
        "episode_index": np.full(rows, index, np.int64),
        "index": first_row + frame_index,
        "task_index": np.full(rows, task_index[item.episode_fields["instruction"]], np.int64),
    }
    if item.pngs is not None:
        paths = [f"frame-{number:06d}.png" for number in range(steps + 1)]
        values[IMAGE_KEY] = pa.StructArray.from_arrays(
            [pa.array(item.pngs, pa.binary()), pa.array(paths, pa.string())], ["bytes", "path"]
        )
    return pa.table([pa.array(values[field.name]) for field in schema], schema=schema)


def _lists(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def episodes_table(
    items: list[Pending], records: list[EpisodeRecord], fps: float, images: Images
) -> pa.Table:
    """The rows of one file of `meta/episodes`: LeRobot's columns first, then what this project adds."""
    columns: dict[str, Any] = {
        "episode_index": [record.index for record in records],
        "tasks": [[record.instruction] for record in records],
        "length": [record.steps + 1 for record in records],
        "dataset_from_index": [record.first_row for record in records],
        "dataset_to_index": [record.first_row + record.steps + 1 for record in records],
    }
    places = ["data", "meta/episodes"]
    if images == "mp4":
        places.append(f"videos/{IMAGE_KEY}")
        columns[f"videos/{IMAGE_KEY}/from_timestamp"] = [record.video_start for record in records]
        columns[f"videos/{IMAGE_KEY}/to_timestamp"] = [
            record.video_start + (record.steps + 1) / fps for record in records
        ]
    for place in places:  # one data, one video and one episodes file a commit, so they share their number
        columns[f"{place}/chunk_index"] = [record.chunk for record in records]
        columns[f"{place}/file_index"] = [record.file for record in records]
    for name in ("instruction", "task", "split", "domain", "behaviour", "success", "steps"):
        columns[name] = [getattr(record, name) for record in records]
    columns["provenance"] = [record.provenance_json for record in records]
    columns[f"stats/{IMAGE_KEY}/count"] = [[item.images.count] for item in items]
    for name, attribute in (("mean", "mean"), ("std", "std"), ("min", "low"), ("max", "high")):
        columns[f"stats/{IMAGE_KEY}/{name}"] = [
            getattr(item.images, attribute).reshape(3, 1, 1).tolist() for item in items
        ]
    return pa.table(columns)
