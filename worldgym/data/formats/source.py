"""Metadata of a LeRobot folder, v2.0 to v3.0: its episodes, and the files that hold their rows and frames.

The files in `meta/` come from other software, so every field is validated when it is read. Paths outside the folder are
rejected, and an invalid value raises an error that names the file.

Example::

    source = LeRobotSource("data/pusht", cameras=["observation.image"])
    source.places[0].length, source.cameras, source.fps
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from worldgym.data.formats.choices import choose_cameras, choose_keys, is_inside
from worldgym.data.formats.fields import instruction_list, is_text
from worldgym.data.lerobot import INFO_PATH, TASKS_PATH, read_table, unreadable
from worldgym.errors import DatasetError

VERSIONS = ("v2.0", "v2.1", "v3.0")
STATE_KEY, ACTION_KEY = "observation.state", "action"
LONGEST_NAME, LONGEST_PATH = 255, 4000  # bytes; limits of file systems
_MALFORMED = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    OverflowError,
    RecursionError,
)


@dataclass(frozen=True)
class Place:
    """Files and positions of an episode.

    Args:
        index: number of the episode.
        length: number of rows.
        tasks: its instructions or task numbers in the metadata, as recorded.
        data: the parquet file.
        videos: by camera, the video file, and start and end of the episode in it in seconds (end None if unknown).
    """

    index: int
    length: int
    tasks: Any
    data: Path
    videos: dict[str, tuple[Path, float, float | None]]


class LeRobotSource:
    """A folder in LeRobot's layout.

    Args:
        path: the folder with `meta/info.json`.
        cameras: image features, the main camera first; may be None if the folder has a single camera.
        state_keys: features of proprioception, concatenated; None for `observation.state`, if it exists.
        action_keys: features of actions, concatenated; None for `action`, an empty tuple to read no actions.

    Raises:
        DatasetError: the folder is missing or has another version, a feature is unknown, there are several cameras and
            none was chosen, or a file is missing or damaged.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        cameras: str | Sequence[str] | None = None,
        state_keys: Sequence[str] | None = None,
        action_keys: Sequence[str] | None = None,
    ) -> None:
        self.root = Path(path).expanduser()
        self.flat = not (self.root / INFO_PATH).is_file() and is_flat(self.root)
        self.source = source = self.root / ("info.json" if self.flat else INFO_PATH)
        try:
            self.info: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
            self.version, self.features = self.info["codebase_version"], dict(self.info["features"])
            self.fps = float(self.info["fps"])
            if not 0 < self.fps < 100_000:
                raise ValueError(f"fps is {self.fps}")
            for name, what in self.features.items():
                if not isinstance(what, dict):
                    raise TypeError(
                        f"the feature {name!r} is a {type(what).__name__}, expected its dtype and shape"
                    )
        except FileNotFoundError as error:
            raise DatasetError(
                f"no LeRobot dataset at {self.root}: {INFO_PATH} is missing; check the path"
            ) from error
        except _MALFORMED as error:
            raise unreadable(source, error) from error
        if self.version not in VERSIONS:
            raise DatasetError(
                f"{source} has codebase_version {self.version!r}, expected {', '.join(VERSIONS)}; convert it with "
                "LeRobot's own scripts first"
            )
        if "worldgym" in self.info:
            raise DatasetError(
                f"{self.root} is already a dataset of worldgym; open it with EpisodeDataset({str(self.root)!r})"
            )
        if self.flat and (self.version == "v3.0" or sum(map(self.filmed, self.cameras)) > 1):
            raise DatasetError(
                f"{source} describes sub-folders (version {self.version}, {', '.join(self.cameras)}), but there "
                "are none; copy the dataset with its folders meta, data and videos"
            )
        self.cameras_chosen = self._choose(cameras)
        self.state_keys = self._keys(
            state_keys, [STATE_KEY] if STATE_KEY in self.features else [], "--state-key"
        )
        self.action_keys = () if action_keys == () else self._keys(action_keys, [ACTION_KEY], "--action-key")

    # ---- features ------------------------------------------------------------------------------------------------

    @property
    def cameras(self) -> list[str]:
        """Names of the image features."""
        return [name for name, what in self.features.items() if what.get("dtype") in ("image", "video")]

    def filmed(self, camera: str) -> bool:
        """Whether the frames of a camera are stored in videos, not in the rows."""
        return bool(self.features[camera]["dtype"] == "video")

    def _choose(self, cameras: str | Sequence[str] | None) -> tuple[str, ...]:
        return choose_cameras(self.cameras, cameras, self.root, self.features)

    def _keys(self, given: Sequence[str] | None, default: list[str], option: str) -> tuple[str, ...]:
        plain = [name for name in self.features if name not in self.cameras]
        numeric = [name for name in plain if "string" not in str(self.features[name].get("dtype"))]
        return choose_keys(plain, given, default, option, self.source, numeric)

    # ---- files ---------------------------------------------------------------------------------------------------

    def inside(self, relative: str) -> Path:
        """Absolute path of `relative`, which must be inside the folder.

        Raises:
            DatasetError: the path is outside the folder, directly or through a link. Links into the `blobs` folder of a
                Hugging Face cache are allowed, because its snapshots consist of such links.
        """
        if len(os.fsencode(relative)) > LONGEST_PATH or any(
            len(os.fsencode(part)) > LONGEST_NAME for part in Path(relative).parts
        ):
            raise DatasetError(
                f"{self.source} names a file path of {len(relative)} characters ({relative[:40]}...), longer "
                "than a path can be; correct it"
            )
        path = self.root / relative
        if Path(relative).is_absolute() or ".." in Path(relative).parts or not is_inside(path, self.root):
            raise DatasetError(
                f"{self.source} names {relative!r}, which lies outside {self.root}; nothing outside the "
                "source folder is read: correct the path, or copy the file into the folder"
            )
        return path

    def _file(self, template: str, **names: Any) -> Path:
        source = self.source
        try:
            text = self.info[template]
            for _, name, spec, conversion in string.Formatter().parse(text):
                if name is None:
                    continue
                plain = (spec or "").removesuffix("d")
                if (
                    name not in names
                    or conversion
                    or not (plain == "" or (plain.isdecimal() and int(plain) <= 12))
                ):
                    raise ValueError(
                        f"{template} has the field {{{name}:{spec}}}, expected one of {sorted(names)}"
                    )
            place = text.format(**names)
            return self.inside(Path(place).name if self.flat else place)
        except DatasetError:
            raise
        except _MALFORMED as error:
            raise unreadable(source, error) from error

    # ---- episodes ------------------------------------------------------------------------------------------------

    @cached_property
    def places(self) -> list[Place]:
        """All listed episodes, sorted by number.

        Raises:
            DatasetError: a file of episode metadata is missing or damaged, or an episode number occurs twice.
        """
        places = sorted(
            self._places_v3() if self.version == "v3.0" else self._places_v2(), key=lambda place: place.index
        )
        numbers = [place.index for place in places]
        if len(set(numbers)) != len(numbers):
            repeated = sorted({n for n in numbers if numbers.count(n) > 1})
            raise DatasetError(f"{self.root} lists episode {repeated[0]} more than once; correct meta/episodes")
        return places

    def __len__(self) -> int:
        return len(self.places)

    def _place(self, row: dict[str, Any], data: Path, videos: dict[str, Any]) -> Place:
        index, length = row["episode_index"], row["length"]
        for name, value in (("episode_index", index), ("length", length)):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**40:
                raise ValueError(f"{name} is {value!r}, expected a whole number")
        return Place(index, length, row.get("tasks"), data, videos)

    def _places_v2(self) -> list[Place]:
        path = self.root / ("episodes.json" if self.flat else "meta/episodes.jsonl")
        places = []
        try:
            per_chunk = int(self.info.get("chunks_size", 1000))
            text = path.read_text(encoding="utf-8")
            if self.flat:
                rows = [
                    {"episode_index": row["episode"], "length": row["frames"], "tasks": row.get("task")}
                    for row in json.loads(text)
                ]
            else:
                rows = [json.loads(line) for line in text.splitlines() if line.strip()]
            for row in rows:
                names = {
                    "episode_index": row["episode_index"],
                    "episode_chunk": row["episode_index"] // per_chunk,
                    "total_episodes": len(rows),
                }
                videos = {
                    camera: (self._file("video_path", **names, video_key=camera), 0.0, None)
                    for camera in self.cameras_chosen
                    if self.filmed(camera)
                }
                places.append(self._place(row, self._file("data_path", **names), videos))
        except DatasetError:
            raise
        except (*_MALFORMED, ZeroDivisionError) as error:
            raise unreadable(path, error) from error
        return places

    def _places_v3(self) -> list[Place]:
        folder = self.root / "meta" / "episodes"
        files = sorted(folder.rglob("*.parquet"))
        if not files:
            raise DatasetError(f"{folder} holds no parquet file; download the dataset's meta folder again")
        filmed = [camera for camera in self.cameras_chosen if self.filmed(camera)]
        places = []
        for path in files:
            try:
                table = read_table(path)
                wanted = ["episode_index", "length", "data/chunk_index", "data/file_index"]
                video = ("chunk_index", "file_index", "from_timestamp")
                wanted += [f"videos/{camera}/{name}" for camera in filmed for name in video]
                missing = [name for name in wanted if name not in table.column_names]
                if missing:
                    raise KeyError(f"no column {missing[0]}")
                ends = {c: f"videos/{c}/to_timestamp" for c in filmed}
                more = [name for name in ("tasks", *ends.values()) if name in table.column_names]
                for row in table.select([*wanted, *more]).to_pylist():
                    data = self._file(
                        "data_path", chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
                    )
                    videos = {}
                    for camera in filmed:
                        chunk, file, start = (row[f"videos/{camera}/{name}"] for name in video)
                        place = self._file("video_path", video_key=camera, chunk_index=chunk, file_index=file)
                        end = row.get(ends[camera])
                        videos[camera] = (place, float(start), None if end is None else float(end))
                        if not math.isfinite(float(start)) or not (end is None or float(end) > float(start)):
                            raise ValueError(
                                f"episode {row['episode_index']} is listed from {start} s to {end} s of {place.name}"
                            )
                    places.append(self._place(row, data, videos))
            except DatasetError:
                raise
            except _MALFORMED as error:
                raise unreadable(path, error) from error
        return _with_ends(places)

    @cached_property
    def sentences(self) -> dict[int, str]:
        """Instruction by `task_index`; empty if the folder has no list of tasks."""
        path = self.root / (TASKS_PATH if self.version == "v3.0" else "meta/tasks.jsonl")
        if not path.is_file():
            return {}
        try:
            if self.version == "v3.0":
                table = read_table(path)
                names = [n for n in ("task", "__index_level_0__") if n in table.column_names]
                names += [n for n in table.column_names if "string" in str(table.schema.field(n).type)]
                pairs = zip(table["task_index"].to_pylist(), table[names[0]].to_pylist(), strict=True)
            else:
                rows = [
                    json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
                ]
                pairs = ((row["task_index"], row["task"]) for row in rows)  # type: ignore[assignment]
            found = {}
            for number, text in pairs:
                if isinstance(number, bool) or not isinstance(number, int) or not is_text(text):
                    raise TypeError(f"task {number!r}: {str(text)[:60]!r}; expected a number and a sentence")
                found[number] = text.strip()
            return found
        except DatasetError:
            raise
        except _MALFORMED as error:
            raise unreadable(path, error) from error

    def listed_instructions(self, place: Place) -> tuple[str, ...]:
        """Instructions of an episode according to its metadata; task numbers are replaced by their sentences.

        Raises:
            DatasetError: an entry is neither a sentence nor a known task number.
        """
        try:
            return instruction_list(place.tasks, self.sentences)
        except ValueError as error:
            raise DatasetError(
                f"{self.root}: episode {place.index}: {error}; correct `tasks` in meta/episodes"
            ) from error


def _with_ends(places: list[Place]) -> list[Place]:
    """Fill in missing end times: an episode ends where the next episode in the same video file starts."""
    starts: dict[Path, list[float]] = {}
    for place in places:
        for path, start, _ in place.videos.values():
            starts.setdefault(path, []).append(start)
    next_start = {path: dict(itertools.pairwise(sorted(set(times)))) for path, times in starts.items()}
    out = []
    for place in places:
        videos = {
            camera: (path, start, next_start[path].get(start) if end is None else end)
            for camera, (path, start, end) in place.videos.items()
        }
        out.append(dataclasses.replace(place, videos=videos))
    return out


def is_flat(path: Path) -> bool:
    """Whether a folder holds the files of a LeRobot dataset v2 side by side: `info.json`, `episodes.json`, episodes.

    `episodes.json` is a list of objects with `episode` (its number), `frames` and optionally `task` (a sentence).
    """
    return (path / "info.json").is_file() and (path / "episodes.json").is_file()


def is_foreign(path: Path) -> bool:
    """Whether a folder is a LeRobot dataset that worldgym did not write."""
    file = path / INFO_PATH
    if not file.is_file() and is_flat(path):
        file = path / "info.json"
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(info, dict) and "codebase_version" in info and "worldgym" not in info
