"""Messages of MCAP recordings: decoding, fields, stamps and pictures, whatever their encoding.

ROS 2 messages (`cdr` with `ros2msg` schemas), JSON, and protobuf messages are decoded to objects with the same fields.

Example::

    for order, time, message in messages(path, ["/joint_states"], "log"):
        numbers_at(message(), ("position",), ())         # array of float64
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from worldgym.errors import DatasetError, DependencyError
from worldgym.utils.optional import require

CHANNELS = {"rgb8": 3, "bgr8": 3, "mono8": 1, "8UC1": 1, "8UC3": 3, "rgba8": 4, "bgra8": 4}
LIMIT = 2**30  # bytes of a record
MAX_VALUES = 100_000


class Logged(NamedTuple):
    """A message: topic, its number within the topic, time in nanoseconds, and a function that decodes it."""

    topic: str
    number: int
    time: int
    decode: Callable[[], Any]


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the errors of the readers and decoders into a `DatasetError`; they have no common class."""
    try:
        yield
    except (DatasetError, DependencyError):
        raise
    except Exception as error:  # also a MemoryError, of a damaged length
        raise DatasetError(
            f"{path} can't be read as MCAP ({type(error).__name__}: {error}); if the recording was cut off, repair it "
            "with `mcap recover`, else copy or download it again"
        ) from error


def topics_of(path: Path) -> dict[str, str]:
    """The topics of a file with the types of their messages.

    Raises:
        DatasetError: the file is damaged or cut off.
    """
    with reading(path), path.open("rb") as file:
        summary = _reader(file).get_summary()
        if summary is None:
            return {}
        types = {number: schema.name for number, schema in summary.schemas.items()}
        return {c.topic: types.get(c.schema_id, c.message_encoding) for c in summary.channels.values()}


def messages(path: Path, topics: Sequence[str], clock: str) -> Iterator[Logged]:
    """The messages of some topics, in the order of their log times.

    Args:
        path: the file.
        topics: the topics.
        clock: `log` for the time of recording, `header` for the stamp in each message.

    Raises:
        DatasetError: the file is damaged or cut off, or a message can't be decoded or has no stamp.
    """
    counts = dict.fromkeys(topics, 0)
    decoders: dict[int, Callable[[bytes], Any]] = {}
    with reading(path), path.open("rb") as file:
        for schema, channel, message in _reader(file).iter_messages(topics=list(topics)):
            if channel.id not in decoders:
                decoders[channel.id] = _decoder(path, schema, channel)
            decode = _bound(path, channel.topic, decoders[channel.id], message.data)
            time = message.log_time if clock == "log" else stamp(path, channel.topic, decode())
            yield Logged(channel.topic, counts[channel.topic], int(time), decode)
            counts[channel.topic] += 1


def _reader(file: Any) -> Any:
    require("mcap", extra="recordings")
    reader = require("mcap.reader", extra="recordings")
    return reader.SeekingReader(file, validate_crcs=True, record_size_limit=LIMIT)


def _bound(path: Path, topic: str, decode: Callable[[bytes], Any], data: bytes) -> Callable[[], Any]:
    def decoded() -> Any:
        try:
            return decode(data)
        except MemoryError:
            raise
        except Exception as error:
            raise DatasetError(
                f"{path}: a message of {topic} does not fit its schema ({type(error).__name__}: {error}); record it "
                "again"
            ) from error

    return decoded


def _decoder(path: Path, schema: Any, channel: Any) -> Callable[[bytes], Any]:
    encoding, schema_encoding = channel.message_encoding, getattr(schema, "encoding", "")
    if encoding == "json":
        return json.loads
    found = None
    if encoding == "cdr":
        factory = require(
            "mcap_ros2.decoder", extra="recordings", package="mcap-ros2-support"
        ).DecoderFactory()
        found = factory.decoder_for(encoding, schema)
    elif encoding == "protobuf":
        protobuf = require("mcap_protobuf.decoder", extra="recordings", package="mcap-protobuf-support")
        found = protobuf.DecoderFactory().decoder_for(encoding, schema)
    if found is None:
        raise DatasetError(
            f"{path}: {channel.topic} has messages encoded as {encoding!r} with a schema {schema_encoding!r}; expected "
            "cdr with ros2msg, json or protobuf: convert the recording"
        )
    return found  # type: ignore[no-any-return]


# ---- fields ------------------------------------------------------------------------------------------------------


def field_at(message: Any, path: Sequence[str | int]) -> Any:
    """The value of a message at a path of names and positions.

    Raises:
        ValueError: there is none; the message lists the fields that there are.
    """
    found = message
    for step in path:
        if isinstance(step, int):
            if not _is_list(found) or step >= len(found):
                size = len(found) if _is_list(found) else "no"
                raise ValueError(f"position [{step}] of a list with {size} items")
            found = found[step]
        else:
            known = fields(found)
            if step not in known:
                raise ValueError(f"no field {step!r}, only {', '.join(known) or 'none'}")
            found = found[step] if isinstance(found, dict) else getattr(found, step)
    return found


def fields(message: Any) -> list[str]:
    """Names of the fields of a decoded message; none for a number, text or list."""
    if isinstance(message, dict):
        return [str(key) for key in message]
    if hasattr(message, "DESCRIPTOR"):
        return [field.name for field in message.DESCRIPTOR.fields]
    return [
        name for name in getattr(message, "__slots__", ()) if isinstance(name, str) and hasattr(message, name)
    ]


def _is_list(value: Any) -> bool:
    return (
        not isinstance(value, (str, bytes, dict))
        and hasattr(value, "__getitem__")
        and hasattr(value, "__len__")
    )


def numbers_at(message: Any, path: Sequence[str | int], joints: Sequence[str]) -> np.ndarray:
    """The numbers of a field, `(D,)` float64: a number, a list, or a message whose fields are numbers, in their order.

    Args:
        message: the decoded message.
        path: names and positions that lead to the field.
        joints: take these items, by the list `name` of the message; empty for all.

    Raises:
        ValueError: the field is missing or holds something else than numbers.
    """
    found = _flat(field_at(message, path))
    if joints:
        order = [str(name) for name in field_at(message, ("name",))]
        absent = [name for name in joints if name not in order]
        if absent or len(found) != len(order):
            raise ValueError(
                f"the joints {order} for {len(found)} values, expected {list(joints)} among them"
            )
        found = [found[order.index(name)] for name in joints]
    return np.array(found, np.float64)


def _flat(value: Any) -> list[float]:
    if isinstance(value, (bool, int, float, np.number, np.bool_)):
        return [float(value)]
    if isinstance(value, (str, bytes)) or value is None:
        raise ValueError(f"{str(value)[:40]!r}, expected numbers")
    items = value if _is_list(value) else [field_at(value, (name,)) for name in fields(value)]
    if len(items) > MAX_VALUES:
        raise ValueError(f"a list of {len(items)} values, too large for a state or an action")
    if not len(items) and not _is_list(value):
        raise ValueError(f"a {type(value).__name__}, expected numbers")
    return [number for item in items for number in _flat(item)]


def stamp(path: Path, topic: str, message: Any) -> int:
    """Time of a message in nanoseconds, from `header.stamp` or `timestamp`.

    Raises:
        DatasetError: it has neither.
    """
    for start in (("header", "stamp"), ("timestamp",)):
        try:
            found = field_at(message, start)
            known = fields(found)
            seconds = next(name for name in ("sec", "seconds", "secs") if name in known)
            parts = next(name for name in ("nanosec", "nanos", "nsec", "nsecs") if name in known)
            return int(field_at(found, (seconds,))) * 1_000_000_000 + int(field_at(found, (parts,)))
        except (ValueError, TypeError, StopIteration):
            continue
    raise DatasetError(
        f"{path}: the messages of {topic} have no header.stamp; write `clock: log` into the mapping file, which uses "
        "the times of recording"
    )


# ---- pictures ----------------------------------------------------------------------------------------------------


def picture_of(message: Any) -> np.ndarray | bytes:
    """The picture of a message: `(H, W, 3)` uint8 RGB of a raw image, or the bytes of a compressed one.

    Raises:
        ValueError: the message is no picture, or has an encoding that is not read.
    """
    known = fields(message)
    if "data" not in known or not {"encoding", "format"} & set(known):
        raise ValueError(
            f"a message with the fields {', '.join(known)}; expected an Image or CompressedImage"
        )
    data = _bytes(field_at(message, ("data",)))
    if "encoding" not in known:
        kind = str(field_at(message, ("format",)))
        if "depth" in kind.lower():
            raise ValueError(f"a depth image ({kind}); expected a colour image")
        return data
    encoding = str(field_at(message, ("encoding",)))
    if encoding not in CHANNELS:
        raise ValueError(
            f"the encoding {encoding!r}, expected one of {', '.join(CHANNELS)}, or a CompressedImage"
        )
    channels = CHANNELS[encoding]
    height, width, step = (int(field_at(message, (name,))) for name in ("height", "width", "step"))
    if height < 1 or width < 1 or step < width * channels or len(data) != height * step:
        raise ValueError(
            f"{len(data)} bytes for {height} x {width} pixels ({encoding}) in lines of {step} bytes; expected "
            f"{height} times {step}, and lines of at least {width * channels}"
        )
    lines = np.frombuffer(data, np.uint8).reshape(height, step)[:, : width * channels]
    pixels = lines.reshape(height, width, channels)
    if channels == 1:
        return np.repeat(pixels, 3, axis=2)
    return pixels[:, :, 2::-1] if encoding.startswith("bgr") or encoding == "8UC3" else pixels[:, :, :3]


def _bytes(data: Any) -> bytes:
    if isinstance(data, str):
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"data is a text that is not base64: {error}") from error
    try:
        return bytes(data)
    except (TypeError, ValueError) as error:
        raise ValueError(f"data is a {type(data).__name__}, expected bytes") from error
