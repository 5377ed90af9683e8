"""`RowFolder`: recordings whose episodes are rows of named features, such as `action` or `obs/agentview_image`.

A format lists its cameras, features and episodes, and reads columns; if the rows hold the pictures, too, it derives
from `PicturedRows` and reads those. Choice and concatenation of features, instructions and success labels are here.

Example::

    class MyLogs(PicturedRows):
        def columns(self, place, keys): ...            # {"action": (N, 7), ...}
        def pictures(self, place, camera, rows): ...   # yields (H, W, 3) uint8, or the bytes of an image file
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldgym.data.formats.choices import choose_cameras, choose_keys
from worldgym.data.formats.fields import flags, is_text, numbers
from worldgym.data.formats.frames import picture, resized
from worldgym.data.formats.recorded import RecordedFolder
from worldgym.data.formats.recording import (
    NO_INSTRUCTION,
    REWARD_KEY,
    SUCCESS_KEY,
    Part,
    Recording,
    divided,
    joined,
    joined_names,
)
from worldgym.data.formats.settings import ImportSettings
from worldgym.errors import DatasetError

MAX_VALUES = 2**28  # per feature of an episode; more is a damaged file
BLOCK = 64 * 2**20  # bytes of pictures that are read at once


@dataclass(frozen=True)
class Feature:
    """A numeric feature: the number of values in a row, and their names if they were recorded."""

    size: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class RowPlace:
    """A recorded episode: its number, file, name in the file, and number of rows (-1 if the file does not list it)."""

    index: int
    data: Path
    name: str = ""
    length: int = -1


class RowFolder(RecordedFolder):
    """Recordings whose episodes are rows of named features.

    Args:
        root: the folder or file.
        settings: import settings.
        cameras: names of all cameras.
        features: all numeric features by name.
        default_state: names of the features of proprioception, unless others are chosen.
        default_action: names of the features of actions, unless others are chosen.

    Raises:
        DatasetError: a camera or feature is unknown, or there are several cameras and none was chosen.
    """

    def __init__(
        self,
        root: Path,
        settings: ImportSettings,
        cameras: Sequence[str],
        features: Mapping[str, Feature],
        default_state: Sequence[str],
        default_action: Sequence[str],
    ) -> None:
        self.features, self.cameras = dict(features), list(cameras)
        chosen = choose_cameras(self.cameras, full_names(settings.cameras, cameras), root, features)
        state = full_names(settings.state_keys, features)
        self.state_keys = choose_keys(list(features), state, default_state, "--state-key", root)
        self.action_keys: tuple[str, ...] = ()
        if not settings.without_actions:
            actions = full_names(settings.action_keys, features)
            self.action_keys = choose_keys(list(features), actions, default_action, "--action-key", root)
        super().__init__(root, chosen, settings)

    # ---- what a format reads -------------------------------------------------------------------------------------

    @abstractmethod
    def columns(self, place: Any, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Rows of the numeric features `keys` of an episode, each `(N, ...)`."""

    def length(self, place: Any) -> int:
        """Number of rows of an episode."""
        return int(place.length)

    def sentences(self, place: Any) -> Sequence[str]:
        """Instructions of an episode: one for each row, one for all rows, or none."""
        return ()

    # ---- episodes ------------------------------------------------------------------------------------------------

    def read(self, place: Any, pictures: bool = False) -> Recording:
        """Read the rows of an episode, without its pictures."""
        label = self._label()
        keys = list(dict.fromkeys([*self.action_keys, *self.state_keys, *([label] if label else [])]))
        length = self.length(place)
        if length < 2:
            raise DatasetError(
                f"{place.data}: episode {place.index} has {length} rows; at least 2 are needed: an observation, and "
                "the result of its action"
            )
        columns = self.columns(place, keys)
        for key, values in columns.items():
            if len(values) != length:
                raise DatasetError(
                    f"{place.data}: episode {place.index} has {length} rows, but {key} has {len(values)}; expected one "
                    "for each row: the file is damaged, record or download it again"
                )
        sized = RowPlace(place.index, place.data, length=length)
        actions = joined({key: columns[key] for key in self.action_keys}, sized)
        state = joined({key: columns[key] for key in self.state_keys}, sized)
        done = np.zeros(length, bool) if self.settings.success == "all" else None
        if label:
            done = self._done(place, label, columns[label])
        parts, times = self._parts(place, length), np.arange(length) / self.recorded_hz
        return Recording(
            place.index, actions, state, times, done, parts, None, self.settings.success == "all"
        )

    def _label(self) -> str | None:
        """Name of the feature with the success labels; None without labels."""
        wanted = self.settings.success
        if wanted in ("all", "none") or wanted == "auto" and self.success_from != SUCCESS_KEY:
            return None
        key = SUCCESS_KEY if wanted == "auto" else wanted
        if key not in self.labels:
            raise DatasetError(
                f"{self.root} has no column for --success {key}; its features are {', '.join(self.features)}. Type "
                "--success all if all demonstrations succeeded, or --success none"
            )
        return self.labels[key]

    def _done(self, place: Any, label: str, values: np.ndarray) -> np.ndarray:
        rows = values.reshape(len(values), -1)
        try:
            if rows.shape[1] != 1:
                raise ValueError(f"{rows.shape[1]} values in a row, expected one")
            if label == self.labels.get(REWARD_KEY) and self.settings.success == REWARD_KEY:
                return np.asarray(numbers(list(rows[:, 0])) >= self.settings.reward)
            return flags(list(rows[:, 0]))
        except ValueError as error:
            raise DatasetError(f"{place.data}: {label} of episode {place.index}: {error}") from error

    def _parts(self, place: Any, length: int) -> tuple[Part, ...]:
        texts = [text.strip() for text in self.sentences(place)]
        if bad := [text for text in texts if not is_text(text)]:
            raise DatasetError(
                f"{place.data}: the instruction {bad[0][:60]!r} of episode {place.index} holds an unpaired surrogate"
            )
        if len(texts) not in (0, 1, length):
            raise DatasetError(
                f"{place.data}: episode {place.index} has {length} rows and {len(texts)} instructions; expected one "
                "for each row"
            )
        if len(set(texts)) < 2:
            return (Part(0, length - 1, (texts[0] if texts else "") or NO_INSTRUCTION),)
        number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        numbered = np.array([number[text] for text in texts], np.int64)
        return divided(numbered, {i: text for text, i in number.items()})

    # ---- names ---------------------------------------------------------------------------------------------------

    def short(self, key: str) -> str:
        """Camera name in the dataset: the last part of the recorded name."""
        return super().short(last_part(key).replace(".", "_"))

    def action_names(self, dim: int) -> tuple[str, ...]:
        """Names of the action dimensions."""
        return self._names(self.action_keys, dim, "action")

    def state_names(self, dim: int) -> tuple[str, ...]:
        """Names of the state dimensions."""
        return self._names(self.state_keys, dim, "state")

    def _names(self, keys: Sequence[str], dim: int, prefix: str) -> tuple[str, ...]:
        found = {}
        for key in keys:
            size, names = self.features[key].size, self.features[key].names
            short = last_part(key)
            made = (short,) if size == 1 else tuple(f"{short}_{i}" for i in range(size))
            found[key] = names if len(set(names)) == len(names) == size else made
        return joined_names(found, dim, prefix)


class PicturedRows(RowFolder):
    """Rows that hold their pictures, so that a format reads them instead of videos."""

    @abstractmethod
    def pictures(self, place: Any, camera: str, rows: np.ndarray) -> Iterator[np.ndarray | bytes]:
        """The pictures of the given rows, increasing: `(H, W, 3)` uint8 RGB, or the bytes of an image file."""

    def frames(
        self, place: Any, recording: Recording, camera: str, rows: np.ndarray, size: tuple[int, int]
    ) -> tuple[np.ndarray, str]:
        """Frames of the given rows, resized to `size`."""
        out, s = [], self.settings
        try:
            for data in self.pictures(place, camera, rows):
                shown = picture(data, size, s.resize) if isinstance(data, bytes) else _resized(data, size, s)
                out.append(shown)
        except ValueError as error:
            if isinstance(error, DatasetError):
                raise
            where = f"{place.data}: {camera} of episode {place.index}, row {int(rows[len(out)])}"
            raise DatasetError(f"{where}: {error}") from error
        if len(out) != len(rows):
            raise DatasetError(
                f"{place.data}: {camera} of episode {place.index} has {len(out)} pictures for {len(rows)} rows"
            )
        return np.stack(out), "stored"


def last_part(key: str) -> str:
    """The last part of a name such as `observation/image_0`."""
    return key.rpartition("/")[2]


def full_names(given: Sequence[str], known: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Names of `known` that are given in full, or by a last part that no other has; others are returned as given."""
    out = []
    for name in given:
        ends = [key for key in known if last_part(key) == name]
        out.append(ends[0] if name not in known and len(ends) == 1 else name)
    return out


def _resized(pixels: np.ndarray, size: tuple[int, int], settings: ImportSettings) -> np.ndarray:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise ValueError(f"a picture of shape {pixels.shape} {pixels.dtype}, expected (H, W, 3) uint8")
    return resized(pixels, size, settings.resize)


def blocks(rows: np.ndarray, row_bytes: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Divide increasing row numbers into ranges `first` to `end` of at most `BLOCK` bytes, with the rows in each."""
    step = max(1, BLOCK // max(1, row_bytes))
    start = 0
    while start < len(rows):
        end = int(np.searchsorted(rows, rows[start] + step))
        yield int(rows[start]), int(rows[end - 1]) + 1, rows[start:end] - rows[start]
        start = end


def check_size(shape: Sequence[int], where: str) -> None:
    """Check that a feature of an episode fits into memory.

    Raises:
        DatasetError: it has more than `MAX_VALUES` values.
    """
    count = 1
    for side in shape:
        count *= int(side)
    if count > MAX_VALUES:
        raise DatasetError(
            f"{where} has the shape {tuple(shape)}, too large for an episode: the file is damaged"
        )
