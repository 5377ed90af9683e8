"""Reads the rows of one episode of a LeRobot folder, without videos: actions, states, times, instructions, success.

An episode with several instructions is divided into parts, one per instruction. Each part includes the frame after its
last action.

Example::

    recording = read_recording(source, source.places[0])
    recording.actions.shape, recording.parts     # (N, A), [Part(first=0, last=41, instruction="open the lid")]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from worldgym.data.formats.fields import flags, flat_names, numbers
from worldgym.data.formats.source import LeRobotSource, Place
from worldgym.data.lerobot import unreadable
from worldgym.errors import DatasetError

Success = Literal["auto", "next.success", "next.reward", "all", "none"]
SUCCESS_KEY, REWARD_KEY = "next.success", "next.reward"
NO_INSTRUCTION = "no instruction recorded"


@dataclass(frozen=True)
class Part:
    """Rows `first` to `last`, both included, with one instruction for the `last - first` actions between them.

    If `closed`, row `last` has the same instruction; the frame after its action was not recorded. Otherwise row `last`
    is the first row of the next part.
    """

    first: int
    last: int
    instruction: str
    closed: bool = True


@dataclass(frozen=True)
class Recording:
    """The rows of an episode.

    Args:
        index: number of the episode.
        actions: `(N, A)` float32, as recorded.
        state: `(N, S)` float32, as recorded; S is 0 without proprioception.
        times: `(N,)` float64, seconds from the start of the episode.
        success: `(N,)` bool, success after the action of the row; None if not labelled.
        demonstrated: every part counts as successful at its last frame.
        parts: parts by instruction; at least one.
        table: images stored in the rows, by camera, or None.
    """

    index: int
    actions: np.ndarray
    state: np.ndarray
    times: np.ndarray
    success: np.ndarray | None
    parts: tuple[Part, ...]
    table: pa.Table | None
    demonstrated: bool = False

    @property
    def lost(self) -> int:
        """Number of rows with an action in no part, except the last row of a part: instructions of a single row."""
        closed = sum(part.closed for part in self.parts)
        return len(self.actions) - sum(part.last - part.first for part in self.parts) - closed


def read_recording(
    source: LeRobotSource,
    place: Place,
    success: Success = "auto",
    pictures: bool = False,
    reward: float = 1.0,
) -> Recording:
    """Read one episode.

    Args:
        source: the folder.
        place: files and positions of the episode.
        success: source of the success labels; `auto` uses the column `next.success` if it exists, else none.
        pictures: also read images stored in the rows.
        reward: minimum `next.reward` that counts as success.

    Raises:
        DatasetError: a file is missing or damaged, the number of rows differs from the metadata, a value is not finite,
            or it is unclear which instruction applies to which row.
    """
    known = _columns(place)
    keys = [*source.action_keys, *source.state_keys]
    label = _label(success, known, place)
    images = [c for c in source.cameras_chosen if not source.filmed(c)]
    wanted = [*keys, *([label] if label else []), *(images if pictures else [])]
    wanted += [name for name in ("timestamp", "task_index") if name in known]
    missing = [name for name in wanted if name not in known]
    table = _rows(place, list(dict.fromkeys(name for name in wanted if name in known)))
    if missing or table.num_rows != place.length or place.length < 2:
        raise DatasetError(
            f"{place.data}: episode {place.index} has {table.num_rows} rows, {place.length} are listed, and at least 2 "
            f"are needed; columns missing: {', '.join(missing) or 'none'}; download it again"
        )
    actions = joined(_lists(table, source.action_keys), place)
    state = joined(_lists(table, source.state_keys), place)
    times = np.arange(place.length) / source.fps
    if "timestamp" in known:
        times = _column(table, "timestamp", place, numbers)
        if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
            raise DatasetError(
                f"{place.data}: the timestamps of episode {place.index} are not increasing; correct the column"
            )
    done = np.zeros(place.length, bool) if success == "all" else None
    if label == SUCCESS_KEY:
        done = _column(table, label, place, flags)
    elif label == REWARD_KEY:
        done = _column(table, label, place, numbers) >= reward
    parts = _parts(source, place, table)
    shown = table if pictures and images else None
    return Recording(place.index, actions, state, times, done, parts, shown, success == "all")


def part_success(recording: Recording, part: Part) -> np.ndarray | None:
    """Success at each frame of a part, `(last - first + 1,)` bool; None if not labelled.

    `next.success` of a row is the result of its action, so it belongs to the next frame. The frame after the action of
    the last row was not recorded; its success is assigned to the last frame, so that it is not lost.
    """
    if recording.success is None:
        return None
    out = np.zeros(part.last - part.first + 1, bool)
    out[1:] = recording.success[part.first : part.last]
    if part.closed:
        out[-1] |= recording.success[part.last]
    out[-1] |= recording.demonstrated
    return out


def action_names(source: LeRobotSource, dim: int) -> tuple[str, ...]:
    """Names of the action dimensions: the recorded ones if their number matches, else `action_0`, `action_1`, ..."""
    return _names(source, source.action_keys, dim, "action")


def state_names(source: LeRobotSource, dim: int) -> tuple[str, ...]:
    """Names of the state dimensions: the recorded ones if their number matches, else `state_0`, `state_1`, ..."""
    return _names(source, source.state_keys, dim, "state")


def _names(source: LeRobotSource, keys: tuple[str, ...], dim: int, prefix: str) -> tuple[str, ...]:
    sizes = {key: dim if len(keys) == 1 else _size(source.features[key]) for key in keys}
    found = {key: flat_names(source.features[key].get("names"), sizes[key], key) for key in keys}
    return joined_names(found, dim, prefix)


def joined_names(found: Mapping[str, tuple[str, ...]], dim: int, prefix: str) -> tuple[str, ...]:
    """Names of the dimensions of concatenated features, from the names of each; repeated names get their feature's.

    If the result is not `dim` different names, the names are `prefix_0`, `prefix_1`, ...
    """
    names: list[str] = []
    for key, own in found.items():
        names += [f"{key}.{name}" if name in names else name for name in own]
    fit = len(names) == dim and len(set(names)) == dim
    return tuple(names) if fit else tuple(f"{prefix}_{i}" for i in range(dim))


def _size(feature: dict[str, Any]) -> int:
    try:
        size = int(np.prod(feature.get("shape") or [1]))
    except (TypeError, ValueError):
        return 1
    return size if 0 < size < 100_000 else 1


def _columns(place: Place) -> list[str]:
    if not place.data.is_file():
        raise DatasetError(f"{place.data} is missing although the dataset lists it; download it again")
    try:
        return list(pq.read_schema(place.data).names)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise unreadable(place.data, error) from error


def _label(success: Success, known: list[str], place: Place) -> str | None:
    if success == "auto":
        return SUCCESS_KEY if SUCCESS_KEY in known else None
    if success in ("all", "none"):
        return None
    if success not in known:
        raise DatasetError(
            f"{place.data} has no column {success!r}; its columns are {', '.join(known)}. Type --success all if all "
            "demonstrations succeeded, or --success none"
        )
    return success


def _rows(place: Place, columns: list[str]) -> pa.Table:
    try:
        filters = [("episode_index", "=", place.index)]
        return pq.read_table(place.data, columns=columns, filters=filters, use_threads=False)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise unreadable(place.data, error) from error


def _column(table: pa.Table, name: str, place: Place, read: Any) -> np.ndarray:
    try:
        return np.asarray(read(table[name].to_pylist()))
    except ValueError as error:
        raise DatasetError(f"{place.data}: {name} of episode {place.index}: {error}") from error


def _lists(table: pa.Table, keys: tuple[str, ...]) -> dict[str, list[Any]]:
    return {key: table[key].to_pylist() for key in keys}


def joined(columns: Mapping[str, Any], place: Any) -> np.ndarray:
    """Concatenate columns, each N rows of numbers, to `(N, D)` float32; D is 0 without columns.

    Args:
        columns: rows by feature name.
        place: the episode, with `index`, `length` and `data`.

    Raises:
        DatasetError: a column is not numeric, or has NaN or infinity.
    """
    parts = []
    for key, rows in columns.items():
        try:
            with np.errstate(over="ignore"):
                values = np.array(rows, np.float32)
        except (ValueError, TypeError) as error:
            raise DatasetError(
                f"{place.data}: {key} of episode {place.index} is not numeric ({error}); choose other features with "
                "--state-key and --action-key"
            ) from error
        parts.append(values.reshape(len(values), -1))
    out = np.concatenate(parts, axis=1) if parts else np.zeros((place.length, 0), np.float32)
    if not np.isfinite(out).all():
        row = int(np.argwhere(~np.isfinite(out))[0][0])
        raise DatasetError(
            f"{place.data}: row {row} of episode {place.index} holds NaN or infinity in {' or '.join(columns)}"
        )
    return out


def divided(numbered: np.ndarray, sentences: Mapping[int, str]) -> tuple[Part, ...]:
    """Parts of an episode whose rows have the instructions `sentences[numbered[row]]`; `numbered (N,)` int64."""
    cuts = [0, *(np.flatnonzero(np.diff(numbered)) + 1).tolist()]
    ends = [*cuts[1:], len(numbered) - 1]  # the first frame after the change is the result of the part's last action
    return tuple(
        Part(a, b, sentences[int(numbered[a])] or NO_INSTRUCTION, bool(numbered[a] == numbered[b]))
        for a, b in zip(cuts, ends, strict=True)
        if b > a
    )


def _parts(source: LeRobotSource, place: Place, table: pa.Table) -> tuple[Part, ...]:
    last = place.length - 1
    if "task_index" in table.column_names and source.sentences:
        numbered = _column(table, "task_index", place, numbers).astype(np.int64)
        unknown = sorted(set(numbered.tolist()) - set(source.sentences))
        if not unknown:
            return divided(numbered, source.sentences)
        if not source.listed_instructions(place):
            raise DatasetError(
                f"{place.data}: episode {place.index} has task_index {unknown[0]}, which is not among the "
                f"{len(source.sentences)} listed tasks; correct meta/tasks"
            )
    texts = source.listed_instructions(place)
    if len(texts) > 1:
        raise DatasetError(
            f"{source.root}: episode {place.index} lists {len(texts)} instructions ({', '.join(texts)}), but its rows "
            "do not say which one applies when; correct meta/episodes"
        )
    return (Part(0, last, texts[0] if texts else NO_INSTRUCTION),)
