"""Validation of `meta/info.json` and the rows of `meta/episodes`: types, ranges, and the seal of `meta/info.json`.

`meta/info.json` lists the hash of every other file, but no other file holds its own hash. Its block `worldgym`
therefore contains `seal`, the SHA-256 of the rest of the file's content.

Example::

    info["worldgym"]["seal"] = seal(info)
    check_info(info)                      # ValueError if the content has changed since
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

MAX_IMAGE_SIZE, MAX_STATE_DIM, MAX_STEPS = 8192, 100_000, 2**31
_TEXT_FIELDS = ("instruction", "task", "split", "domain", "behaviour", "provenance_json")
_COUNT_FIELDS = ("index", "first_row", "chunk", "file", "row_group")


def seal(info: dict[str, Any]) -> str:
    """SHA-256 of the content of `meta/info.json` except the seal itself."""
    block = {key: value for key, value in info["worldgym"].items() if key != "seal"}
    text = json.dumps({**info, "worldgym": block}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def check_info(info: dict[str, Any]) -> None:
    """Check types, ranges and the seal, if present; earlier versions wrote no seal.

    Raises:
        ValueError: a value is out of range, or the content changed after it was written.
        KeyError: a field is missing.
        TypeError: a field has another type.
    """
    block = info["worldgym"]
    if "seal" in block and block["seal"] != seal(info):
        raise ValueError("it was changed since it was written: its content does not match its seal")
    sizes = [("image_size", 1, MAX_IMAGE_SIZE), ("state_dim", 0, MAX_STATE_DIM)]
    for name, low, high in (
        [] if "specs" in block else sizes
    ):  # earlier versions stored these instead of specs
        value = block[name]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{name} is {value!r}, expected a whole number from {low} to {high}")
    observation = block["specs"]["observation"] if "specs" in block else {}
    if not isinstance(observation, dict):
        raise TypeError(
            f"specs.observation is a {type(observation).__name__}, expected an object with cameras and state"
        )
    for camera in observation.get("cameras", ()):
        if any(
            isinstance(camera[side], int) and camera[side] > MAX_IMAGE_SIZE for side in ("height", "width")
        ):
            raise ValueError(f"camera {camera['name']!r} is larger than {MAX_IMAGE_SIZE} pixels")
    for name in ("total_episodes", "total_frames", "total_tasks"):
        if isinstance(info[name], bool) or not isinstance(info[name], int) or info[name] < 0:
            raise ValueError(f"{name} is {info[name]!r}, expected a whole number")
    if not (math.isfinite(info["fps"]) and info["fps"] > 0):
        raise ValueError(f"fps is {info['fps']!r}, expected a positive number")
    if block["images"] not in ("png", "mp4"):
        raise ValueError(f"images is {block['images']!r}, expected 'png' or 'mp4'")
    if not isinstance(block.get("views", []), list):
        raise TypeError(f"views is {block['views']!r}, expected a list of names")


def check_record(record: Any) -> None:
    """Check the types and ranges of an `EpisodeRecord`.

    Raises:
        ValueError: a field is invalid; the message names the first one.
    """
    steps = record.steps
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps < MAX_STEPS:
        raise ValueError(f"steps is {steps!r}, expected a whole number of at least 1")
    for name in _COUNT_FIELDS:
        value = getattr(record, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{name} is {value!r}, expected a whole number")
    for name in _TEXT_FIELDS:
        if not isinstance(getattr(record, name), str):
            raise ValueError(f"{name} is {getattr(record, name)!r}, expected text")
    if record.success is not None and not isinstance(record.success, bool):
        raise ValueError(f"success is {record.success!r}, expected true, false or null")
    if not isinstance(record.video_start, (int, float)) or not 0 <= record.video_start < math.inf:
        raise ValueError(f"video_start is {record.video_start!r}, expected seconds >= 0")
