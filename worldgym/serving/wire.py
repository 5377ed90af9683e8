"""Messages: plain data and NumPy arrays in msgpack, in the format of openpi's `msgpack_numpy.py`.

An array is a map with the four byte keys `__ndarray__`, `data` (C order), `dtype` (NumPy's `dtype.str`) and `shape`.
Only numbers and booleans are accepted, so a message cannot contain pickled objects.

Example::

    data = pack({"image": np.zeros((64, 64, 3), np.uint8), "prompt": "open the drawer"})
    unpack(data)["image"].shape     # (64, 64, 3)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from worldgym.utils.optional import require

KINDS = "buif"  # booleans, unsigned and signed integers, floating-point numbers


class WireError(ValueError):
    """A message can't be packed or unpacked."""


def pack(message: Any) -> bytes:
    """Encode a message; tensors are sent as arrays.

    Raises:
        WireError: it contains something else than plain data, arrays and tensors of numbers.
    """
    try:
        packed: bytes = require("msgpack", extra="serve").packb(message, default=_encode)
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(
            f"this message can't be sent: {error}; expected plain data and arrays of numbers"
        ) from error
    return packed


def unpack(data: bytes | str) -> Any:
    """Decode a message. Arrays are writable and independent of `data`.

    Raises:
        WireError: the bytes are not such a message, or an array's size differs from its shape and type.
    """
    if isinstance(data, str):
        raise WireError(f"got the text {data[:200]!r}, expected a msgpack message")
    msgpack = require("msgpack", extra="serve")
    try:
        return msgpack.unpackb(data, object_hook=_decode, strict_map_key=False)
    except WireError:
        raise
    except Exception as error:  # msgpack raises many types for damaged bytes
        raise WireError(
            f"{len(data)} bytes are not a complete msgpack message ({type(error).__name__}: {error})"
        ) from error


def _encode(value: Any) -> Any:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind not in KINDS:
        raise WireError(f"an array of type {value.dtype} can't be sent; expected numbers or booleans")
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"it contains a {type(value).__module__}.{type(value).__qualname__}")


def _decode(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" not in value and b"__npgeneric__" not in value:
        return value
    try:
        kind = np.dtype(_text(value[b"dtype"]))
        if kind.kind not in KINDS:
            raise WireError(f"got an array of type {kind}; expected numbers or booleans")
        if b"__npgeneric__" in value:
            return kind.type(value[b"data"])
        shape, data = tuple(int(size) for size in value[b"shape"]), value[b"data"]
        if min(shape, default=0) < 0 or len(data) != math.prod(shape) * kind.itemsize:
            raise WireError(f"an array of shape {shape} and type {kind} came with {len(data)} bytes")
        return np.frombuffer(data, kind).reshape(shape).copy()
    except (KeyError, TypeError, ValueError) as error:
        raise error if isinstance(error, WireError) else WireError(f"damaged array: {error!r}") from error


def _text(value: Any) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else str(value)
