"""Frames in a message: raw arrays, or PNG files for slow networks.

Example::

    told = to_wire(frames, "png")       # (..., H, W, 3) uint8
    from_wire(told).shape               # (..., H, W, 3)
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np

from worldgym.data.codecs.png import decode_png, encode_png
from worldgym.errors import ConfigError

Images = Literal["raw", "png"]


def to_wire(frames: Any, images: Images = "raw") -> Any:
    """`frames (..., H, W, 3)` uint8 in the form that a message holds.

    Raises:
        ConfigError: `images` is neither `raw` nor `png`, or these are not frames.
    """
    if images not in get_args(Images):
        raise ConfigError(f"images is {images!r}; expected one of {', '.join(get_args(Images))}")
    array = np.asarray(frames.cpu() if hasattr(frames, "cpu") else frames)
    if array.dtype != np.uint8 or array.ndim < 3 or array.shape[-1] != 3:
        raise ConfigError(
            f"got frames of shape {array.shape} and type {array.dtype}; expected (..., H, W, 3) uint8"
        )
    if images == "raw":
        return array
    flat = array.reshape(-1, *array.shape[-3:])
    return {"png": [encode_png(frame) for frame in flat], "shape": list(array.shape)}


def from_wire(told: Any) -> np.ndarray:
    """The frames `(..., H, W, 3)` uint8 of a message.

    Raises:
        ConfigError: these are not frames, or a PNG is damaged.
    """
    if isinstance(told, np.ndarray):
        if told.dtype != np.uint8 or told.ndim < 3 or told.shape[-1] != 3:
            raise ConfigError(
                f"got frames of shape {told.shape} and type {told.dtype}; expected (..., H, W, 3) uint8"
            )
        return told
    try:
        shape, files = tuple(int(size) for size in told["shape"]), told["png"]
        if len(shape) < 3 or shape[-1] != 3 or len(files) != math.prod(shape[:-3]):
            raise ValueError(f"{len(files)} PNG files for the shape {shape}")
        frames = [decode_png(file, shape[-3], shape[-2]) for file in files]
        return np.stack(frames).reshape(shape) if frames else np.zeros(shape, np.uint8)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"these are not frames: {error}; expected an array, or png with its shape"
        ) from error
