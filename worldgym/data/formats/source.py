"""The metadata of a LeRobot folder, v2.0 to v3.0: which episodes there are, and where their rows and frames lie.

Everything in `meta/` was written by somebody else, so every field is checked when it is read: paths never leave the
folder, and what can't be understood is an error that names the file.

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

from worldgym.data.formats.fields import instruction_list, is_text
from worldgym.data.lerobot import INFO_PATH, TASKS_PATH, read_table, unreadable
from worldgym.errors import DatasetError

VERSIONS = ("v2.0", "v2.1", "v3.0")
STATE_KEY, ACTION_KEY = "observation.state", "action"
LONGEST_NAME, LONGEST_PATH = 255, 4000  # bytes; file systems take no more
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
    """Where an episode lies.

    Args:
        index: its number.
        length: rows.
        tasks: what the listing says of its instruction, as recorded.
        data: the parquet file.
        videos: by camera, the file and the seconds at which the episode begins and ends in it (None: not said).
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
        cameras: features that hold pictures, the first one is the main camera; None where there is but one.
        state_keys: features of proprioception, joined; None for `observation.state`, if there is one.
        action_keys: features of actions, joined; None for `action`, an empty tuple for none at all.

    Raises:
        DatasetError: no such folder, another version, an unknown feature, several cameras and none chosen, a file
            missing or damaged.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        cameras: str | Sequence[str] | None = None,
        state_keys: Sequence[str] | None = None,
        action_keys: Sequence[str] | None = None,
    ) -> None:
        self.root = Path(path).expanduser()
        source = self.root / INFO_PATH
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
                f"{source} says codebase_version {self.version!r}, this reads {', '.join(VERSIONS)}; convert it with "
                "LeRobot's own scripts first"
            )
        if "worldgym" in self.info:
            raise DatasetError(
                f"{self.root} was written by worldgym already; open it with EpisodeDataset({str(self.root)!r})"
            )
        self.cameras_chosen = self._choose(cameras)
        self.state_keys = self._keys(
            state_keys, [STATE_KEY] if STATE_KEY in self.features else [], "--state-key"
        )
        self.action_keys = () if action_keys == () else self._keys(action_keys, [ACTION_KEY], "--action-key")

    # ---- features ------------------------------------------------------------------------------------------------

    @property
    def cameras(self) -> list[str]:
        """Features that hold pictures."""
        return [name for name, what in self.features.items() if what.get("dtype") in ("image", "video")]

    def filmed(self, camera: str) -> bool:
        """Whether a camera's frames are in videos, not in the rows."""
        return bool(self.features[camera]["dtype"] == "video")

    def _choose(self, cameras: str | Sequence[str] | None) -> tuple[str, ...]:
        chosen = (cameras,) if isinstance(cameras, str) else tuple(cameras or ())
        if not chosen and len(self.cameras) == 1:
            return (self.cameras[0],)
        unknown = [name for name in chosen if name not in self.cameras]
        if not self.cameras:
            raise DatasetError(f"{self.root} has no feature of pictures, only {sorted(self.features)}")
        if not chosen or unknown or len(set(chosen)) != len(chosen):
            raise DatasetError(
                f"{self.root}: got --camera {' '.join(chosen) or '(none)'}, expected one or several of {self.cameras}, "
                "each once; the first one is the main camera"
            )
        return chosen

    def _keys(self, given: Sequence[str] | None, default: list[str], option: str) -> tuple[str, ...]:
        keys = tuple(given or default)
        missing = [key for key in keys if key not in self.features or key in self.cameras]
        if missing or (not keys and option == "--action-key"):
            numeric = [
                name for name, what in self.features.items()
                if name not in self.cameras and "string" not in str(what.get("dtype"))
            ]  # fmt: skip
            raise DatasetError(
                f"{self.root / INFO_PATH} lists no feature {', '.join(map(repr, missing))} of numbers, only {numeric}; "
                f"choose with {option}, several are joined"
                + ("; --action-key none imports the video alone" if option == "--action-key" else "")
            )
        return keys

    # ---- files ---------------------------------------------------------------------------------------------------

    def inside(self, relative: str) -> Path:
        """A path in the folder.

        Raises:
            DatasetError: it leads out of the folder, by itself or through a link. Links into the `blobs` folder beside
                a Hugging Face snapshot are followed: that is how its cache stores files.
        """
        if len(os.fsencode(relative)) > LONGEST_PATH or any(
            len(os.fsencode(part)) > LONGEST_NAME for part in Path(relative).parts
        ):
            raise DatasetError(
                f"{self.root / INFO_PATH} names a file of {len(relative)} letters ({relative[:40]}...), longer than a "
                "path can be; correct it"
            )
        path = self.root / relative
        root = self.root.resolve()
        allowed = [root]
        if root.parent.name == "snapshots":
            allowed.append(root.parent.parent / "blobs")
        resolved = path.resolve()
        if (
            Path(relative).is_absolute()
            or ".." in Path(relative).parts
            or not any(resolved == place or place in resolved.parents for place in allowed)
        ):
            raise DatasetError(
                f"{self.root / INFO_PATH} names {relative!r}, which lies outside {self.root}; nothing outside the "
                "source folder is read: correct the path, or copy the file into the folder"
            )
        return path

    def _file(self, template: str, **names: Any) -> Path:
        source = self.root / INFO_PATH
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
            return self.inside(text.format(**names))
        except DatasetError:
            raise
        except _MALFORMED as error:
            raise unreadable(source, error) from error

    # ---- episodes ------------------------------------------------------------------------------------------------

    @cached_property
    def places(self) -> list[Place]:
        """All listed episodes, in the order of their numbers.

        Raises:
            DatasetError: a listing is missing or damaged, or lists a number twice.
        """
        places = sorted(
            self._places_v3() if self.version == "v3.0" else self._places_v2(), key=lambda place: place.index
        )
        numbers = [place.index for place in places]
        if len(set(numbers)) != len(numbers):
            twice = sorted({n for n in numbers if numbers.count(n) > 1})
            raise DatasetError(f"{self.root} lists episode {twice[0]} more than once; correct meta/episodes")
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
        path = self.root / "meta" / "episodes.jsonl"
        places = []
        try:
            per_chunk = int(self.info.get("chunks_size", 1000))
            rows = [
                json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
            ]
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
                                f"episode {row['episode_index']} lies from second {start} to {end} of {place.name}"
                            )
                    places.append(self._place(row, data, videos))
            except DatasetError:
                raise
            except _MALFORMED as error:
                raise unreadable(path, error) from error
        return _with_ends(places)

    @cached_property
    def sentences(self) -> dict[int, str]:
        """Instruction by `task_index`; empty where the folder has no list of tasks."""
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
                    raise TypeError(f"task {number!r}: {str(text)[:60]!r} is no numbered sentence")
                found[number] = text.strip()
            return found
        except DatasetError:
            raise
        except _MALFORMED as error:
            raise unreadable(path, error) from error

    def listed_instructions(self, place: Place) -> tuple[str, ...]:
        """What the episode's listing names, numbers looked up.

        Raises:
            DatasetError: neither sentences nor numbers of some.
        """
        try:
            return instruction_list(place.tasks, self.sentences)
        except ValueError as error:
            raise DatasetError(
                f"{self.root}: episode {place.index}: {error}; correct `tasks` in meta/episodes"
            ) from error


def _with_ends(places: list[Place]) -> list[Place]:
    """Where no end is said, an episode ends in its video where the next one in that file begins."""
    starts: dict[Path, list[float]] = {}
    for place in places:
        for path, start, _ in place.videos.values():
            starts.setdefault(path, []).append(start)
    after = {path: dict(itertools.pairwise(sorted(set(begins)))) for path, begins in starts.items()}
    out = []
    for place in places:
        videos = {
            camera: (path, start, after[path].get(start) if end is None else end)
            for camera, (path, start, end) in place.videos.items()
        }
        out.append(dataclasses.replace(place, videos=videos))
    return out


def is_foreign(path: Path) -> bool:
    """Whether a folder is a LeRobot dataset that this project did not write."""
    try:
        info = json.loads((path / INFO_PATH).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(info, dict) and "codebase_version" in info and "worldgym" not in info
