"""Image sizes of simulated cameras.

Example::

    height_width(64), height_width((48, 64))     # (64, 64), (48, 64)
"""

from __future__ import annotations

from collections.abc import Sequence

from worldgym.errors import ConfigError

ImageSize = int | Sequence[int]
"""Image size in pixels: one number for both sides, or (height, width)."""
MIN_SIZE, MAX_SIZE = 16, 256


def height_width(size: ImageSize, name: str = "image_size") -> tuple[int, int]:
    """Convert an image size to (height, width) in pixels.

    Raises:
        ConfigError: `size` is not one or two whole numbers in the allowed range.
    """
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(n, int) and MIN_SIZE <= n <= MAX_SIZE for n in pair):
        raise ConfigError(
            f"{name} must be in {MIN_SIZE}..{MAX_SIZE} pixels, a number or (height, width), got {size}"
        )
    return pair
