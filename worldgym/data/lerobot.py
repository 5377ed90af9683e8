"""The LeRobotDataset v3 layout: names, schemas, and the check that a folder really is one.

Why this layout: what is collected here opens in the tools that robot-learning people already have. An episode has T
actions and T+1 frames. Its T rows hold what was seen and what was then sent, as LeRobot's own recordings do; `next.*`
of row t describe what follows `action[t]`. What a plain LeRobot reader ignores: the frame and state after the last
action lie in `worldgym/final/`, one row an episode, and `meta/info.json` has a block `worldgym` with the specs,
the split manifest, and the size and SHA-256 of every committed file. That file is the commit point: what it doesn't
list doesn't exist.

Format 1, of earlier versions, stored the last frame as a row of its own with a zero action (`is_last`). It is read, and
not written: a reader that does not know that column learns the zero action.

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
MIN_VIDEO_SIZE = 128  # below this, 4:2:0 chroma smears objects of a few pixels
IMAGE_PREFIX = "observation.images."
STATE_KEY = "observation.state"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
FINAL_PATH = "worldgym/final/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
INFO_PATH, STATS_PATH, TASKS_PATH = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"


@dataclass(frozen=True)
class DatasetMeta:
    """What `meta/info.json` says, checked.

    Args:
        root: the dataset's folder.
        info: the file's content.
        specs: cameras, state fields and actions; no action spec where no episode has actions.
        manifest: the split rules under which it was collected.
        fps: frames a second.
        images: how frames are stored.
        format_version: 1 has a padding row an episode, 2 has none.
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
        """What the actions mean.

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
        """A; 0 where no episode has actions."""
        return 0 if self.specs.action is None else self.specs.action.dim

    @property
    def state_dim(self) -> int:
        """S."""
        return self.specs.observation.state_dim

    @property
    def cameras(self) -> tuple[Camera, ...]:
        """The cameras, the main one first."""
        return self.specs.observation.cameras

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the cameras beside the main one."""
        return tuple(camera.name for camera in self.specs.observation.views)

    @property
    def padding(self) -> int:
        """Rows of an episode beyond its actions."""
        return 1 if self.format_version == 1 else 0

    @property
    def files(self) -> list[dict[str, Any]]:
        """Committed files: `{"kind", "path", "bytes", "sha256"}`, in the order of the commits."""
        return self.info["worldgym"]["files"]


@dataclass(frozen=True)
class EpisodeRecord:
    """One row of `meta/episodes`: what is known of an episode without its frames.

    Args:
        index: the episode's number in the dataset.
        steps: number of actions, T; the data file holds T rows (T+1 in format 1).
        first_row: index of its first row in the whole dataset.
        chunk: chunk index of its data file.
        file: file index of its data file.
        row_group: its row group in that file.
        success: whether the instruction was fulfilled at any frame; None where nobody noted it.
        provenance_json: provenance as it was stored.
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
        """Who made it and how.

        Raises:
            DatasetError: not a JSON object.
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
    """Read and check `meta/info.json` and the size of every committed file; nothing is changed.

    Args:
        root: the dataset's folder.
        partial: True also reads a dataset whose import is not finished.
        sizes: False leaves the sizes of the files unchecked.

    Raises:
        DatasetError: no dataset there, a foreign version or layout, or damaged; the message names file and remedy.
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
            f"{source} says codebase_version {version!r}, this reads {CODEBASE_VERSION!r}; convert it with "
            f"`worldgym import --source {root} --out NEW`, or collect into another folder"
        )
    block = info.get("worldgym")
    if not isinstance(block, dict):
        raise DatasetError(
            f"{source} is a LeRobot dataset without the 'worldgym' block (action spec, splits, success), so what its "
            f"actions mean is unknown; `worldgym import --source {root} --out NEW` makes a dataset of it"
        )
    if block.get("format_version") not in READABLE:
        raise DatasetError(
            f"{source} has worldgym format {block.get('format_version')!r}, this version reads "
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
                raise ValueError(f"it lists {entry!r}, which is no file of the dataset")
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
    """Whether a committed file has the size that the dataset lists.

    Raises:
        DatasetError: missing, truncated or changed.
    """
    remedy = "restore that file from a copy, or collect again into another folder"
    if not path.is_file():
        raise DatasetError(f"{path} is missing although the dataset lists it; {remedy}")
    got = path.stat().st_size
    if got != size:
        raise DatasetError(
            f"{path} has {got} bytes, the dataset lists {size}: it is truncated or was changed; {remedy}"
        )


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a whole parquet file, with its page checksums verified.

    Raises:
        DatasetError: it can't be read.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read(columns=columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> DatasetError:
    """The error for a file whose content is broken."""
    reason = next(iter(str(error).splitlines()), "")  # pyarrow adds the whole schema
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
            f"{path} holds {len(rows)} instructions, info.json says {total}; restore it from a copy"
        )
    return [task for _, task in rows[:total]]  # a killed writer may have left more


def read_records(meta: DatasetMeta) -> list[EpisodeRecord]:
    """All committed episodes, without their frames.

    Raises:
        DatasetError: an episodes file is unreadable, or the counts disagree.
    """
    records: list[EpisodeRecord] = []
    main = IMAGE_PREFIX + meta.specs.observation.main.name
    video_key = f"videos/{main}/from_timestamp"  # all cameras of an episode begin at the same second
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
            f"{meta.root / INFO_PATH} says {total} episodes, the files in meta/episodes hold {len(records)}; "
            "restore the folder from a copy, or collect again"
        )
    return records
