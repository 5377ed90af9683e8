"""Writes LeRobotDataset v3 datasets that survive a kill, a full disk and a second writer.

Episodes gather in memory, already as PNG; every `shard_episodes` of them become one data file and one file of
`meta/episodes`, and then `meta/info.json` is replaced: only that makes them exist. Killed in between, the writer
finds stray files when it opens the dataset again, removes them and goes on after the last committed episode.

Example::

    from worldgym.data import DatasetWriter, SplitManifest, TABLETOP_ACTION_SPEC
    with DatasetWriter("data/real", TABLETOP_ACTION_SPEC, 64, 4, SplitManifest.load("manifest.json")) as writer:
        for index in range(writer.episodes_committed, 1000):      # resumes by itself
            writer.append(make_episode(index))
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from worldgym.data import lerobot
from worldgym.data.episode import ActionSpec, Episode
from worldgym.data.files import LOCK_NAME, WriterLock, describe_file, write_json
from worldgym.data.info import seal
from worldgym.data.lerobot import IMAGE_KEY, DatasetMeta, EpisodeRecord, Images
from worldgym.data.splits import SplitManifest
from worldgym.data.stats import RunningStats
from worldgym.data.table import Pending, data_table, episodes_table, final_table
from worldgym.data.video import encode_mp4
from worldgym.errors import DatasetError
from worldgym.utils.files import atomic_path
from worldgym.utils.staging import PREFIX, sweep

logger = logging.getLogger(__name__)

_SHARD_FOLDERS = ("data/", "videos/", "worldgym/final/", "meta/episodes/")
_SHARD_FILE = re.compile(r"file-\d{3,}\.(parquet|mp4)")


class DatasetWriter:
    """Appends episodes to a new or an existing dataset; one writer a dataset.

    Args:
        path: the dataset's folder; made when missing, continued when it holds a dataset of the same kind.
        action_spec: what the actions mean.
        image_size: pixels, height and width of every frame.
        state_dim: proprioception dimension, S.
        manifest: the split rules; their hash is stored.
        fps: frames a second, None for the action spec's rate.
        shard_episodes: episodes a file, >= 1; a kill loses at most that many.
        images: `"png"`, or `"mp4"` for frames of at least 128 px.
        robot_type: free text for info.json; `worldgym_` and the name of the manifest when None.
        views: names of the cameras beside the main one; every episode must have them.
        partial: the command that finishes what is being written. Until `finish` is called, readers refuse the dataset
            and name that command. None for a dataset that may be read while it grows.

    Raises:
        ValueError: mp4 for small frames, or a size that makes no sense.
        DatasetError: the folder holds something else, is damaged, or has another spec; or another writer is at work.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        action_spec: ActionSpec,
        image_size: int,
        state_dim: int,
        manifest: SplitManifest,
        fps: float | None = None,
        shard_episodes: int = 50,
        *,
        images: Images = "png",
        robot_type: str | None = None,
        views: Sequence[str] = (),
        partial: str | None = None,
    ) -> None:
        if images not in get_args(Images):
            raise ValueError(f"images: got {images!r}, expected 'png' or 'mp4'")
        if images == "mp4" and (image_size < lerobot.MIN_VIDEO_SIZE or image_size % 2):
            raise ValueError(
                f"mp4 needs an even image_size of at least {lerobot.MIN_VIDEO_SIZE} px, got {image_size}: video stores "
                "colour at half resolution and smears small objects; use images='png'"
            )
        if image_size < 1 or state_dim < 0 or shard_episodes < 1:
            raise ValueError(
                f"image_size and shard_episodes must be >= 1, state_dim >= 0; got {image_size}, {shard_episodes}, "
                f"{state_dim}"
            )
        self.root = Path(path)
        self.action_spec = action_spec
        self.image_size = image_size
        self.state_dim = state_dim
        self.manifest = manifest
        self.fps = float(action_spec.hz if fps is None else fps)
        if self.fps != action_spec.hz:
            raise ValueError(
                f"fps is {self.fps:g}, the actions run at {action_spec.hz:g} Hz; a dataset holds one frame an action: "
                "leave fps out, or give an ActionSpec with that rate"
            )
        self.shard_episodes = shard_episodes
        self.images: Images = images
        self.robot_type = f"worldgym_{manifest.name}" if robot_type is None else robot_type
        self.views, self.partial = tuple(views), partial
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
                self._stats = RunningStats(action_spec.dim, state_dim, self.views)
                self._save(self._write_info)
            else:
                self._resume(lerobot.read_meta(self.root, partial=True))
        except BaseException:
            self._lock.release()
            raise

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
        for name in ("action_spec", "image_size", "state_dim", "fps", "images", "views"):
            if getattr(meta, name) != getattr(self, name):
                raise DatasetError(
                    f"{self.root} was written with {name}={getattr(meta, name)}, now {name}={getattr(self, name)} is "
                    "asked for; use the same setting, or write to another folder"
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
        self._stats = RunningStats(self.action_spec.dim, self.state_dim, self.views)
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
        size = (self.image_size, self.image_size, 3)
        got = (episode.frames.shape[1:], episode.actions.shape[1], episode.state.shape[1])
        if got != (size, self.action_spec.dim, self.state_dim):
            raise ValueError(
                f"the episode has frames {got[0]}, {got[1]} action and {got[2]} state dimensions; the dataset "
                f"{self.root} holds frames {size}, {self.action_spec.dim} and {self.state_dim}"
            )
        if set(episode.views) != set(self.views):
            raise ValueError(
                f"the episode has the cameras {sorted(episode.views)} beside the main one; the dataset {self.root} "
                f"holds {sorted(self.views)}"
            )
        if episode.split not in self.manifest.names:
            raise ValueError(
                f"split {episode.split!r} is not in the manifest, which has {self.manifest.names}"
            )
        self._pending.append(Pending.of(episode, self.images))
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
        schema = lerobot.data_schema(self.action_spec.dim, self.state_dim, self.images, self.views)
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
            last = final_table(self._pending, records, lerobot.final_schema(self.state_dim, self.views))
            pq.write_table(last, temporary, compression="NONE", write_page_checksum=True)
        for key in lerobot.camera_keys(self.views) if self.images == "mp4" else ():
            kind = "video" if key == IMAGE_KEY else f"video {key}"
            paths[kind] = lerobot.shard_path(lerobot.VIDEO_PATH, shard, video_key=key)
            with self._replacing(paths[kind]) as temporary:
                frames = (frame for item in self._pending for frame in item.frames[key])
                encode_mp4(temporary, frames, self.image_size, self.fps)
        paths["episodes"] = lerobot.shard_path(lerobot.EPISODES_PATH, shard)
        with self._replacing(paths["episodes"]) as temporary:
            pq.write_table(
                episodes_table(self._pending, records, self.fps, self.images),
                temporary,
                write_page_checksum=True,
            )
        if tasks != self._tasks:
            with self._replacing(lerobot.TASKS_PATH) as temporary:
                pq.write_table(lerobot.tasks_table(tasks), temporary, write_page_checksum=True)
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
            "features": lerobot.features(
                self.action_spec, self.image_size, self.state_dim, self.fps, self.images, self.views
            ),
            "worldgym": {
                "format_version": lerobot.FORMAT_VERSION,
                "images": self.images,
                "image_size": self.image_size,
                "state_dim": self.state_dim,
                "views": list(self.views),
                **({} if self.partial is None else {"partial": self.partial}),
                "action_spec": self.action_spec.to_dict(),
                "manifest_hash": self.manifest.hash,
                "manifest": self.manifest.to_dict(),
                "summary": summarise(records),
                "files": files,
            },
        }
        info["worldgym"]["seal"] = seal(info)  # type: ignore[index]
        write_json(self.root / lerobot.INFO_PATH, info)


def summarise(records: list[EpisodeRecord]) -> dict[str, Any]:
    """Count episodes and environment steps; the steps of `real` are interactions with the robot stand-in."""
    steps: Counter[str] = Counter()
    for record in records:
        steps[record.domain] += record.steps
    out: dict[str, Any] = {"env_steps": dict(steps)}
    for name in ("behaviour", "task", "split", "domain"):
        out[f"episodes_by_{name}"] = dict(Counter(getattr(record, name) for record in records))
    out["successes_by_behaviour"] = dict(Counter(record.behaviour for record in records if record.success))
    return json.loads(json.dumps(out))
