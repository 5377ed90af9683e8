"""The LeRobotDataset v3 layout: file names, metadata, and the check that a folder has this layout.

Standard robot-learning tools can open datasets in this layout. An episode has T actions and T+1 frames. Each of its T
rows holds an observation and the action that was sent next, as in LeRobot's own recordings; the columns `next.*` of
row t describe the result of `action[t]`. Two additions are ignored by LeRobot readers: `worldgym/final/` holds the
frame and state after the last action, one row per episode, and `meta/info.json` has a block `worldgym` with the specs,
the split manifest, and the size and SHA-256 of every committed file. Replacing `meta/info.json` commits episodes:
files that it does not list are ignored.

Format 1, of earlier versions, stored the last frame as an additional row with a zero action (`is_last`). It can be read
but is no longer written, because a LeRobot reader would train on the zero action.

Example::

    from worldgym.data.lerobot import read_meta, read_records
    meta = read_meta(Path("data/real"))          # DatasetError when damaged, foreign or missing
    [record.instruction for record in read_records(meta)]
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from worldgym.data.earlier import specs_of_info
from worldgym.data.info import check_info, check_record
from worldgym.data.splits import SplitManifest
from worldgym.errors import DatasetError
from worldgym.specs import ActionSpec, Camera, Specs

Images = Literal["png", "mp4"]

CODEBASE_VERSION = "v3.0"
FORMAT_VERSION = 2
READABLE = (1, 2)
FILES_PER_CHUNK = 1000
MIN_VIDEO_SIZE = 128  # in smaller frames, 4:2:0 chroma subsampling blurs objects of a few pixels
IMAGE_PREFIX = "observation.images."
STATE_KEY = "observation.state"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
FINAL_PATH = "worldgym/final/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
INFO_PATH, STATS_PATH, TASKS_PATH = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"


@dataclass(frozen=True)
class DatasetMeta:
    """Validated content of `meta/info.json`.

    Args:
        root: the dataset's folder.
        info: content of the file.
        specs: cameras, state fields and actions; without an action spec if no episode has actions.
        manifest: split rules under which the dataset was collected.
        fps: frames per second.
        images: storage format of the frames.
        format_version: format 1 has one padding row per episode, format 2 has none.
        partial: the command that finishes an unfinished import, or None.
    """

    root: Path
    info: dict[str, Any]
    specs: Specs
    manifest: SplitManifest
    fps: float
    images: Images
    format_version: int = FORMAT_VERSION
    partial: str | None = None

    @property
    def action_spec(self) -> ActionSpec:
        """Meaning of the action dimensions.

        Raises:
            DatasetError: no episode has actions.
        """
        if self.specs.action is None:
            raise DatasetError(
                f"{self.root} holds video without actions; train on a dataset with actions, or choose a model that "
                "learns from video alone"
            )
        return self.specs.action

    @property
    def action_dim(self) -> int:
        """Action dimension, A; 0 if no episode has actions."""
        return 0 if self.specs.action is None else self.specs.action.dim

    @property
    def state_dim(self) -> int:
        """Proprioception dimension, S."""
        return self.specs.observation.state_dim

    @property
    def cameras(self) -> tuple[Camera, ...]:
        """The cameras, the main one first."""
        return self.specs.observation.cameras

    @property
    def views(self) -> tuple[str, ...]:
        """Names of all cameras except the main one."""
        return tuple(camera.name for camera in self.specs.observation.views)

    @property
    def padding(self) -> int:
        """Number of padding rows per episode."""
        return 1 if self.format_version == 1 else 0

    @property
    def files(self) -> list[dict[str, Any]]:
        """Committed files, each `{"kind", "path", "bytes", "sha256"}`, in commit order."""
        return self.info["worldgym"]["files"]


@dataclass(frozen=True)
class EpisodeRecord:
    """One row of `meta/episodes`: metadata of an episode, without its frames.

    Args:
        index: index of the episode in the dataset.
        steps: number of actions, T; the data file holds T rows (T+1 in format 1).
        first_row: index of its first row in the whole dataset.
        chunk: chunk index of its data file.
        file: file index of its data file.
        row_group: its row group in that file.
        success: whether the instruction was fulfilled at any frame; None if it was not labelled.
        provenance_json: provenance as stored JSON text.
    """

    index: int
    steps: int
    instruction: str
    task: str
    split: str
    domain: str
    behaviour: str
    success: bool | None
    first_row: int
    chunk: int
    file: int
    row_group: int
    provenance_json: str
    video_start: float = 0.0

    @property
    def provenance(self) -> dict[str, Any]:
        """Origin of the episode: behaviour, seed, version of the collector, ...

        Raises:
            DatasetError: the stored text is not a JSON object.
        """
        try:
            facts = json.loads(self.provenance_json)
            if not isinstance(facts, dict):
                raise TypeError(f"got a {type(facts).__name__}")
        except (ValueError, TypeError, RecursionError) as error:
            raise DatasetError(
                f"episode {self.index}: its provenance is damaged ({error}); restore meta/episodes from a copy"
            ) from error
        return facts


# Field of `EpisodeRecord` -> column of `meta/episodes`.
_RECORD_FIELDS = {
    **{name: name for name in ("steps", "instruction", "task", "split", "domain", "behaviour", "success")},
    "index": "episode_index",
    "first_row": "dataset_from_index",
    "chunk": "data/chunk_index",
    "file": "data/file_index",
    "provenance_json": "provenance",
}


def shard_path(template: str, shard: int, **names: str) -> str:
    """Path of the `shard`-th file, relative to the dataset's folder."""
    return template.format(chunk_index=shard // FILES_PER_CHUNK, file_index=shard % FILES_PER_CHUNK, **names)


def read_meta(root: Path, *, partial: bool = False, sizes: bool = True) -> DatasetMeta:
    """Read and check `meta/info.json` and the size of every committed file; changes nothing.

    Args:
        root: the dataset's folder.
        partial: also accept a dataset with an unfinished import.
        sizes: check the sizes of the files.

    Raises:
        DatasetError: there is no dataset, it has another version or layout, or it is damaged; the message names the
            file and the remedy.
    """
    source = root / INFO_PATH
    if not source.is_file():
        raise DatasetError(
            f"no dataset at {root}: {INFO_PATH} is missing; check the path, or collect one with "
            f"`worldgym collect --out {root}`"
        )
    try:
        info = json.loads(source.read_text(encoding="utf-8"))
        version = info["codebase_version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DatasetError(
            f"{source} is damaged ({type(error).__name__}: {error}); restore it from a copy, or collect again into "
            "another folder"
        ) from error
    if version != CODEBASE_VERSION:
        raise DatasetError(
            f"{source} has codebase_version {version!r}, expected {CODEBASE_VERSION!r}; convert it with "
            f"`worldgym import --source {root} --out NEW`, or collect into another folder"
        )
    block = info.get("worldgym")
    if not isinstance(block, dict):
        raise DatasetError(
            f"{source} is a LeRobot dataset without the 'worldgym' block (action spec, splits, success), so the "
            f"meaning of its actions is unknown; convert it with `worldgym import --source {root} --out NEW`"
        )
    if block.get("format_version") not in READABLE:
        raise DatasetError(
            f"{source} has worldgym format {block.get('format_version')!r}, but this version reads "
            f"{', '.join(map(str, READABLE))}; install the worldgym version that wrote it, or collect again"
        )
    if block.get("partial") and not partial:
        raise DatasetError(
            f"{root} holds an import that is not finished; to finish it, type:\n  {block['partial']}"
        )
    try:
        check_info(info)
        manifest = SplitManifest.from_dict(block["manifest"], f"{source} (worldgym.manifest)")
        meta = DatasetMeta(
            root=root,
            info=info,
            specs=specs_of_info(info),
            manifest=manifest,
            fps=float(info["fps"]),
            images=block["images"],
            format_version=int(block["format_version"]),
            partial=block.get("partial"),
        )
        for entry in meta.files:
            if not {"kind", "path", "bytes", "sha256"} <= set(entry) or ".." in Path(entry["path"]).parts:
                raise ValueError(f"it lists {entry!r}, which is not a file of the dataset")
            if sizes:
                check_size(root / entry["path"], int(entry["bytes"]))
    except DatasetError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{source} is damaged ({type(error).__name__}: {error}); restore it from a copy, or collect again"
        ) from error
    return meta


def check_size(path: Path, size: int) -> None:
    """Check that a committed file has the size that the dataset lists.

    Raises:
        DatasetError: the file is missing, truncated or changed.
    """
    remedy = "restore that file from a copy, or collect again into another folder"
    if not path.is_file():
        raise DatasetError(f"{path} is missing although the dataset lists it; {remedy}")
    got = path.stat().st_size
    if got != size:
        raise DatasetError(
            f"{path} has {got} bytes, but the dataset lists {size}: it is truncated or was changed; {remedy}"
        )


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a parquet file and verify its page checksums.

    Raises:
        DatasetError: the file cannot be read.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read(columns=columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> DatasetError:
    """Make the error for a file with damaged content."""
    reason = next(iter(str(error).splitlines()), "")  # first line only, because pyarrow appends the schema
    return DatasetError(
        f"{path} can't be read ({type(error).__name__}: {reason}); restore that file from a copy, download it "
        "again, or collect again into another folder"
    )


def read_tasks(meta: DatasetMeta) -> list[str]:
    """The committed instructions, in the order of their `task_index`."""
    total = int(meta.info["total_tasks"])
    if total == 0:
        return []
    path = meta.root / TASKS_PATH
    table = read_table(path)
    try:
        rows = sorted(zip(table["task_index"].to_pylist(), table["task"].to_pylist(), strict=True))
    except KeyError as error:
        raise unreadable(path, error) from error
    if len(rows) < total:
        raise DatasetError(
            f"{path} holds {len(rows)} instructions, but info.json lists {total}; restore it from a copy"
        )
    return [task for _, task in rows[:total]]  # an interrupted writer may have left more


def read_records(meta: DatasetMeta) -> list[EpisodeRecord]:
    """Records of all committed episodes, without frames.

    Raises:
        DatasetError: a file of `meta/episodes` is unreadable, or the counts disagree.
    """
    records: list[EpisodeRecord] = []
    main = IMAGE_PREFIX + meta.specs.observation.main.name
    video_key = f"videos/{main}/from_timestamp"  # an episode starts at the same time in the videos of all cameras
    for entry in meta.files:
        if entry["kind"] != "episodes":
            continue
        path = meta.root / entry["path"]
        names = list(_RECORD_FIELDS.values())
        try:
            table = read_table(path, [*names, video_key] if meta.images == "mp4" else names)
            columns = [table[name].to_pylist() for name in names]
            starts = table[video_key].to_pylist() if meta.images == "mp4" else [0.0] * table.num_rows
        except KeyError as error:
            raise unreadable(path, error) from error
        for group, row in enumerate(zip(*columns, starts, strict=True)):
            values = dict(zip([*_RECORD_FIELDS, "video_start"], row, strict=True))
            records.append(EpisodeRecord(row_group=group, **values))
            try:
                check_record(records[-1])
            except ValueError as error:
                raise unreadable(path, error) from error
    total = int(meta.info["total_episodes"])
    if len(records) != total or [record.index for record in records] != list(range(total)):
        raise DatasetError(
            f"{meta.root / INFO_PATH} lists {total} episodes, but the files in meta/episodes hold {len(records)}; "
            "restore the folder from a copy, or collect again"
        )
    return records
