"""Reads TFRecord files of `tf.train.Example` without TensorFlow: checked records, and their features.

A record is its length, the masked CRC-32C of the length, the bytes, and the masked CRC-32C of the bytes. The message
`tf.train.Example` is described here in a pool of its own, so that it can't collide with TensorFlow's.

Example::

    index, problem = record_index(path)          # [(offset, length), ...], and why the file ends early, or None
    features = parse(read_record(path, *index[0]))
    features["steps/action"]                     # float list, int list, or list of bytes
"""

from __future__ import annotations

import struct
from functools import lru_cache
from pathlib import Path
from typing import Any

from worldgym.errors import DatasetError
from worldgym.utils.optional import require

LONGEST = 4 * 2**30  # bytes of a record


def masked_crc(data: bytes) -> int:
    """CRC-32C of `data`, rotated and offset as in TFRecord files."""
    crc = int(require("google_crc32c", extra="recordings", package="google-crc32c").value(data))
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def record_index(path: Path) -> tuple[list[tuple[int, int]], str | None]:
    """Offsets and lengths of the records of a file, and the reason why there are no more, if it is damaged.

    Only the lengths and their checksums are read.

    Raises:
        DatasetError: the file cannot be opened.
    """
    found: list[tuple[int, int]] = []
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            at = 0
            while at < size:
                file.seek(at)
                head = file.read(12)
                if len(head) < 12:
                    return found, f"{path} ends within the header of record {len(found)}"
                length, crc = struct.unpack("<QI", head)
                if masked_crc(head[:8]) != crc:
                    return found, f"{path}: the checksum of the length of record {len(found)} is wrong"
                if length > LONGEST or at + 16 + length > size:
                    return found, f"{path} ends within record {len(found)} of {length} bytes"
                found.append((at, length))
                at += 16 + length
    except OSError as error:
        raise DatasetError(f"{path} can't be read ({error}); download it again") from error
    return found, None


def read_record(path: Path, offset: int, length: int) -> bytes:
    """The bytes of the record at `offset`, as found by `record_index`.

    Raises:
        DatasetError: the record can't be read, or its checksum is wrong.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset + 12)
            data, tail = file.read(length), file.read(4)
    except OSError as error:
        raise DatasetError(f"{path} can't be read ({error}); download it again") from error
    if len(data) != length or len(tail) != 4 or masked_crc(data) != struct.unpack("<I", tail)[0]:
        raise DatasetError(
            f"{path}: the checksum of the record at byte {offset} is wrong; the file is damaged, download it again"
        )
    return data


def parse(data: bytes) -> dict[str, Any]:
    """Features of a serialized `tf.train.Example` by name: a sequence of floats, of ints, or of bytes.

    Raises:
        DatasetError: the data is no such message.
    """
    message = _example()()
    try:
        message.ParseFromString(data)
        kinds = {name: feature.WhichOneof("kind") for name, feature in message.features.feature.items()}
        return {
            name: getattr(message.features.feature[name], kind).value if kind else ()
            for name, kind in kinds.items()
        }
    except Exception as error:  # protobuf's DecodeError, and UnicodeDecodeError of a name
        raise DatasetError(
            f"a record is not a tf.train.Example ({error}); download the file again"
        ) from error


@lru_cache(maxsize=1)
def _example() -> Any:
    """The message class `tf.train.Example`."""
    require("google.protobuf", extra="recordings", package="protobuf")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="worldgym_example.proto", package="worldgym.tf", syntax="proto3"
    )
    for name, kind in (("Bytes", field.TYPE_BYTES), ("Float", field.TYPE_FLOAT), ("Int64", field.TYPE_INT64)):
        message = file.message_type.add(name=f"{name}List")
        message.field.add(name="value", number=1, type=kind, label=field.LABEL_REPEATED)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("Bytes", "Float", "Int64"), 1):
        feature.field.add(
            name=f"{name.lower()}_list", number=number, type=field.TYPE_MESSAGE, label=field.LABEL_OPTIONAL,
            type_name=f".worldgym.tf.{name}List", oneof_index=0,
        )  # fmt: skip
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    entry.field.add(
        name="value", number=2, type=field.TYPE_MESSAGE, label=field.LABEL_OPTIONAL,
        type_name=".worldgym.tf.Feature",
    )  # fmt: skip
    features.field.add(
        name="feature", number=1, type=field.TYPE_MESSAGE, label=field.LABEL_REPEATED,
        type_name=".worldgym.tf.Features.FeatureEntry",
    )  # fmt: skip
    example = file.message_type.add(name="Example")
    example.field.add(
        name="features", number=1, type=field.TYPE_MESSAGE, label=field.LABEL_OPTIONAL,
        type_name=".worldgym.tf.Features",
    )  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("worldgym.tf.Example"))
