"""Reads datasets that others recorded in LeRobot's layout, v2.0, v2.1 or v3.0, as this project's episodes.

Why a reader of its own: such a folder says what was filmed and sent, but not what its actions mean, what is held out or
what succeeded, and our trainers want that said. So an import says it: actions are normalised by their own 1 % and 99 %
quantiles, all is `seen`, and an episode succeeded where `next.success` says so, nowhere else. Frames are cut to a
square and averaged down. A row holds what was seen and what was then sent; the outcome of an episode's last action was
not filmed, so T rows give T - 1 actions.

Example::

    folder = LeRobotFolder("data/pusht", camera="observation.image")
    folder.action_spec, folder.cameras, len(folder)
    import_lerobot("data/pusht", "data/mine", image_size=64)      # now any trainer takes data/mine
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from worldgym.data.episode import ActionSpec, Episode
from worldgym.data.lerobot import INFO_PATH, TASKS_PATH, read_table, unreadable
from worldgym.data.splits import SplitManifest
from worldgym.data.video import decode_mp4
from worldgym.data.writer import DatasetWriter
from worldgym.errors import DatasetError

VERSIONS = ("v2.0", "v2.1", "v3.0")
STATE_KEY, ACTION_KEY, SUCCESS_KEY = "observation.state", "action", "next.success"


def is_foreign(path: Path) -> bool:
    """Whether a folder is a LeRobot dataset that this project did not write."""
    try:
        info = json.loads((path / INFO_PATH).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(info, dict) and "codebase_version" in info and "worldgym" not in info


@dataclass(frozen=True)
class _Place:
    """Where an episode lies: its rows in a data file, its second in a video."""

    index: int
    length: int
    tasks: tuple[str, ...]
    data: Path
    video: Path | None
    start: float


class LeRobotFolder:
    """A folder in LeRobot's layout.

    Args:
        path: the folder with `meta/info.json`.
        camera: feature that holds the pictures; may be left out where there is but one.

    Raises:
        DatasetError: no such folder, another version, several cameras and none chosen, a file missing or damaged.
    """

    def __init__(self, path: str | os.PathLike[str], camera: str | None = None) -> None:
        self.root = Path(path)
        source = self.root / INFO_PATH
        try:
            self.info: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
            self.version, self.features = self.info["codebase_version"], self.info["features"]
            self.fps = float(self.info["fps"])
        except FileNotFoundError as error:
            raise DatasetError(
                f"no LeRobot dataset at {self.root}: {INFO_PATH} is missing; check the path"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
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
        for key in (STATE_KEY, ACTION_KEY):
            if key not in self.features:
                raise DatasetError(
                    f"{source} lists no feature {key!r}, only {sorted(self.features)}; a world model needs both what "
                    "was sent and where the robot was"
                )
        self.camera = self._choose(camera)

    @property
    def cameras(self) -> list[str]:
        """Features that hold pictures."""
        return [name for name, what in self.features.items() if what.get("dtype") in ("image", "video")]

    def _choose(self, camera: str | None) -> str:
        if camera is None and len(self.cameras) == 1:
            return self.cameras[0]
        if camera not in self.cameras:
            raise DatasetError(
                f"{self.root}: got camera {camera!r}, expected one of {self.cameras}; choose with camera=..."
            )
        return camera

    @cached_property
    def _places(self) -> list[_Place]:
        return self._places_v3() if self.version == "v3.0" else self._places_v2()

    def _file(self, template: str, **names: Any) -> Path:
        try:
            return self.root / self.info[template].format(**names)
        except (KeyError, IndexError, AttributeError, ValueError) as error:
            raise unreadable(self.root / INFO_PATH, error) from error

    @property
    def _filmed(self) -> bool:
        return self.features[self.camera]["dtype"] == "video"

    def _places_v2(self) -> list[_Place]:
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
                    "video_key": self.camera,
                }
                video = self._file("video_path", **names) if self._filmed else None
                places.append(
                    _Place(
                        int(row["episode_index"]), int(row["length"]), tuple(row.get("tasks") or ()),
                        self._file("data_path", **names), video, 0.0,
                    )
                )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise unreadable(path, error) from error
        return places

    def _places_v3(self) -> list[_Place]:
        places = []
        for path in sorted((self.root / "meta" / "episodes").rglob("*.parquet")):
            names = ["episode_index", "length", "tasks", "data/chunk_index", "data/file_index"]
            film = [
                f"videos/{self.camera}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")
            ]
            try:
                table = read_table(path, [*names, *(film if self._filmed else [])])
                rows = table.to_pylist()
                for row in rows:
                    data = self._file(
                        "data_path", chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
                    )
                    video, start = None, 0.0
                    if self._filmed:
                        chunk, file, start = (row[name] for name in film)
                        video = self._file(
                            "video_path", video_key=self.camera, chunk_index=chunk, file_index=file
                        )
                    tasks = tuple(row["tasks"] or ())
                    places.append(
                        _Place(
                            int(row["episode_index"]), int(row["length"]), tasks, data, video, float(start)
                        )
                    )
            except (KeyError, TypeError, ValueError) as error:
                raise unreadable(path, error) from error
        return sorted(places, key=lambda place: place.index)

    @cached_property
    def _sentences(self) -> dict[int, str]:
        """Instruction by `task_index`, for episodes that do not name theirs."""
        path = self.root / (TASKS_PATH if self.version == "v3.0" else "meta/tasks.jsonl")
        if not path.is_file():
            return {}
        try:
            if self.version == "v3.0":
                table = read_table(path)
                name = "task" if "task" in table.column_names else "__index_level_0__"
                return dict(zip(table["task_index"].to_pylist(), table[name].to_pylist(), strict=True))
            rows = [
                json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
            ]
            return {int(row["task_index"]): str(row["task"]) for row in rows}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise unreadable(path, error) from error

    def __len__(self) -> int:
        return len(self._places)

    def _rows(self, place: _Place, columns: list[str]) -> pa.Table:
        if not place.data.is_file():
            raise DatasetError(f"{place.data} is missing although the dataset lists it; download it again")
        try:
            known = pq.read_schema(place.data).names
            table = pq.read_table(
                place.data,
                columns=[name for name in (*columns, "task_index") if name in known],
                filters=[("episode_index", "=", place.index)],
                use_threads=False,
            )
            missing = [name for name in columns if name not in known and name != SUCCESS_KEY]
        except (OSError, ValueError, pa.ArrowException) as error:
            raise unreadable(place.data, error) from error
        if missing or table.num_rows != place.length or place.length < 2:
            raise DatasetError(
                f"{place.data}: episode {place.index} has {table.num_rows} rows, {place.length} are listed, at least 2 "
                f"are needed; columns missing: {missing or 'none'}; download it again"
            )
        return table

    def _vectors(self, table: pa.Table, name: str, place: _Place) -> np.ndarray:
        try:
            values = np.array(table[name].to_pylist(), np.float32)
        except ValueError as error:
            raise unreadable(place.data, error) from error
        values = values.reshape(len(values), -1)
        if not np.isfinite(values).all():
            raise DatasetError(
                f"{place.data}: {name} of episode {place.index} holds NaN or infinity; leave that episode out"
            )
        return values

    @cached_property
    def action_spec(self) -> ActionSpec:
        """Names as recorded, bounds from the 1 % and 99 % quantiles of all actions, the file's rate."""
        actions = np.concatenate(
            [self._vectors(self._rows(place, [ACTION_KEY]), ACTION_KEY, place) for place in self._places]
        )
        low, high = np.quantile(actions, (0.01, 0.99), axis=0)
        still = high - low < 1e-6  # never moved: any bounds do, as long as they differ
        names = self.features[ACTION_KEY].get("names")
        if isinstance(names, dict):  # {"motors": [...]}
            names = [name for group in names.values() for name in group]
        if not names or len(names) != actions.shape[1] or len(set(names)) != len(names):
            names = [f"action_{i}" for i in range(actions.shape[1])]
        return ActionSpec(
            names=tuple(map(str, names)),
            units=("as recorded",) * actions.shape[1],
            hz=self.fps,
            low=tuple(np.where(still, low - 1, low)),
            high=tuple(np.where(still, high + 1, high)),
            bounds="q01/q99",
        )

    def episodes(self, image_size: int = 64, limit: int | None = None) -> Iterator[Episode]:
        """One after the other, in their order.

        Args:
            image_size: pixels of the frames; they are cut to the square in their middle and averaged down.
            limit: at most so many; None for all.

        Raises:
            DatasetError: a file is missing or damaged, or says other than the episode's listing.
        """
        spec = (
            self.action_spec
        )  # reads all rows once: what is damaged is found before the first frame is decoded
        for place in self._places[:limit]:
            columns = [STATE_KEY, ACTION_KEY, SUCCESS_KEY] + ([] if self._filmed else [self.camera])
            table = self._rows(place, columns)
            actions = self._vectors(table, ACTION_KEY, place)
            success = np.zeros(place.length, bool)
            if SUCCESS_KEY in table.column_names:  # what followed the action of that row
                said = np.array(table[SUCCESS_KEY].to_pylist(), bool).reshape(-1)
                success[1:] = said[:-1]
            yield Episode(
                frames=self._frames(place, table, image_size),
                actions=spec.normalise(actions[:-1]),
                state=self._vectors(table, STATE_KEY, place),
                instruction=self._instruction(place, table),
                success=success,
                progress=success.astype(np.float32),
                domain="real",
                split="seen",
                task="imported",
                provenance={"behaviour": "imported", "source": self.root.name, "episode": place.index},
            )

    def _instruction(self, place: _Place, table: pa.Table) -> str:
        if place.tasks and place.tasks[0].strip():
            return place.tasks[0]
        index = table["task_index"][0].as_py() if "task_index" in table.column_names else -1
        return self._sentences.get(int(index), "").strip() or "no instruction recorded"

    def _frames(self, place: _Place, table: pa.Table, size: int) -> np.ndarray:
        if place.video is not None:
            if not place.video.is_file():
                raise DatasetError(
                    f"{place.video} is missing although the dataset lists it; download it again"
                )
            return decode_mp4(place.video, place.start, place.length, size, self.fps, square=True)
        try:
            return np.stack([_square(item["bytes"], size) for item in table[self.camera].to_pylist()])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise unreadable(place.data, error) from error


def _square(data: bytes, size: int) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        box = (left, top, left + side, top + side)
        return np.asarray(picture.convert("RGB").resize((size, size), Image.Resampling.BOX, box=box))


def import_lerobot(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    image_size: int = 64,
    *,
    camera: str | None = None,
    limit: int | None = None,
) -> int:
    """Write the episodes of a LeRobot folder as a dataset of this project; returns how many.

    Args:
        source: the folder to read; it is not changed.
        out: a new folder.
        image_size: pixels of the frames, stored as PNG.
        camera: as in `LeRobotFolder`.
        limit: at most so many episodes.

    Raises:
        DatasetError: see `LeRobotFolder`; also where `out` holds something already.
    """
    folder = LeRobotFolder(source, camera)
    state_dim = int(np.prod(folder.features[STATE_KEY]["shape"]))
    manifest = SplitManifest(name=folder.root.name, rules={})
    robot = str(folder.info.get("robot_type") or "unknown")
    with DatasetWriter(out, folder.action_spec, image_size, state_dim, manifest, robot_type=robot) as writer:
        if len(writer):
            raise DatasetError(f"{out} already holds {len(writer)} episodes; give a new folder")
        for episode in folder.episodes(image_size, limit):
            writer.append(episode)
        return len(writer)
