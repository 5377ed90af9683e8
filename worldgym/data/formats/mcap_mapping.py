"""The mapping file of MCAP recordings: which topic and field is a picture, a state field or an action, and the rate.

Example of `mapping.yaml`::

    rate: 10                       # rows per second of the dataset
    clock: log                     # log: when a message was recorded; header: the stamp in the message
    cameras:
      front: {topic: /camera/image_raw}
    state:
      joints: {topic: /joint_states, field: position, joints: [shoulder, elbow]}
    actions:
      target: {topic: /target, field: "pose.position"}
    instruction: pick up the cup
    action_convention: {kind: absolute, frame: base, units: m, gripper: 1 is open}

Example::

    mapping = read_mapping(Path("mapping.yaml"))
    mapping.cameras["front"].topic, mapping.rate
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping as Named
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from worldgym.errors import ConfigError

KEYS = (
    "rate", "clock", "max_gap", "robot", "cameras", "state", "actions", "instruction", "instructions", "success",
    "reward", "action_convention",
)  # fmt: skip
COLUMN_KEYS = ("topic", "field", "names", "joints", "max_gap")
CONVENTION = ("kind", "frame", "units", "gripper")
MAX_BYTES = 2**20
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_STEP = re.compile(r"([A-Za-z][A-Za-z0-9_]*)((?:\[\d{1,6}\])*)")


@dataclass(frozen=True)
class Column:
    """A topic and a field of its messages.

    Args:
        topic: the topic.
        field: names and positions that lead to the value, e.g. `("pose", "position", 0)`; empty for pictures.
        names: names of the values, if given.
        joints: take these items of the field, in this order, by the list `name` of a joint state; empty for all items.
        max_gap: largest distance in seconds from a row to its message.
    """

    topic: str
    field: tuple[str | int, ...]
    names: tuple[str, ...]
    joints: tuple[str, ...]
    max_gap: float


@dataclass(frozen=True)
class TopicMapping:
    """A checked mapping file.

    Args:
        rate: rows per second.
        clock: `log`, or `header` for the stamps in the messages.
        cameras: topics of pictures, by camera.
        state: columns of proprioception, by name.
        actions: columns of actions, by name.
        instruction: sentence of all episodes, or a column with text, or None.
        instructions: sentence by the name of the file, without its ending.
        success: column that is true once the instruction is fulfilled, or None.
        reward: column of rewards, or None.
        robot: name of the robot.
        convention: what the actions mean, as stated; what is not stated is `unknown`.
        text: the content of the file.
    """

    rate: float
    clock: Literal["log", "header"]
    cameras: dict[str, Column]
    state: dict[str, Column]
    actions: dict[str, Column]
    instruction: str | Column | None = None
    instructions: dict[str, str] = field(default_factory=dict)
    success: Column | None = None
    reward: Column | None = None
    robot: str = "unknown"
    convention: dict[str, str] = field(default_factory=dict)
    text: str = ""


def find_mapping(source: Path, given: str | None) -> Path:
    """The mapping file: the given one, or `mapping.yaml` beside the recordings.

    Raises:
        ConfigError: it does not exist.
    """
    folder = source if source.is_dir() else source.parent
    path = folder / "mapping.yaml" if given is None else Path(given).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"there is no mapping file {path}; MCAP recordings need one, which says what their topics mean: write it "
            "(docs/guides/own_data.md shows one), or name it with --mapping FILE"
        )
    return path


def read_mapping(path: Path) -> TopicMapping:
    """Read and check a mapping file.

    Raises:
        ConfigError: it can't be read, or a value is not as expected; the message names the entry.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(
                f"{path} is larger than {MAX_BYTES} bytes; expected a mapping file: check --mapping"
            )
        text = path.read_text(encoding="utf-8")
        found = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path} can't be read as YAML ({error}); correct it") from error
    try:
        return _checked(found, text)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; correct the mapping file") from error


def _checked(found: Any, text: str) -> TopicMapping:
    _expect_keys(found, KEYS, "the file")
    rate = _number(found.get("rate"), "rate")
    if not 0 < rate < 1000:
        raise ValueError(f"rate is {rate:g}, expected rows per second between 0 and 1000, e.g. rate: 10")
    clock = found.get("clock", "log")
    if clock not in ("log", "header"):
        raise ValueError(f"clock is {clock!r}, expected log or header")
    gap = _gap(found, "max_gap", 0.5)
    picture_gap = _gap(found, "max_gap", 1.0 / rate)
    cameras = _columns(found, "cameras", picture_gap, pictures=True)
    if not cameras:
        raise ValueError(
            "cameras is empty, expected at least one, e.g. cameras: {front: {topic: /camera/image_raw}}"
        )
    given = found.get("instruction")
    if given is not None and not isinstance(given, (str, dict)):
        raise ValueError(f"instruction is {given!r}, expected a sentence, or a topic and a field")
    labels = {
        name: _column(found[name], name, math.inf, pictures=False)
        for name in ("success", "reward")
        if found.get(name) is not None
    }
    convention = _texts(found, "action_convention")
    _expect_keys(convention, CONVENTION, "action_convention")
    return TopicMapping(
        rate, clock, cameras, _columns(found, "state", gap), _columns(found, "actions", gap),
        _column(given, "instruction", math.inf, pictures=False) if isinstance(given, dict) else given,
        _texts(found, "instructions"), labels.get("success"), labels.get("reward"),
        str(found.get("robot") or "unknown"),
        {name: convention.get(name, "unknown") for name in CONVENTION}, text,
    )  # fmt: skip


def _expect_keys(found: Any, keys: tuple[str, ...], where: str) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"{where} holds a {type(found).__name__}, expected entries {', '.join(keys)}")
    unknown = [str(key) for key in found if key not in keys]
    if unknown:
        raise ValueError(f"{where} has the unknown entry {unknown[0]!r}, expected {', '.join(keys)}")


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ValueError(f"{where} is {value!r}, expected a number")
    return float(value)


def _gap(found: Named[str, Any], where: str, default: float) -> float:
    gap = _number(found.get("max_gap", default), f"{where}: max_gap")
    if gap < 0:
        raise ValueError(f"{where}: max_gap is {gap:g}, expected seconds of at least 0, or .inf")
    return gap


def _texts(found: Named[str, Any], where: str) -> dict[str, str]:
    entries = found.get(where) or {}
    if not isinstance(entries, dict):
        raise ValueError(f"{where} is a {type(entries).__name__}, expected entries NAME: text")
    return {str(key): str(value) for key, value in entries.items()}


def _columns(found: Named[str, Any], where: str, gap: float, pictures: bool = False) -> dict[str, Column]:
    entries = found.get(where) or {}
    if not isinstance(entries, dict):
        raise ValueError(f"{where} is a {type(entries).__name__}, expected entries NAME: {{topic: ...}}")
    for name in entries:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"{where} has the name {name!r}, expected a letter, then letters, digits and _")
    return {name: _column(entry, f"{where}.{name}", gap, pictures) for name, entry in entries.items()}


def _column(entry: Any, where: str, gap: float, pictures: bool) -> Column:
    _expect_keys(entry, ("topic", "max_gap") if pictures else COLUMN_KEYS, where)
    topic = entry.get("topic")
    if not isinstance(topic, str) or not topic:
        raise ValueError(f"{where} has the topic {topic!r}, expected e.g. topic: /joint_states")
    if not pictures and "field" not in entry:
        raise ValueError(f"{where} has no field, expected the field of the message, e.g. field: position")
    path = () if pictures else _path(entry["field"], where)
    lists = {key: entry.get(key) or [] for key in ("names", "joints")}
    for key, value in lists.items():
        if not isinstance(value, list) or len(set(map(str, value))) != len(value):
            raise ValueError(f"{where}.{key} is {value!r}, expected a list of different names")
    names, joints = (tuple(map(str, lists[key])) for key in ("names", "joints"))
    return Column(topic, path, names, joints, _gap(entry, where, gap))


def _path(text: Any, where: str) -> tuple[str | int, ...]:
    out: list[str | int] = []
    for part in str(text).split("."):
        match = _STEP.fullmatch(part)
        if match is None:
            raise ValueError(
                f"{where} has the field {text!r}, expected e.g. position, pose.position.x or position[0]"
            )
        out += [match[1], *(int(number) for number in re.findall(r"\d+", match[2]))]
    return tuple(out)
