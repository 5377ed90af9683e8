"""Reads MCAP recordings (ROS 2, JSON and protobuf topics) with a mapping file; each file is an episode.

Topics have clocks of their own, so rows are made: a regular grid with the rate of the mapping, from the time at which
every topic has a message to the end of the pictures. A row has the nearest picture of each camera and the last message
before it, or at its time, of each state and action topic. A distance above `max_gap` is an error of that episode.

Example::

    folder = McapFolder("recordings", ImportSettings(cameras=("front",)))      # with recordings/mapping.yaml
    folder.cameras, list(folder.features)
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldgym.data.formats.choices import files_in
from worldgym.data.formats.importing import import_recorded
from worldgym.data.formats.mcap_mapping import Column, find_mapping, read_mapping
from worldgym.data.formats.mcap_messages import field_at, messages, numbers_at, picture_of, topics_of
from worldgym.data.formats.recording import REWARD_KEY, SUCCESS_KEY
from worldgym.data.formats.rows import Feature, PicturedRows, RowPlace
from worldgym.data.formats.settings import ImportSettings
from worldgym.errors import DatasetError

SECOND = 1e9
MAX_ROWS = 10_000_000


@dataclass
class Timeline:
    """The rows of an episode.

    Args:
        columns: numbers by name, each `(N, D)` float64.
        pictures: by camera, the number of the message in its topic for each row, `(N,)`.
        sentences: the instruction of each row, or one, or none.
        gaps: by name, the largest distance of a row from its message, in seconds.
        repeated: by camera, the number of rows with the same picture as the row before.
    """

    columns: dict[str, np.ndarray]
    pictures: dict[str, np.ndarray]
    sentences: list[str]
    gaps: dict[str, float]
    repeated: dict[str, int]

    @property
    def length(self) -> int:
        """Number of rows."""
        return len(next(iter(self.pictures.values())))


class McapFormat:
    """MCAP recordings; see `worldgym.data.formats.mcap_logs`."""

    @staticmethod
    def detects(source: Path) -> bool:
        """Whether `source` is a `.mcap` file, or a folder of them."""
        return source.suffix.lower() == ".mcap" if source.is_file() else any(source.glob("*.mcap"))

    @staticmethod
    def convert(source: Path, out: Path, settings: ImportSettings, command: str) -> dict[str, Any]:
        """Write the dataset and return the report of `import_recorded`."""
        return import_recorded(McapFolder(source, settings), out, command=command)


class McapFolder(PicturedRows):
    """MCAP recordings, read as episodes.

    Args:
        path: the file, or a folder of files.
        settings: import settings; `mapping` names the mapping file.

    Raises:
        DatasetError: a file is missing, or see `RowFolder`.
        ConfigError: the mapping file is missing or not as expected.
    """

    layout, rate_place, takes_mapping = "MCAP", "the mapping file", True

    def __init__(self, path: str | os.PathLike[str], settings: ImportSettings | None = None) -> None:
        root, s = Path(path).expanduser(), settings or ImportSettings()
        files = files_in(root, (".mcap",), "MCAP recording, or a folder of them")
        self._places = [RowPlace(number, file, file.stem) for number, file in enumerate(files)]
        self.mapping = m = read_mapping(find_mapping(root, s.mapping))
        labels = {SUCCESS_KEY: m.success, REWARD_KEY: m.reward}
        named = {"success": m.success, "reward": m.reward}
        self._named = {
            **{f"state/{n}": c for n, c in m.state.items()},
            **{f"actions/{n}": c for n, c in m.actions.items()},
        }
        self._named |= {name: column for name, column in named.items() if column is not None}
        self.labels = {key: key.rpartition(".")[2] for key, column in labels.items() if column is not None}
        self.robot, self.convention = m.robot, m.convention
        # The number of values is known when the first episode was read.
        features = {name: Feature(0, column.names or column.joints) for name, column in self._named.items()}
        super().__init__(
            root, s, list(m.cameras), features, [name for name in self._named if name.startswith("state/")],
            [name for name in self._named if name.startswith("actions/")],
        )  # fmt: skip
        label = self._label()
        self._keys = [*dict.fromkeys([*self.action_keys, *self.state_keys, *([label] if label else [])])]
        self._timelines: dict[int, Timeline] = {}

    @property
    def places(self) -> list[RowPlace]:
        """The recordings, in the order of their names."""
        return self._places

    @property
    def recorded_rate(self) -> float:
        """`rate` of the mapping file."""
        return self.mapping.rate

    def facts(self) -> list[Any]:
        """The mapping file."""
        return [self.mapping.text]

    def origin(self, place: RowPlace) -> dict[str, Any]:
        """The file of the recording."""
        return {"file": place.data.name}

    def notes(self, without: Collection[int]) -> list[str]:
        """The largest gaps of each topic, and pictures that were used for several rows."""
        seen = {n: t for n, t in self._timelines.items() if n not in without}
        out = []
        for name in [*self.chosen, *self._keys] if seen else []:
            worst = max(seen, key=lambda n: seen[n].gaps[name])
            out.append(
                f"{name}: rows lie at most {seen[worst].gaps[name]:.3g} s from their message, in episode {worst}"
            )
        for camera in self.chosen:
            rows = sum(t.repeated[camera] for t in seen.values())
            if rows:
                out.append(
                    f"{camera}: {rows} rows have the same picture as the row before; the camera is slower"
                )
        return out

    # ---- rows ----------------------------------------------------------------------------------------------------

    def length(self, place: RowPlace) -> int:
        """Number of rows of the grid."""
        return self._timeline(place).length

    def columns(self, place: RowPlace, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Rows of numeric features, each `(N, D)`."""
        return {key: self._timeline(place).columns[key] for key in keys}

    def sentences(self, place: RowPlace) -> list[str]:
        """The instruction of each row, or of the episode."""
        return self._timeline(place).sentences

    def pictures(self, place: RowPlace, camera: str, rows: np.ndarray) -> Iterator[np.ndarray | bytes]:
        """The pictures of the given rows."""
        wanted = self._timeline(place).pictures[camera][rows].tolist()
        left, kept, row = Counter(wanted), {}, 0  # pictures are kept only until their last row
        topic = self.mapping.cameras[camera].topic
        for message in messages(place.data, [topic], "log"):
            if message.number in left:
                kept[message.number] = picture_of(message.decode())
            while row < len(wanted) and wanted[row] in kept:
                number, row = wanted[row], row + 1
                yield kept[number]
                left[number] -= 1
                if not left[number]:
                    del left[number], kept[number]
            if row == len(wanted):
                return
        raise ValueError(f"message {wanted[row]} of {topic} is missing")

    def _timeline(self, place: RowPlace) -> Timeline:
        if place.index not in self._timelines:
            self._timelines[place.index] = self._made(place)
        return self._timelines[place.index]

    def _made(self, place: RowPlace) -> Timeline:
        """Read all times and numbers of a recording, and make its rows."""
        m = self.mapping
        columns = {**{c: m.cameras[c] for c in self.chosen}, **{key: self._named[key] for key in self._keys}}
        spoken = m.instruction if isinstance(m.instruction, Column) else None
        topics = sorted({c.topic for c in columns.values()} | ({spoken.topic} if spoken else set()))
        self._check_topics(place.data, topics)
        times: dict[str, list[int]] = {topic: [] for topic in topics}
        values: dict[str, list[np.ndarray]] = {key: [] for key in self._keys}
        texts: list[str] = []
        for message in messages(place.data, topics, m.clock):
            times[message.topic].append(message.time)
            decoded = None
            for key in self._keys:
                column = self._named[key]
                if column.topic == message.topic:
                    decoded = message.decode() if decoded is None else decoded
                    values[key].append(self._numbers(place, key, column, decoded))
            if spoken is not None and spoken.topic == message.topic:
                try:
                    texts.append(str(field_at(message.decode(), spoken.field)))
                except ValueError as error:
                    raise DatasetError(
                        f"{place.data}: instruction: {error}; correct the mapping file"
                    ) from error
        empty = [topic for topic in topics if not times[topic] and (spoken is None or topic != spoken.topic)]
        if empty:
            raise DatasetError(f"{place.data}: {empty[0]} has no messages; record it again")
        zero = min(min(found) for found in times.values() if found)
        clocks = {topic: (np.array(found, np.int64) - zero) / SECOND for topic, found in times.items()}
        return self._on_grid(place, columns, clocks, values, texts)

    def _check_topics(self, path: Path, topics: Sequence[str]) -> None:
        known = topics_of(path)
        absent = [topic for topic in topics if topic not in known]
        if known and absent:
            listed = ", ".join(f"{topic} ({kind})" for topic, kind in sorted(known.items()))
            raise DatasetError(f"{path} has no topic {absent[0]}, only {listed}; correct the mapping file")

    def _numbers(self, place: RowPlace, key: str, column: Column, message: Any) -> np.ndarray:
        try:
            found = numbers_at(message, column.field, column.joints)
            names = column.names or column.joints
            size = len(names) or self.features[key].size or len(found)
            if len(found) != size or not size:
                raise ValueError(f"{len(found)} values, expected {size or 'at least one'}")
        except ValueError as error:
            raise DatasetError(
                f"{place.data}: {key}: {column.topic} has {error}; correct the mapping file, or record it again"
            ) from error
        if self.features[key].size == 0:
            self.features[key] = Feature(size, names)
        return found

    def _on_grid(
        self,
        place: RowPlace,
        columns: dict[str, Column],
        clocks: dict[str, np.ndarray],
        values: dict[str, list[np.ndarray]],
        texts: list[str],
    ) -> Timeline:
        m, spoken = self.mapping, self.mapping.instruction
        labels = set(self.labels.values())  # success may be sent once, at the end: false before
        start = max(float(clocks[c.topic].min()) for name, c in columns.items() if name not in labels)
        ends = [float(clocks[m.cameras[c].topic].max()) for c in self.chosen]
        ends += [float(clocks[self._named[key].topic].max()) + self._named[key].max_gap for key in self._keys]
        count = max(0, math.floor((min(ends) - start) * m.rate + 1e-6) + 1)
        if not 2 <= count < MAX_ROWS:
            raise DatasetError(
                f"{place.data}: {max(0.0, min(ends) - start):.3g} s have messages of all topics, which makes {count} "
                f"rows at {m.rate:g} per second; at least 2 are needed: check the clock and the rate in the mapping "
                "file"
            )
        grid = start + np.arange(count) / m.rate
        out = Timeline({}, {}, [], {}, {})
        for name, column in columns.items():
            order = np.argsort(clocks[column.topic], kind="stable")
            times = clocks[column.topic][order]
            asked = grid + 1.0 / m.rate if name in labels else grid  # the result of the row's action
            before = np.searchsorted(times, asked + 1e-9, side="right") - 1
            if name in self.chosen:
                after = np.minimum(before + 1, len(times) - 1)
                before = before.clip(0)
                before = np.where(asked - times[before] <= np.abs(times[after] - asked), before, after)
            picked = before.clip(0)
            away = np.where(before < 0, 0.0, np.abs(times[picked] - asked))
            if away.max() > column.max_gap + 1e-9:
                row = int(np.argmax(away > column.max_gap + 1e-9))
                raise DatasetError(
                    f"{place.data}: a gap: {column.topic} ({name}) has no message within {column.max_gap:.3g} s of row "
                    f"{row}, at {grid[row]:.3f} s; the nearest one is {away[row]:.3g} s away. Divide the recording, or "
                    "raise max_gap of that entry in the mapping file (.inf for values that are only sent when they "
                    "change)"
                )
            out.gaps[name] = float(away.max())
            if name in self.chosen:
                out.pictures[name] = order[picked]
                out.repeated[name] = int((np.diff(picked) == 0).sum())
            else:
                found = np.stack([values[name][i] for i in order[picked]])
                out.columns[name] = np.where(before[:, None] < 0, np.nan, found)
        own = m.instructions.get(place.name)
        if own is not None or not isinstance(spoken, Column):
            out.sentences = [text for text in (own or spoken,) if isinstance(text, str)]
        elif texts:
            order = np.argsort(clocks[spoken.topic], kind="stable")
            said = np.searchsorted(clocks[spoken.topic][order], grid + 1e-9, side="right") - 1
            out.sentences = [texts[order[i]] if i >= 0 else "" for i in said]
        return out
