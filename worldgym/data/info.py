"""What `meta/info.json` and the rows of `meta/episodes` may say: ranges, types, and the seal of the former.

`meta/info.json` lists every other file with its hash, so nothing else could notice that it was changed itself. Its
block `worldgym` therefore holds `seal`, the SHA-256 of everything else in it.

Example::

    info["worldgym"]["seal"] = seal(info)
    check_info(info)                      # ValueError when a character has changed since
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

MAX_IMAGE_SIZE, MAX_STATE_DIM, MAX_STEPS = 8192, 100_000, 2**31
_WORDS = ("instruction", "task", "split", "domain", "behaviour", "provenance_json")
_COUNTS = ("index", "first_row", "chunk", "file", "row_group")


def seal(info: dict[str, Any]) -> str:
    """SHA-256 of the content of `meta/info.json` without the seal."""
    block = {key: value for key, value in info["worldgym"].items() if key != "seal"}
    text = json.dumps({**info, "worldgym": block}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def check_info(info: dict[str, Any]) -> None:
    """Check ranges and, where there is one, the seal; earlier versions wrote none.

    Raises:
        ValueError: out of range, or changed since it was written.
        KeyError: a field is missing.
        TypeError: a field of another type.
    """
    block = info["worldgym"]
    if "seal" in block and block["seal"] != seal(info):
        raise ValueError("it has changed since it was written, its content does not fit its seal")
    sizes = [("image_size", 1, MAX_IMAGE_SIZE), ("state_dim", 0, MAX_STATE_DIM)]
    for name, low, high in (
        [] if "specs" in block else sizes
    ):  # earlier versions wrote these in place of specs
        value = block[name]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{name} is {value!r}, expected a whole number from {low} to {high}")
    observation = block["specs"]["observation"] if "specs" in block else {}
    if not isinstance(observation, dict):
        raise TypeError(
            f"the specs' observation is a {type(observation).__name__}, expected cameras and state"
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
        ValueError: the first field that is wrong.
    """
    steps = record.steps
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps < MAX_STEPS:
        raise ValueError(f"steps is {steps!r}, expected a whole number of at least 1")
    for name in _COUNTS:
        value = getattr(record, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{name} is {value!r}, expected a whole number")
    for name in _WORDS:
        if not isinstance(getattr(record, name), str):
            raise ValueError(f"{name} is {getattr(record, name)!r}, expected text")
    if record.success is not None and not isinstance(record.success, bool):
        raise ValueError(f"success is {record.success!r}, expected true, false or null")
    if not isinstance(record.video_start, (int, float)) or not 0 <= record.video_start < math.inf:
        raise ValueError(f"it begins at second {record.video_start!r} of its video")
