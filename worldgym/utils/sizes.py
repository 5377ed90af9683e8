"""Image sizes: one number for a square image, `HxW` or a pair (H, W) otherwise.

Example::

    size_of(64), size_of("48x80"), size_of((48, 80))      # (64, 64), (48, 80), (48, 80)
    short(size_of(64))                                    # 64
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from worldgym.errors import ConfigError

ImageSize = int | tuple[int, int]
"""Side length of a square image, or height and width, in pixels."""


def size_of(value: int | str | Sequence[int]) -> tuple[int, int]:
    """Parse an image size to height and width in pixels.

    Raises:
        ConfigError: the value is neither a number, `HxW`, nor a pair of numbers, or is below 1.
    """
    found: list[int] = []
    if isinstance(value, bool):
        pass
    elif isinstance(value, int):
        found = [value, value]
    elif isinstance(value, str):
        match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", value.strip())
        found = [int(match[1]), int(match[2] or match[1])] if match else []
    elif len(value) == 2 and all(isinstance(side, int) and not isinstance(side, bool) for side in value):
        found = list(value)
    if len(found) != 2 or min(found) < 1:
        raise ConfigError(
            f"image size {value!r}: expected a side length in pixels such as 64, or height x width such as 48x80"
        )
    return found[0], found[1]


def short(size: ImageSize) -> ImageSize:
    """One number if height and width are equal, else (H, W); the form stored in files."""
    height, width = size_of(size)
    return height if height == width else (height, width)


def text(size: tuple[int, int]) -> str:
    """Format a size as on the command line: `64` or `48x80`."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def enlarged(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Scale an image size (H, W) so that the longer side is `longest`; returns (width, height), the order of PIL."""
    scale = longest / max(size)
    return max(1, round(size[1] * scale)), max(1, round(size[0] * scale))
