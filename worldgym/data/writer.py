"""Writes LeRobotDataset v3 datasets; committed episodes are safe if the process is killed or the disk is full.

Episodes are kept in memory, encoded as PNG. Every `shard_episodes` episodes are written to one data file and one file
of `meta/episodes`. Then `meta/info.json` is replaced, which commits them. If the process is killed before that, the
next writer that opens the dataset removes the uncommitted files and continues after the last committed episode.

Example::

    from worldgym.data import DatasetWriter, SplitManifest
    with DatasetWriter("data/real", suite.specs, SplitManifest.load("manifest.json")) as writer:
        for index in range(writer.episodes_committed, 1000):      # resumes after an interruption
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
    """Appends episodes to a new or existing dataset; a dataset can have one writer at a time.

    Args:
        path: the dataset's folder; created if missing, continued if it holds a dataset with the same settings.
        specs: cameras and their sizes, state fields, and action spec; without an action spec the dataset holds video
            only. The arguments of earlier versions, `(action_spec, image_size, state_dim, manifest, fps,
            shard_episodes)`, are deprecated but still accepted.
        manifest: the split rules; their hash is stored.
        fps: frames per second; None for the rate of the action spec. Required without an action spec.
        shard_episodes: episodes per file, >= 1; at most this many are lost if the process is killed.
        images: `"png"`, or `"mp4"` for frames of at least 128 px.
        robot_type: free text for info.json; `worldgym_` and the name of the manifest when None.
        partial: command that completes the dataset. Until `finish` is called, readers reject the dataset with a message
            that shows this command. None for a dataset that may be read while it grows.

    Raises:
        ValueError: mp4 with small frames, or an invalid size.
        DatasetError: the folder holds other files, a damaged dataset or one with other specs, or another writer has it
            open.
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
                "stores colour at half resolution and blurs small objects; use images='png'"
            )
        if not sides or shard_episodes < 1:
            raise ValueError(
                f"a dataset needs a camera, and shard_episodes >= 1; got {specs.observation}, {shard_episodes}"
            )
        self.root = Path(path)
        self.specs, self.manifest = specs, manifest
        action_spec = specs.action
        if fps is None and action_spec is None:
            raise ValueError("a dataset without actions has no control rate; give fps, frames per second")
        self.fps = float(action_spec.hz if fps is None and action_spec is not None else fps or 0.0)
        if action_spec is not None and self.fps != action_spec.hz:
            raise ValueError(
                f"fps is {self.fps:g}, but the actions have {action_spec.hz:g} Hz; a dataset holds one frame per "
                "action: omit fps, or give an ActionSpec with that rate"
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
        """Action dimension, A; 0 for video without actions."""
        return 0 if self.specs.action is None else self.specs.action.dim

    # ---- opening -------------------------------------------------------------------------------------------------

    def _check_folder(self) -> bool:
        """Whether the folder holds a dataset to continue; changes nothing, so that other files stay unchanged."""
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
                    "missing); nothing was changed: choose an empty folder"
                )
        return False

    def _check_same_kind(self, meta: DatasetMeta) -> None:
        if meta.format_version != lerobot.FORMAT_VERSION:
            raise DatasetError(
                f"{self.root} has format {meta.format_version} of an earlier version, which can be read but not "
                "continued; write to another folder"
            )
        for name, stored, given in (
            ("cameras", meta.cameras, self.specs.observation.cameras),
            ("state", meta.specs.observation.state, self.specs.observation.state),
            ("action_spec", meta.specs.action, self.specs.action),
            ("fps", meta.fps, self.fps),
            ("images", meta.images, self.images),
        ):
            if stored != given:
                raise DatasetError(
                    f"{self.root} was written with {name}={said(stored)}, now {name}={said(given)} is requested; use "
                    "the same setting, or write to another folder"
                )
        if meta.manifest.hash != self.manifest.hash:
            raise DatasetError(
                f"{self.root} was collected with the split manifest {meta.manifest.hash[:12]}..., but the current one "
                f"is {self.manifest.hash[:12]}...; episodes of both can't be mixed: write to another folder"
            )

    def _resume(self, meta: DatasetMeta) -> None:
        self._check_same_kind(meta)
        self._files = list(meta.files)
        self._records = lerobot.read_records(meta)
        self._tasks = lerobot.read_tasks(meta)
        self._remove_orphans(self._files)
        self._stats = self._no_stats()
        self._stats.add_files(self.root, self._files, self._records)
        # An interrupted commit may have left statistics that include uncommitted episodes.
        write_json(self.root / lerobot.STATS_PATH, self._stats.summary())

    def _remove_orphans(self, files: list[dict[str, Any]]) -> None:
        """Remove the files of an interrupted writer: temporary files, and shards that info.json does not list."""
        committed = {entry["path"] for entry in files}
        for folder in (self.root, *(path for path in sorted(self.root.rglob("*")) if path.is_dir())):
            sweep(folder)
        for path in sorted(self.root.rglob("*")):
            relative = path.relative_to(self.root).as_posix()
            stray = relative.startswith(_SHARD_FOLDERS) and _SHARD_FILE.fullmatch(path.name)
            if path.is_file() and relative not in committed and stray:
                logger.info("removing %s, left by a writer that was stopped before its commit", path)
                path.unlink()

    # ---- appending -----------------------------------------------------------------------------------------------

    @property
    def episodes_committed(self) -> int:
        """Number of committed episodes, which are kept if the process is killed."""
        return len(self._records)

    @property
    def episodes_pending(self) -> int:
        """Number of episodes appended since the last commit."""
        return len(self._pending)

    @property
    def records(self) -> list[EpisodeRecord]:
        """Records of the committed episodes, without frames."""
        return list(self._records)

    def __len__(self) -> int:
        return len(self._records) + len(self._pending)

    def append(self, episode: Episode) -> int:
        """Add one episode and return its index; commits after every `shard_episodes` episodes.

        Raises:
            ValueError: the sizes of the episode differ from those of the dataset, or its split is not in the manifest.
            DatasetError: the writer is closed, or saving failed (the dataset on disk is then unchanged).
        """
        if self._closed:
            raise DatasetError(f"the writer of {self.root} is closed; open a new DatasetWriter to continue")
        spec = self.specs.observation
        if spec.main.name in episode.views:
            raise ValueError(f"views: got the main camera {spec.main.name!r}; it is Episode.frames, omit it")
        frames_of = {spec.main.name: episode.frames, **episode.views}
        if set(frames_of) != {camera.name for camera in spec.cameras}:
            raise ValueError(
                f"the episode has the cameras {sorted(episode.views)} besides the main one; the dataset {self.root} "
                f"holds {sorted(camera.name for camera in spec.views)}"
            )
        sizes = {name: frames.shape[1:3] for name, frames in frames_of.items()}
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
        """Commit the appended episodes; committed episodes are kept if the process is killed.

        Raises:
            DatasetError: saving failed, e.g. the disk is full. The dataset on disk is unchanged and the episodes stay
                in memory, so `flush` can be called again.
        """
        if self._pending:
            self._save(self._commit)

    def finish(self) -> None:
        """Commit, and mark the dataset as complete, so that readers accept it.

        Raises:
            DatasetError: see `flush`.
        """
        self.flush()
        if self.partial is not None:
            self.partial = None
            self._save(lambda: self._write_info(self._files, self._records, self._tasks))

    def close(self) -> None:
        """Commit and release the lock; a second call has no effect."""
        if self._closed:
            return
        try:
            if not self._save_failed:  # a second attempt would only hide the first error
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
            # The command makes them again; dropping them keeps `shard_episodes` episodes in every file.
            self._pending.clear()
        try:
            self.close()
        except DatasetError:
            if error is None:
                raise
            logger.exception("saving the last episodes of %s also failed", self.root)

    # ---- saving --------------------------------------------------------------------------------------------------

    def _save(self, action: Any) -> None:
        """Run `action`; on failure remove its new files and raise an error that states which episodes are saved."""
        try:
            action()
            self._save_failed = False
        except (OSError, UnicodeError, pa.ArrowException) as error:
            self._save_failed = True
            with contextlib.suppress(OSError, DatasetError):
                # Only files that info.json does not list are removed: the failure may have come just after the commit.
                self._remove_orphans(lerobot.read_meta(self.root, partial=True).files)
            full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
            remedy = "free some space" if full else "fix the cause"
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
                compression="NONE",  # most of the data are PNGs, which are already compressed
                use_dictionary=False,
                write_page_checksum=True,
            ) as file,
        ):
            for group, item in enumerate(self._pending):
                index = len(self._records) + group
                # One row group per episode, so that a single episode can be read without the others.
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
