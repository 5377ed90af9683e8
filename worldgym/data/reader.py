"""Reads datasets: single episodes on demand, or all episodes at once into arrays for a trainer.

Decoding PNG takes most of the time, so `load_arrays` reads file by file and decodes directly into one array. Reading a
single episode reads one row group. Only files listed in `meta/info.json` are read, so a dataset can be read while it
grows.

Example::

    from worldgym.data import EpisodeDataset
    dataset = EpisodeDataset("data/real", split="seen").require_seen()
    episode = dataset[0]
    arrays = dataset.filter(task="push", behaviour=("expert", "noisy")).load_arrays(limit=500)
    arrays.frames[arrays.rows(3)]            # the (T+1, H, W, 3) frames of the fourth episode
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from worldgym.data import lerobot
from worldgym.data.arrays import EpisodeArrays
from worldgym.data.codecs.png import decode_png
from worldgym.data.codecs.video import decode_mp4
from worldgym.data.episode import Episode
from worldgym.data.lerobot import DatasetMeta, EpisodeRecord
from worldgym.data.schema import camera_key
from worldgym.data.splits import SPLITS, SplitManifest
from worldgym.data.stats import flat_column
from worldgym.errors import DatasetError
from worldgym.specs import ActionSpec, Camera, Specs
from worldgym.utils.files import file_sha256

_COLUMNS = ["success", "progress"]


class EpisodeDataset(Sequence[Episode]):
    """A dataset on disk as a sequence of episodes.

    Args:
        path: the dataset's folder.
        split: keep only episodes of this split; None keeps all.

    Raises:
        DatasetError: the dataset is missing, damaged or in another format; the message names the file and the remedy.
        ValueError: unknown split.
    """

    def __init__(self, path: str | os.PathLike[str], split: str | None = None) -> None:
        if split is not None and split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}, or None for all")
        self.meta: DatasetMeta = lerobot.read_meta(Path(path))
        self.records: list[EpisodeRecord] = lerobot.read_records(self.meta)
        if split is not None:
            self.records = [record for record in self.records if record.split == split]

    # ---- metadata ------------------------------------------------------------------------------------------------

    @property
    def root(self) -> Path:
        """The dataset's folder."""
        return self.meta.root

    @property
    def specs(self) -> Specs:
        """Specs of cameras, state fields and actions."""
        return self.meta.specs

    @property
    def action_spec(self) -> ActionSpec:
        """Meaning of the action dimensions.

        Raises:
            DatasetError: no episode has actions.
        """
        return self.meta.action_spec

    @property
    def manifest(self) -> SplitManifest:
        """Split rules under which the dataset was collected; store its `.hash` in every run folder."""
        return self.meta.manifest

    @property
    def image_size(self) -> int | tuple[int, int]:
        """Image size of the main camera in pixels: one number if square, else height and width."""
        height, width = self.specs.observation.main.size
        return height if height == width else (height, width)

    @property
    def state_dim(self) -> int:
        """Proprioception dimension, S."""
        return self.meta.state_dim

    @property
    def total_frames(self) -> int:
        """Number of frames of the selected episodes, T+1 per episode."""
        return sum(record.steps + 1 for record in self.records)

    @property
    def views(self) -> tuple[str, ...]:
        """Names of all cameras except the main one."""
        return self.meta.views

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of all cameras, the main one first."""
        return tuple(camera.name for camera in self.meta.cameras)

    @property
    def summary(self) -> dict[str, Any]:
        """Counts over the selected episodes: steps by domain, episodes by behaviour, task, split and domain."""
        from worldgym.data.summary import summarise

        return summarise(self.records)

    @property
    def stats(self) -> dict[str, Any]:
        """Content of `meta/stats.json`: statistics of states, actions and images over the whole dataset."""
        path = self.root / lerobot.STATS_PATH
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise lerobot.unreadable(path, error) from error

    # ---- selecting -----------------------------------------------------------------------------------------------

    def _with(self, records: list[EpisodeRecord]) -> EpisodeDataset:
        view = object.__new__(EpisodeDataset)
        view.meta, view.records = self.meta, records
        return view

    def filter(
        self,
        *,
        task: str | Iterable[str] | None = None,
        behaviour: str | Iterable[str] | None = None,
        split: str | Iterable[str] | None = None,
        domain: str | Iterable[str] | None = None,
        success: bool | None = None,
    ) -> EpisodeDataset:
        """View of the episodes that match every given condition; a list of values matches any of them."""
        wanted: dict[str, set[str]] = {}
        for name, value in (("task", task), ("behaviour", behaviour), ("split", split), ("domain", domain)):
            if value is not None:
                wanted[name] = {value} if isinstance(value, str) else set(value)
        return self._with(
            [
                record
                for record in self.records
                if all(getattr(record, name) in values for name, values in wanted.items())
                and (success is None or record.success == success)
            ]
        )

    def select(self, positions: Iterable[int]) -> EpisodeDataset:
        """View of the episodes at these positions, in this order."""
        return self._with([self.records[position] for position in positions])

    def require_seen(self) -> EpisodeDataset:
        """Return `self` if all episodes are of the training split `seen`.

        Raises:
            DatasetError: an episode belongs to a held-out split.
        """
        held_out = [record for record in self.records if record.split != "seen"]
        if held_out:
            names = sorted({record.split for record in held_out})
            raise DatasetError(
                f"{len(held_out)} of {len(self)} episodes of {self.root} are held out for evaluation "
                f"({', '.join(names)}; first: episode {held_out[0].index}) and must not be trained on; open it with "
                "EpisodeDataset(path, split='seen')"
            )
        return self

    # ---- reading -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Episode]:
        for position in range(len(self)):
            yield self[position]

    def __getitem__(self, position: int) -> Episode:  # type: ignore[override]
        record = self.records[position]
        arrays = self._load([record], False, self.cameras)
        labelled = bool(arrays.has_success[0])
        try:
            return Episode(
                views=arrays.views,
                frames=arrays.frames,
                actions=arrays.actions[:-1] if arrays.has_action[0] else None,
                state=arrays.states,
                instruction=record.instruction,
                success=arrays.success if labelled else None,
                progress=arrays.progress if np.isfinite(arrays.progress).all() else None,
                domain=record.domain,
                split=record.split,
                task=record.task,
                provenance=record.provenance,
            )
        except ValueError as error:
            raise DatasetError(f"episode {record.index} of {self.root} is damaged: {error}") from error

    def load_arrays(
        self,
        limit: int | None = None,
        progress: bool = False,
        camera: str | None = None,
        cameras: Sequence[str] | None = None,
    ) -> EpisodeArrays:
        """Decode the selected episodes into memory.

        Args:
            limit: maximum number of episodes, spread evenly over the selection; None for all.
            progress: show a progress bar if stderr is a terminal.
            camera: camera that fills `frames`; None for the main camera.
            cameras: several cameras: the first fills `frames`, the others fill `views`; None for `camera` only.

        Raises:
            DatasetError: no episode is selected, or a file is damaged.
        """
        if not self.records:
            raise DatasetError(
                f"no episode to load from {self.root}; collect some with `worldgym collect --out {self.root}`, or "
                "loosen the split or the filter"
            )
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be >= 1 or None, got {limit}")
        records = self.records
        if limit is not None and limit < len(records):
            records = [records[(position * len(records)) // limit] for position in range(limit)]
        chosen = cameras if cameras is not None else (camera or self.cameras[0],)
        return self._load(records, progress, tuple(chosen))

    def verify(self) -> None:
        """Compare the SHA-256 of every file with the hash stored at its commit; reads all files once.

        Raises:
            DatasetError: the content of a file has changed.
        """
        for entry in self.meta.files:
            path = self.root / entry["path"]
            if file_sha256(path) != entry["sha256"]:
                raise DatasetError(
                    f"{path} differs from the committed version; restore it from a copy, or collect again"
                )

    def _load(self, records: list[EpisodeRecord], progress: bool, cameras: tuple[str, ...]) -> EpisodeArrays:
        known = {item.name: item for item in self.meta.cameras}
        unknown = [name for name in cameras if name not in known]
        if unknown or not cameras:
            raise DatasetError(
                f"{self.root} has no camera {', '.join(map(repr, unknown))}; it has {', '.join(known)}"
            )
        offsets = np.zeros(len(records) + 1, np.int64)
        np.cumsum([record.steps + 1 for record in records], out=offsets[1:])
        count, chosen = int(offsets[-1]), [known[name] for name in cameras]
        pixels = sum(camera.height * camera.width for camera in chosen)
        try:
            frames = [np.empty((count, *camera.size, 3), np.uint8) for camera in chosen]
        except (MemoryError, ValueError) as error:
            raise DatasetError(
                f"{count} frames of {pixels} pixels of {self.root} need {count * pixels * 3 / 2**30:.1f} GiB of "
                "memory, more than is available; load fewer with limit, or import them at a smaller --image-size"
            ) from error
        arrays = EpisodeArrays(
            frames=frames[0],
            views=dict(zip(cameras[1:], frames[1:], strict=True)),
            states=np.empty((count, self.state_dim), np.float32),
            actions=np.zeros((count, self.meta.action_dim), np.float32),
            success=np.zeros(count, bool),
            progress=np.empty(count, np.float32),
            is_last=np.zeros(count, bool),
            offsets=offsets,
            instructions=[record.instruction for record in records],
            tasks=[record.task for record in records],
            behaviours=[record.behaviour for record in records],
            provenance=[record.provenance for record in records],
            indices=np.array([record.index for record in records], np.int64),
            has_action=np.full(len(records), self.meta.action_dim > 0),
            has_success=np.array([record.success is not None for record in records], bool),
            specs=Specs(self.specs.observation.select(cameras), self.specs.action),
        )
        arrays.is_last[offsets[1:] - 1] = True
        by_file: dict[tuple[int, int], list[int]] = {}
        for position, record in enumerate(records):
            by_file.setdefault((record.chunk, record.file), []).append(position)
        bar = _bar(count, progress)
        for (chunk, file), positions in by_file.items():
            shard = chunk * lerobot.FILES_PER_CHUNK + file
            self._load_file(arrays, records, shard, positions, dict(zip(chosen, frames, strict=True)))
            if bar is not None:
                bar.update(sum(records[position].steps + 1 for position in positions))
        if bar is not None:
            bar.close()
        return arrays

    def _load_file(
        self,
        arrays: EpisodeArrays,
        records: list[EpisodeRecord],
        shard: int,
        positions: list[int],
        frames: dict[Camera, np.ndarray],
    ) -> None:
        path = self.root / lerobot.shard_path(lerobot.DATA_PATH, shard)
        stored, padding = self.meta.images == "png", self.meta.padding
        state = [lerobot.STATE_KEY] if self.state_dim else []
        acted = ["action"] if self.meta.action_dim else []
        pictures = [camera_key(camera.name) for camera in frames] if stored else []
        columns = [*_COLUMNS, *acted, *state, *pictures]
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                for position in positions:
                    record, whole = records[position], arrays.rows(position)
                    table = file.read_row_group(record.row_group, columns, use_threads=False)
                    count = record.steps + padding
                    if table.num_rows != count:
                        raise ValueError(f"episode {record.index} has {table.num_rows} rows, not {count}")
                    rows = slice(whole.start, whole.start + count)
                    if self.state_dim:
                        arrays.states[rows] = flat_column(table[lerobot.STATE_KEY], self.state_dim)
                    if acted:
                        self._actions(arrays, position, rows, table["action"])
                    if record.success is not None:
                        arrays.success[rows] = table["success"].to_numpy()
                    arrays.progress[rows] = table["progress"].to_numpy()  # null becomes NaN
                    for camera, out in frames.items():
                        key = camera_key(camera.name)
                        if stored:
                            _decode_into(out[rows], table[key], camera.size)
                            continue
                        video = self.root / lerobot.shard_path(lerobot.VIDEO_PATH, shard, video_key=key)
                        out[rows] = decode_mp4(video, record.video_start, count, camera.size, self.meta.fps)
            if not padding:
                self._load_final(arrays, records, shard, positions, frames)
        except (OSError, ValueError, KeyError, IndexError, pa.ArrowException) as error:
            if isinstance(error, DatasetError):
                raise
            raise lerobot.unreadable(path, error) from error

    def _actions(self, arrays: EpisodeArrays, position: int, rows: slice, column: pa.ChunkedArray) -> None:
        """Store the actions of one episode; if all are NaN, the episode has no actions."""
        actions = flat_column(column, self.meta.action_dim)
        if np.isnan(actions).all():
            arrays.has_action[position] = False
        else:
            arrays.actions[rows] = actions

    def _load_final(
        self,
        arrays: EpisodeArrays,
        records: list[EpisodeRecord],
        shard: int,
        positions: list[int],
        frames: dict[Camera, np.ndarray],
    ) -> None:
        """Load the frame and the state after the last action of each episode."""
        path = self.root / lerobot.shard_path(lerobot.FINAL_PATH, shard)
        state = [lerobot.STATE_KEY] if self.state_dim else []
        keys = {camera: camera_key(camera.name) for camera in frames}
        table = lerobot.read_table(path, ["episode_index", *_COLUMNS, *state, *keys.values()])
        try:
            where = {index: row for row, index in enumerate(table["episode_index"].to_pylist())}
            pictures = {camera: table[key].combine_chunks().field("bytes") for camera, key in keys.items()}
            states = flat_column(table[lerobot.STATE_KEY], self.state_dim) if state else None
            for position in positions:
                record = records[position]
                row, last = where[record.index], int(arrays.offsets[position + 1]) - 1
                if states is not None:
                    arrays.states[last] = states[row]
                arrays.actions[last] = 0.0
                if record.success is not None:
                    arrays.success[last] = table["success"][row].as_py()
                progress = table["progress"][row].as_py()
                arrays.progress[last] = np.nan if progress is None else progress
                for camera, out in frames.items():
                    out[last] = decode_png(memoryview(pictures[camera][row].as_buffer()), *camera.size)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, pa.ArrowException) as error:
            raise lerobot.unreadable(path, error) from error


def _decode_into(out: np.ndarray, column: pa.ChunkedArray, size: tuple[int, int]) -> None:
    row = 0
    for chunk in column.chunks:
        for item in chunk.field("bytes"):
            out[row] = decode_png(memoryview(item.as_buffer()), *size)
            row += 1


def _bar(total: int, progress: bool) -> Any:
    if not (progress and sys.stderr.isatty()):
        return None
    from tqdm import tqdm

    return tqdm(total=total, desc="reading frames", unit=" frames", unit_scale=True)
