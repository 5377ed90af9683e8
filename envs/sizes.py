"""Simulated cameras and their image sizes.

Example::

    height_width(64), height_width((48, 64))     # (64, 64), (48, 64)
"""

from __future__ import annotations

from collections.abc import Sequence

from worldgym.errors import ConfigError
from worldgym.specs import Camera

ImageSize = int | Sequence[int]
"""Image size in pixels: one number for both sides, or (height, width)."""
MIN_SIZE, MAX_SIZE = 16, 256


def height_width(size: ImageSize, name: str = "image_size") -> tuple[int, int]:
    """Convert an image size to (height, width) in pixels.

    Raises:
        ConfigError: `size` is not one or two whole numbers in the allowed range.
    """
    pair = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(pair) != 2 or not all(isinstance(n, int) and MIN_SIZE <= n <= MAX_SIZE for n in pair):
        raise ConfigError(
            f"{name} must be in {MIN_SIZE}..{MAX_SIZE} pixels, a number or (height, width), got {size!r}"
        )
    return pair


def front_and_wrist(cameras: Sequence[str], image_size: ImageSize, wrist_size: ImageSize) -> tuple[Camera, ...]:
    """The cameras `front`, which is fixed, and `wrist`, which moves with the hand.

    Args:
        cameras: one or both names; the first one is the main camera.
        image_size: size of the front camera, pixels.
        wrist_size: size of the wrist camera, pixels.

    Raises:
        ConfigError: no camera, an unknown camera, or a size out of range.
    """
    sizes = {"front": height_width(image_size, "image_size"), "wrist": height_width(wrist_size, "wrist_size")}
    if isinstance(cameras, str) or not cameras or set(cameras) - set(sizes):
        raise ConfigError(
            f"cameras={cameras!r}; expected some of {', '.join(sizes)}, e.g. cameras=('front', 'wrist')"
        )
    return tuple(Camera(name, *sizes[name], static=name == "front") for name in cameras)
