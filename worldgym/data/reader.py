"""Reads datasets: one episode lazily, or everything at once into arrays for a trainer.

Decoding PNG is the hot path, so `load_arrays` reads whole files and decodes straight into one array; a single
episode costs one row group. Only what `meta/info.json` lists is looked at, so a dataset can be read while it grows.

Example::

    from worldgym.data import EpisodeDataset
    dataset = EpisodeDataset("data/real", split="seen").require_seen()
    episode = dataset[0]
    arrays = dataset.filter(task="push", behaviour=("expert", "noisy")).load_arrays(limit=500)
    arrays.frames[arrays.rows(3)]            # the (T+1, H, W, 3) frames of the fourth of them
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from worldgym.data import lerobot
from worldgym.data.episode import ActionSpec, Episode
from worldgym.data.lerobot import IMAGE_KEY, DatasetMeta, EpisodeRecord
from worldgym.data.png import decode_png
from worldgym.data.splits import SPLITS, SplitManifest
from worldgym.data.stats import flat_column
from worldgym.data.video import decode_mp4
from worldgym.errors import DatasetError
from worldgym.utils.files import file_sha256

MAIN_VIEW = IMAGE_KEY.rpartition(".")[2]
_COLUMNS = ["action", "success", "progress"]


@dataclass(frozen=True, eq=False)
class EpisodeArrays:
    """Many episodes end to end; F counts all frames, N the episodes.

    Args:
        frames: `(F, H, W, 3)` uint8.
        states: `(F, S)` float32, metres.
        actions: `(F, A)` float32 in [-1, 1]; `actions[f]` leads from frame f to f+1, zero at an episode's last frame.
        success: `(F,)` bool.
        progress: `(F,)` float32 in [0, 1].
        is_last: `(F,)` bool, True at an episode's last frame, whose action is padding.
        offsets: `(N+1,)` int64; episode i owns rows `offsets[i]:offsets[i+1]`.
        instructions: N sentences.
        tasks: N task names.
        behaviours: N behaviour names.
        provenance: N dicts.
        indices: `(N,)` int64, number of each episode in its dataset.
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

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """`(N,)` int64, actions of each episode, T."""
        return np.diff(self.offsets) - 1

    def rows(self, episode: int) -> slice:
        """Rows of one episode, T+1 of them."""
        return slice(int(self.offsets[episode]), int(self.offsets[episode + 1]))


class EpisodeDataset(Sequence[Episode]):
    """A dataset on disk as a sequence of episodes.

    Args:
        path: the dataset's folder.
        split: keep only episodes of this split; None keeps all.

    Raises:
        DatasetError: missing, damaged or foreign; the message names the file and what to do.
        ValueError: unknown split.
    """

    def __init__(self, path: str | os.PathLike[str], split: str | None = None) -> None:
        if split is not None and split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}, or None for all")
        self.meta: DatasetMeta = lerobot.read_meta(Path(path))
        self.records: list[EpisodeRecord] = lerobot.read_records(self.meta)
        if split is not None:
            self.records = [record for record in self.records if record.split == split]

    # ---- what it is ----------------------------------------------------------------------------------------------

    @property
    def root(self) -> Path:
        """The dataset's folder."""
        return self.meta.root

    @property
    def action_spec(self) -> ActionSpec:
        """What the actions mean."""
        return self.meta.action_spec

    @property
    def manifest(self) -> SplitManifest:
        """The split rules under which it was collected; note `.hash` in every run folder."""
        return self.meta.manifest

    @property
    def image_size(self) -> int:
        """Pixels, height and width."""
        return self.meta.image_size

    @property
    def state_dim(self) -> int:
        """Proprioception dimension, S."""
        return self.meta.state_dim

    @property
    def total_frames(self) -> int:
        """Frames of the selected episodes, T+1 each."""
        return sum(record.steps + 1 for record in self.records)

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the cameras beside the main one."""
        return self.meta.views

    @property
    def summary(self) -> dict[str, Any]:
        """Counts of the selected episodes: environment steps by domain, episodes by behaviour, task, split."""
        from worldgym.data.writer import summarise

        return summarise(self.records)

    @property
    def stats(self) -> dict[str, Any]:
        """`meta/stats.json`: moments of state, action and image over the whole dataset."""
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
        """A view of the episodes that match every given condition; a list means any of these."""
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
        """A view of the episodes at these positions, in this order."""
        return self._with([self.records[position] for position in positions])

    def require_seen(self) -> EpisodeDataset:
        """Return itself if every episode may be trained on.

        Raises:
            DatasetError: some episode is held out.
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
        arrays = self._load([record], progress=False)
        try:
            views = {name: self._load([record], False, name).frames for name in self.views}
            return Episode(
                views=views,
                frames=arrays.frames,
                actions=arrays.actions[:-1],
                state=arrays.states,
                instruction=record.instruction,
                success=arrays.success,
                progress=arrays.progress,
                domain=record.domain,
                split=record.split,
                task=record.task,
                provenance=record.provenance,
            )
        except ValueError as error:
            raise DatasetError(f"episode {record.index} of {self.root} is damaged: {error}") from error

    def load_arrays(
        self, limit: int | None = None, progress: bool = False, camera: str | None = None
    ) -> EpisodeArrays:
        """Decode the selected episodes into memory.

        Args:
            limit: at most this many episodes, spread evenly over the selection; None for all.
            progress: show a bar when stderr is a terminal.
            camera: whose frames, one of `views`; None or `front` for the main camera.

        Raises:
            DatasetError: nothing is selected, or a file is damaged.
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
        return self._load(records, progress, camera)

    def verify(self) -> None:
        """Compare the SHA-256 of every file with the one noted at its commit (reads everything once).

        Raises:
            DatasetError: a file differs.
        """
        for entry in self.meta.files:
            path = self.root / entry["path"]
            if file_sha256(path) != entry["sha256"]:
                raise DatasetError(
                    f"{path} differs from what was committed; restore it from a copy, or collect again"
                )

    def _load(self, records: list[EpisodeRecord], progress: bool, camera: str | None = None) -> EpisodeArrays:
        camera = None if camera == MAIN_VIEW else camera
        if camera is not None and camera not in self.views:
            raise DatasetError(
                f"{self.root} has no camera {camera!r}; it has {', '.join((MAIN_VIEW, *self.views))}"
            )
        offsets = np.zeros(len(records) + 1, np.int64)
        np.cumsum([record.steps + 1 for record in records], out=offsets[1:])
        count, size = int(offsets[-1]), self.image_size
        try:
            frames = np.empty((count, size, size, 3), np.uint8)
        except (MemoryError, ValueError) as error:
            raise DatasetError(
                f"{count} frames of {size} px of {self.root} need {count * size * size * 3 / 2**30:.1f} GiB of memory, "
                "more than there is; load fewer with limit, or import them at a smaller --image-size"
            ) from error
        arrays = EpisodeArrays(
            frames=frames,
            states=np.empty((count, self.state_dim), np.float32),
            actions=np.empty((count, self.action_spec.dim), np.float32),
            success=np.empty(count, bool),
            progress=np.empty(count, np.float32),
            is_last=np.zeros(count, bool),
            offsets=offsets,
            instructions=[record.instruction for record in records],
            tasks=[record.task for record in records],
            behaviours=[record.behaviour for record in records],
            provenance=[record.provenance for record in records],
            indices=np.array([record.index for record in records], np.int64),
        )
        arrays.is_last[offsets[1:] - 1] = True
        by_file: dict[tuple[int, int], list[int]] = {}
        for position, record in enumerate(records):
            by_file.setdefault((record.chunk, record.file), []).append(position)
        bar = _bar(count, progress)
        for (chunk, file), positions in by_file.items():
            shard = chunk * lerobot.FILES_PER_CHUNK + file
            key = IMAGE_KEY if camera is None else f"{lerobot.IMAGE_PREFIX}{camera}"
            self._load_file(arrays, records, shard, positions, key)
            if bar is not None:
                bar.update(sum(records[position].steps + 1 for position in positions))
        if bar is not None:
            bar.close()
        return arrays

    def _load_file(
        self, arrays: EpisodeArrays, records: list[EpisodeRecord], shard: int, positions: list[int], key: str
    ) -> None:
        path = self.root / lerobot.shard_path(lerobot.DATA_PATH, shard)
        video = self.root / lerobot.shard_path(lerobot.VIDEO_PATH, shard, video_key=key)
        stored, padding = self.meta.images == "png", self.meta.padding
        state = [lerobot.STATE_KEY] if self.state_dim else []
        columns = [*_COLUMNS, *state, *([key] if stored else [])]
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
                    arrays.actions[rows] = flat_column(table["action"], self.action_spec.dim)
                    arrays.success[rows] = table["success"].to_numpy()
                    arrays.progress[rows] = table["progress"].to_numpy()
                    if stored:
                        _decode_into(arrays.frames[rows], table[key], self.image_size)
                    else:
                        arrays.frames[rows] = decode_mp4(
                            video, record.video_start, count, self.image_size, self.meta.fps
                        )
            if not padding:
                self._load_final(arrays, records, shard, positions, key)
        except (OSError, ValueError, KeyError, IndexError, pa.ArrowException) as error:
            if isinstance(error, DatasetError):
                raise
            raise lerobot.unreadable(path, error) from error

    def _load_final(
        self, arrays: EpisodeArrays, records: list[EpisodeRecord], shard: int, positions: list[int], key: str
    ) -> None:
        """Frame and state after the last action of each episode."""
        path = self.root / lerobot.shard_path(lerobot.FINAL_PATH, shard)
        state = [lerobot.STATE_KEY] if self.state_dim else []
        table = lerobot.read_table(path, ["episode_index", "success", "progress", *state, key])
        try:
            where = {index: row for row, index in enumerate(table["episode_index"].to_pylist())}
            pictures = table[key].combine_chunks().field("bytes")
            states = flat_column(table[lerobot.STATE_KEY], self.state_dim) if state else None
            for position in positions:
                row, last = where[records[position].index], int(arrays.offsets[position + 1]) - 1
                if states is not None:
                    arrays.states[last] = states[row]
                arrays.actions[last] = 0.0
                arrays.success[last] = table["success"][row].as_py()
                arrays.progress[last] = table["progress"][row].as_py()
                picture = memoryview(pictures[row].as_buffer())
                arrays.frames[last] = decode_png(picture, self.image_size, self.image_size)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, pa.ArrowException) as error:
            raise lerobot.unreadable(path, error) from error


def _decode_into(out: np.ndarray, column: pa.ChunkedArray, size: int) -> None:
    row = 0
    for chunk in column.chunks:
        for item in chunk.field("bytes"):
            out[row] = decode_png(memoryview(item.as_buffer()), size, size)
            row += 1


def _bar(total: int, progress: bool) -> Any:
    if not (progress and sys.stderr.isatty()):
        return None
    from tqdm import tqdm

    return tqdm(total=total, desc="reading frames", unit=" frames", unit_scale=True)
