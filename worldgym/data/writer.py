"""Writes LeRobotDataset v3 datasets that survive a kill, a full disk and a second writer.

Episodes gather in memory, already as PNG; every `shard_episodes` of them become one data file and one file of
`meta/episodes`, and then `meta/info.json` is replaced: only that makes them exist. Killed in between, the writer
finds stray files when it opens the dataset again, removes them and goes on after the last committed episode.

Example::

    from worldgym.data import DatasetWriter, SplitManifest
    with DatasetWriter("data/real", suite.specs, SplitManifest.load("manifest.json")) as writer:
        for index in range(writer.episodes_committed, 1000):      # resumes by itself
            writer.append(make_episode(index))
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from worldgym.data import lerobot
from worldgym.data.codecs.video import encode_mp4
from worldgym.data.earlier import earlier_form
from worldgym.data.episode import Episode
from worldgym.data.files import LOCK_NAME, WriterLock, describe_file, write_json
from worldgym.data.info import seal
from worldgym.data.lerobot import DatasetMeta, EpisodeRecord, Images
from worldgym.data.schema import camera_keys, data_schema, features, final_schema, tasks_table
from worldgym.data.splits import SplitManifest
from worldgym.data.stats import RunningStats
from worldgym.data.summary import said, summarise
from worldgym.data.table import Pending, data_table, episodes_table, final_table
from worldgym.errors import DatasetError
from worldgym.specs import ActionSpec, Specs
from worldgym.utils.files import atomic_path
from worldgym.utils.staging import PREFIX, sweep

logger = logging.getLogger(__name__)

_SHARD_FOLDERS = ("data/", "videos/", "worldgym/final/", "meta/episodes/")
_SHARD_FILE = re.compile(r"file-\d{3,}\.(parquet|mp4)")


class DatasetWriter:
    """Appends episodes to a new or an existing dataset; one writer a dataset.

    Args:
        path: the dataset's folder; made when missing, continued when it holds a dataset of the same kind.
        specs: cameras and their sizes, state fields, and what the actions mean; without an action spec the dataset is
            of video alone. Earlier versions gave `(action_spec, image_size, state_dim, manifest, fps, shard_episodes)`,
            which still works and is deprecated.
        manifest: the split rules; their hash is stored.
        fps: frames a second; None for the action spec's rate. Needed without an action spec.
        shard_episodes: episodes a file, >= 1; a kill loses at most that many.
        images: `"png"`, or `"mp4"` for frames of at least 128 px.
        robot_type: free text for info.json; `worldgym_` and the name of the manifest when None.
        partial: the command that finishes what is being written. Until `finish` is called, readers refuse the dataset
            and name that command. None for a dataset that may be read while it grows.

    Raises:
        ValueError: mp4 for small frames, or a size that makes no sense.
        DatasetError: the folder holds something else, is damaged, or has another spec; or another writer is at work.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        specs: Specs | ActionSpec,
        manifest: SplitManifest | int,
        *earlier: Any,
        fps: float | None = None,
        shard_episodes: int = 50,
        images: Images = "png",
        robot_type: str | None = None,
        views: Sequence[str] = (),
        partial: str | None = None,
    ) -> None:
        if isinstance(specs, ActionSpec):
            specs, manifest, fps, shard_episodes = earlier_form(
                specs, (manifest, *earlier), fps, shard_episodes, views
            )
        if not isinstance(specs, Specs) or not isinstance(manifest, SplitManifest):
            raise TypeError(
                f"DatasetWriter got {type(specs).__name__} and {type(manifest).__name__}; expected "
                "worldgym.specs.Specs and a SplitManifest: DatasetWriter(path, specs, manifest)"
            )
        if images not in get_args(Images):
            raise ValueError(f"images: got {images!r}, expected 'png' or 'mp4'")
        sides = [side for camera in specs.observation.cameras for side in camera.size]
        if images == "mp4" and any(side < lerobot.MIN_VIDEO_SIZE or side % 2 for side in sides):
            raise ValueError(
                f"mp4 needs an even image_size of at least {lerobot.MIN_VIDEO_SIZE} px, got {specs.observation}: video "
                "stores colour at half resolution and smears small objects; use images='png'"
            )
        if not sides or shard_episodes < 1:
            raise ValueError(
                f"a dataset needs a camera, and shard_episodes >= 1; got {specs.observation}, {shard_episodes}"
            )
        self.root = Path(path)
        self.specs, self.manifest = specs, manifest
        action_spec = specs.action
        if fps is None and action_spec is None:
            raise ValueError("a dataset without actions has no rate of its own; give fps, frames a second")
        self.fps = float(action_spec.hz if fps is None and action_spec is not None else fps or 0.0)
        if action_spec is not None and self.fps != action_spec.hz:
            raise ValueError(
                f"fps is {self.fps:g}, the actions run at {action_spec.hz:g} Hz; a dataset holds one frame an action: "
                "leave fps out, or give an ActionSpec with that rate"
            )
        self.shard_episodes = shard_episodes
        self.images: Images = images
        self.robot_type = f"worldgym_{manifest.name}" if robot_type is None else robot_type
        self.partial = partial
        self._pending: list[Pending] = []
        self._closed = False
        self._save_failed = False
        existing = self._check_folder()
        self.root.mkdir(parents=True, exist_ok=True)
        self._lock = WriterLock(self.root)
        self._lock.acquire()
        try:
            if not existing and not (self.root / lerobot.INFO_PATH).exists():
                self._files: list[dict[str, Any]] = []
                self._records: list[EpisodeRecord] = []
                self._tasks: list[str] = []
                self._stats = self._no_stats()
                self._save(self._write_info)
            else:
                self._resume(lerobot.read_meta(self.root, partial=True))
        except BaseException:
            self._lock.release()
            raise

    def _no_stats(self) -> RunningStats:
        return RunningStats(
            self.action_dim, self.specs.observation.state_dim, camera_keys(self.specs.observation)
        )

    @property
    def action_dim(self) -> int:
        """A; 0 for video without actions."""
        return 0 if self.specs.action is None else self.specs.action.dim

    # ---- opening -------------------------------------------------------------------------------------------------

    def _check_folder(self) -> bool:
        """Whether there is a dataset to continue; looks only, so that what is foreign stays as it is."""
        if (self.root / lerobot.INFO_PATH).exists():
            self._check_same_kind(lerobot.read_meta(self.root, partial=self.partial is not None))
            return True
        if self.root.exists() and not self.root.is_dir():
            raise DatasetError(f"{self.root} is a file, expected a folder; choose another path")
        entries = sorted(self.root.iterdir()) if self.root.exists() else []
        for entry in entries:
            ours = (
                entry.name == LOCK_NAME
                or entry.name.startswith(PREFIX)
                or (entry.name == "meta" and all(item.name.startswith(PREFIX) for item in entry.iterdir()))
            )
            if not ours:
                raise DatasetError(
                    f"{self.root} is not empty ({entry.name}, ...) and holds no dataset ({lerobot.INFO_PATH} is "
                    "missing); nothing was touched: choose an empty folder"
                )
        return False

    def _check_same_kind(self, meta: DatasetMeta) -> None:
        if meta.format_version != lerobot.FORMAT_VERSION:
            raise DatasetError(
                f"{self.root} has format {meta.format_version}, of an earlier version: it can be read, not continued; "
                "write to another folder"
            )
        for name, there, here in (
            ("cameras", meta.cameras, self.specs.observation.cameras),
            ("state", meta.specs.observation.state, self.specs.observation.state),
            ("action_spec", meta.specs.action, self.specs.action),
            ("fps", meta.fps, self.fps),
            ("images", meta.images, self.images),
        ):
            if there != here:
                raise DatasetError(
                    f"{self.root} was written with {name}={said(there)}, now {name}={said(here)} is asked for; use "
                    "the same setting, or write to another folder"
                )
        if meta.manifest.hash != self.manifest.hash:
            raise DatasetError(
                f"{self.root} was collected under the split manifest {meta.manifest.hash[:12]}..., the current one is "
                f"{self.manifest.hash[:12]}...; episodes of both can't be mixed: write to another folder"
            )

    def _resume(self, meta: DatasetMeta) -> None:
        self._check_same_kind(meta)
        self._files = list(meta.files)
        self._records = lerobot.read_records(meta)
        self._tasks = lerobot.read_tasks(meta)
        self._remove_orphans(self._files)
        self._stats = self._no_stats()
        self._stats.add_files(self.root, self._files, self._records)
        # A commit that was killed half-way may have left the statistics of episodes that don't exist.
        write_json(self.root / lerobot.STATS_PATH, self._stats.summary())

    def _remove_orphans(self, files: list[dict[str, Any]]) -> None:
        """Remove what a killed writer left: temporary files, and shards that info.json doesn't list."""
        committed = {entry["path"] for entry in files}
        for folder in (self.root, *(path for path in sorted(self.root.rglob("*")) if path.is_dir())):
            sweep(folder)
        for path in sorted(self.root.rglob("*")):
            relative = path.relative_to(self.root).as_posix()
            stray = relative.startswith(_SHARD_FOLDERS) and _SHARD_FILE.fullmatch(path.name)
            if path.is_file() and relative not in committed and stray:
                logger.info("removing %s, left by a writer that was stopped before its commit", path)
                path.unlink()

    # ---- what a caller does --------------------------------------------------------------------------------------

    @property
    def episodes_committed(self) -> int:
        """Episodes that survive a kill now."""
        return len(self._records)

    @property
    def episodes_pending(self) -> int:
        """Episodes appended since the last commit."""
        return len(self._pending)

    @property
    def records(self) -> list[EpisodeRecord]:
        """Committed episodes, without frames."""
        return list(self._records)

    def __len__(self) -> int:
        return len(self._records) + len(self._pending)

    def append(self, episode: Episode) -> int:
        """Add one episode and return its index; every `shard_episodes` of them are committed.

        Raises:
            ValueError: the episode's sizes don't fit the dataset, or its split is unknown to the manifest.
            DatasetError: the writer is closed, or saving failed (then the dataset on disk is as before).
        """
        if self._closed:
            raise DatasetError(f"the writer of {self.root} is closed; open a new DatasetWriter to continue")
        spec = self.specs.observation
        seen = {spec.main.name: episode.frames, **episode.views}
        if set(seen) != {camera.name for camera in spec.cameras}:
            raise ValueError(
                f"the episode has the cameras {sorted(episode.views)} beside the main one; the dataset {self.root} "
                f"holds {sorted(camera.name for camera in spec.views)}"
            )
        sizes = {name: frames.shape[1:3] for name, frames in seen.items()}
        action_dim = self.action_dim if episode.actions is None else episode.actions.shape[1]
        wanted = {camera.name: camera.size for camera in spec.cameras}
        if (sizes, action_dim, episode.state.shape[1]) != (wanted, self.action_dim, spec.state_dim):
            raise ValueError(
                f"the episode has frames {said(sizes)}, {action_dim} action and {episode.state.shape[1]} state "
                f"dimensions; the dataset {self.root} holds frames {said(wanted)}, {self.action_dim} and "
                f"{spec.state_dim}"
            )
        if episode.split not in self.manifest.names:
            raise ValueError(
                f"split {episode.split!r} is not in the manifest, which has {self.manifest.names}"
            )
        self._pending.append(Pending.of(episode, self.images, spec.main.name))
        index = len(self) - 1
        if len(self._pending) >= self.shard_episodes:
            self.flush()
        return index

    def flush(self) -> None:
        """Commit what was appended; afterwards it survives a kill.

        Raises:
            DatasetError: saving failed, e.g. the disk is full. The dataset on disk is as before and the episodes
                stay in memory, so `flush` can be called again.
        """
        if self._pending:
            self._save(self._commit)

    def finish(self) -> None:
        """Commit, and say that the dataset is complete: readers take it from now on.

        Raises:
            DatasetError: as `flush`.
        """
        self.flush()
        if self.partial is not None:
            self.partial = None
            self._save(lambda: self._write_info(self._files, self._records, self._tasks))

    def close(self) -> None:
        """Commit and give the lock back; harmless when called twice."""
        if self._closed:
            return
        try:
            if not self._save_failed:  # a second try would only hide the first error
                self.flush()
        finally:
            self._closed = True
            self._lock.release()

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self.partial is not None:
            self._pending.clear()  # made again by the same command, in files of the same size as without a stop
        try:
            self.close()
        except DatasetError:
            if error is None:
                raise
            logger.exception("saving the last episodes of %s failed as well", self.root)

    # ---- saving --------------------------------------------------------------------------------------------------

    def _save(self, action: Any) -> None:
        """Run a save; on failure remove its new files and say what is safe."""
        try:
            action()
            self._save_failed = False
        except (OSError, UnicodeError, pa.ArrowException) as error:
            self._save_failed = True
            with contextlib.suppress(OSError, DatasetError):
                # What info.json lists counts, not this object: the failure may have come just after the commit.
                self._remove_orphans(lerobot.read_meta(self.root, partial=True).files)
            full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
            remedy = "free some space" if full else "see to the cause"
            raise DatasetError(
                f"saving to {self.root} failed: {'the disk is full' if full else error}. The "
                f"{len(self._records)} episodes saved before are intact, {len(self._pending)} are not saved; "
                f"{remedy} and call flush(), or run the same command again to continue"
            ) from error

    def _commit(self) -> None:
        shard = sum(entry["kind"] == "data" for entry in self._files)
        first_row = sum(record.steps for record in self._records)
        tasks = list(
            dict.fromkeys([*self._tasks, *(item.episode_fields["instruction"] for item in self._pending)])
        )
        task_index = {task: number for number, task in enumerate(tasks)}
        paths: dict[str, str] = {"data": lerobot.shard_path(lerobot.DATA_PATH, shard)}
        schema = data_schema(self.specs, self.images)
        records: list[EpisodeRecord] = []
        row, clock = first_row, 0
        with (
            self._replacing(paths["data"]) as temporary,
            pq.ParquetWriter(
                temporary,
                schema,
                compression="NONE",  # the PNGs are the bulk and are compressed already
                use_dictionary=False,
                write_page_checksum=True,
            ) as file,
        ):
            for group, item in enumerate(self._pending):
                index = len(self._records) + group
                # One row group an episode: any single episode can be read without its neighbours.
                file.write_table(data_table(item, schema, index, row, task_index, self.fps))
                chunk, number = divmod(shard, lerobot.FILES_PER_CHUNK)
                records.append(item.record(index, row, chunk, number, group, clock / self.fps))
                row += item.steps
                clock += item.steps
        paths["final"] = lerobot.shard_path(lerobot.FINAL_PATH, shard)
        with self._replacing(paths["final"]) as temporary:
            last = final_table(self._pending, records, final_schema(self.specs.observation))
            pq.write_table(last, temporary, compression="NONE", write_page_checksum=True)
        cameras = dict(zip(camera_keys(self.specs.observation), self.specs.observation.cameras, strict=True))
        for position, (key, camera) in enumerate(cameras.items() if self.images == "mp4" else ()):
            kind = f"video {key}" if position else "video"
            paths[kind] = lerobot.shard_path(lerobot.VIDEO_PATH, shard, video_key=key)
            with self._replacing(paths[kind]) as temporary:
                frames = (frame for item in self._pending for frame in item.frames[key])
                encode_mp4(temporary, frames, camera.size, self.fps)
        paths["episodes"] = lerobot.shard_path(lerobot.EPISODES_PATH, shard)
        with self._replacing(paths["episodes"]) as temporary:
            pq.write_table(
                episodes_table(self._pending, records, self.fps, self.images),
                temporary,
                write_page_checksum=True,
            )
        if tasks != self._tasks:
            with self._replacing(lerobot.TASKS_PATH) as temporary:
                pq.write_table(tasks_table(tasks), temporary, write_page_checksum=True)
        stats = self._stats.copy()
        for item in self._pending:
            stats.add(item.state, item.actions, item.images)
        write_json(self.root / lerobot.STATS_PATH, stats.summary())
        files = [*self._files]
        files += [
            {"kind": kind, **describe_file(self.root / path, self.root)} for kind, path in paths.items()
        ]
        self._write_info(files, [*self._records, *records], tasks)
        self._files, self._tasks, self._stats = files, tasks, stats
        self._records += records
        self._pending.clear()

    def _replacing(self, relative: str) -> contextlib.AbstractContextManager[Path]:
        return atomic_path(self.root / relative)

    def _write_info(
        self,
        files: list[dict[str, Any]] | None = None,
        records: list[EpisodeRecord] | None = None,
        tasks: list[str] | None = None,
    ) -> None:
        files, records, tasks = files or [], records or [], tasks or []
        info = {
            "codebase_version": lerobot.CODEBASE_VERSION,
            "robot_type": self.robot_type,
            "total_episodes": len(records),
            "total_frames": sum(record.steps for record in records),
            "total_tasks": len(tasks),
            "chunks_size": lerobot.FILES_PER_CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": int(self.fps) if self.fps.is_integer() else self.fps,
            "splits": {"train": f"0:{len(records)}"},
            "data_path": lerobot.DATA_PATH,
            "video_path": lerobot.VIDEO_PATH if self.images == "mp4" else None,
            "features": features(self.specs, self.fps, self.images),
            "worldgym": {
                "format_version": lerobot.FORMAT_VERSION,
                "images": self.images,
                **({} if self.partial is None else {"partial": self.partial}),
                "specs": self.specs.to_dict(),
                "manifest_hash": self.manifest.hash,
                "manifest": self.manifest.to_dict(),
                "summary": summarise(records),
                "files": files,
            },
        }
        info["worldgym"]["seal"] = seal(info)  # type: ignore[index]
        write_json(self.root / lerobot.INFO_PATH, info)
