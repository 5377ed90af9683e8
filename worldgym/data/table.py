"""Converts episodes to the tables of LeRobot files.

Separate from the writer, so that the tables can be tested without writing files.

Example::

    from worldgym.data.table import Pending, data_table
    item = Pending.of(episode, "png")
    table = data_table(item, schema, index=0, first_row=0, task_index={episode.instruction: 0}, fps=5.0)
    table.num_rows == episode.length
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from worldgym.data.codecs.png import encode_png
from worldgym.data.episode import Episode
from worldgym.data.lerobot import STATE_KEY, EpisodeRecord, Images
from worldgym.data.schema import camera_key
from worldgym.data.stats import ImageMoments, image_moments


@dataclass
class Pending:
    """An appended episode that is not yet committed.

    Args:
        pngs: by camera, the T+1 encoded frames; only the last one if the others are stored as video.
        frames: by camera, the first T frames; empty if `pngs` holds them.
        episode_fields: instruction, task, split, domain, behaviour, success.
    """

    pngs: dict[str, list[bytes]]
    frames: dict[str, np.ndarray]
    state: np.ndarray
    actions: np.ndarray | None
    success: np.ndarray | None
    progress: np.ndarray | None
    episode_fields: dict[str, Any]
    provenance_json: str
    images: dict[str, ImageMoments]

    @classmethod
    def of(cls, episode: Episode, images: Images, main: str = "front") -> Pending:
        """Encode the frames and copy the rest, so that the caller may reuse its arrays.

        Args:
            episode: the episode.
            images: storage format of the frames.
            main: name of the main camera.
        """
        cameras = {camera_key(main): episode.frames}
        cameras |= {camera_key(name): frames for name, frames in episode.views.items()}
        stored = slice(None) if images == "png" else slice(-1, None)
        return cls(
            pngs={key: [encode_png(frame) for frame in frames[stored]] for key, frames in cameras.items()},
            frames={key: frames[:-1].copy() for key, frames in cameras.items()} if images == "mp4" else {},
            state=episode.state.copy(),
            actions=None if episode.actions is None else episode.actions.copy(),
            success=None if episode.success is None else episode.success.copy(),
            progress=None if episode.progress is None else episode.progress.copy(),
            episode_fields={
                "instruction": episode.instruction,
                "task": episode.task,
                "split": episode.split,
                "domain": episode.domain,
                "behaviour": episode.behaviour,
                "success": episode.succeeded,
            },
            provenance_json=json.dumps(episode.provenance, allow_nan=False, sort_keys=True),
            images={key: image_moments(frames) for key, frames in cameras.items()},
        )

    @property
    def steps(self) -> int:
        """Number of steps, T."""
        return len(self.state) - 1

    def record(
        self, index: int, first_row: int, chunk: int, file: int, row_group: int, video_start: float
    ) -> EpisodeRecord:
        """The record of the episode at its position in the dataset."""
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
    """The T rows of one episode: observation, action, and result of the action."""
    rows = item.steps
    done = np.zeros(rows, bool)
    done[-1] = True
    frame_index = np.arange(rows, dtype=np.int64)
    values: dict[str, Any] = {
        **_outcome(item, rows),
        "next.done": done,
        "timestamp": (frame_index / fps).astype(np.float32),
        "frame_index": frame_index,
        "episode_index": np.full(rows, index, np.int64),
        "index": first_row + frame_index,
        "task_index": np.full(rows, task_index[item.episode_fields["instruction"]], np.int64),
    }
    if "action" in schema.names:  # NaN if this episode has no actions
        dim = schema.field("action").type.list_size
        values["action"] = _lists(
            np.full((rows, dim), np.nan, np.float32) if item.actions is None else item.actions
        )
    if item.state.shape[1]:
        values[STATE_KEY] = _lists(item.state[:-1])
    for key, pngs in item.pngs.items():
        if len(pngs) > 1:
            values[key] = _pictures(pngs[:-1], [f"frame-{number:06d}.png" for number in range(rows)])
    return pa.table([pa.array(values[field.name], field.type) for field in schema], schema=schema)


def _outcome(item: Pending, rows: int) -> dict[str, Any]:
    """Columns of success, reward and progress; null if not labelled."""
    unknown = [None] * rows
    out: dict[str, Any] = dict.fromkeys(("next.reward", "next.success", "success", "progress"), unknown)
    if item.success is not None:
        before = np.logical_or.accumulate(item.success)
        first = item.success[1:] & ~before[:-1]  # 1 on the step of the first success
        out |= {"next.reward": first.astype(np.float32), "next.success": item.success[1:]}
        out["success"] = item.success[:-1]
    if item.progress is not None:
        out["progress"] = item.progress[:-1]
    return out


def final_table(items: list[Pending], records: list[EpisodeRecord], schema: pa.Schema) -> pa.Table:
    """Frame, state, success and progress after the last action, one row per episode."""
    values: dict[str, Any] = {
        "episode_index": [record.index for record in records],
        "success": [None if item.success is None else bool(item.success[-1]) for item in items],
        "progress": [None if item.progress is None else float(item.progress[-1]) for item in items],
        STATE_KEY: _lists(np.stack([item.state[-1] for item in items])) if items[0].state.shape[1] else None,
    }
    for key in items[0].pngs:
        names = [f"episode-{record.index:06d}.png" for record in records]
        values[key] = _pictures([item.pngs[key][-1] for item in items], names)
    return pa.table([pa.array(values[field.name], field.type) for field in schema], schema=schema)


def _pictures(pngs: list[bytes], names: list[str]) -> pa.Array:
    return pa.StructArray.from_arrays(
        [pa.array(pngs, pa.binary()), pa.array(names, pa.string())], ["bytes", "path"]
    )


def _lists(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def episodes_table(
    items: list[Pending], records: list[EpisodeRecord], fps: float, images: Images
) -> pa.Table:
    """The rows of one file of `meta/episodes`: LeRobot's columns first, then the additional columns of worldgym."""
    columns: dict[str, Any] = {
        "episode_index": [record.index for record in records],
        "tasks": [[record.instruction] for record in records],
        "length": [record.steps for record in records],
        "dataset_from_index": [record.first_row for record in records],
        "dataset_to_index": [record.first_row + record.steps for record in records],
    }
    places = ["data", "meta/episodes"]
    cameras = list(items[0].pngs)
    for key in cameras if images == "mp4" else ():
        places.append(f"videos/{key}")
        columns[f"videos/{key}/from_timestamp"] = [record.video_start for record in records]
        columns[f"videos/{key}/to_timestamp"] = [
            record.video_start + record.steps / fps for record in records
        ]
    for place in places:  # a commit writes one file of each kind, so all have the same chunk and file index
        columns[f"{place}/chunk_index"] = [record.chunk for record in records]
        columns[f"{place}/file_index"] = [record.file for record in records]
    for name in ("instruction", "task", "split", "domain", "behaviour", "steps"):
        columns[name] = [getattr(record, name) for record in records]
    columns["success"] = pa.array([record.success for record in records], pa.bool_())
    columns["provenance"] = [record.provenance_json for record in records]
    for key in cameras:
        columns[f"stats/{key}/count"] = [[item.images[key].count] for item in items]
        for name, attribute in (("mean", "mean"), ("std", "std"), ("min", "low"), ("max", "high")):
            columns[f"stats/{key}/{name}"] = [
                getattr(item.images[key], attribute).reshape(3, 1, 1).tolist() for item in items
            ]
    return pa.table(columns)
