"""Reads and writes .npz files of plain arrays, with type checks, without pickle.

`numpy.load` allocates the size that the header of a file states. `read_arrays` first compares this size with the size
of the file, and then checks every array: kind, number of dimensions, sizes shared between arrays, finite values.

Example::

    from worldgym.utils.arrays import Field, read_arrays, write_arrays
    write_arrays("starts.npz", {"images": images, "tasks": tasks})
    fields = {"images": Field("uint8", ("N", "H", "W", 3)), "tasks": Field("text", ("N",), required=False)}
    read_arrays("starts.npz", fields, remedy="restore it from a copy")["images"].shape
"""

from __future__ import annotations

import lzma
import os
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldgym.errors import CheckpointError
from worldgym.utils.files import atomic_path

LIMIT = 8 * 2**30
"""Maximum total size of the arrays of one file, bytes."""
RATIOS = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032, zipfile.ZIP_LZMA: 10_000}
"""Maximum compression ratio by method; a file that states a larger one is damaged."""
KINDS = {"uint8": "uint8", "int": "iu", "float": "fiu", "text": "U"}
MAY_BE_EMPTY = ("S",)
"""Names of sizes that may be 0: a robot may have no proprioception."""
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class Field:
    """Requirements on an array.

    Args:
        kind: `uint8`, `int`, `float` (accepts integers too) or `text`.
        shape: sizes; a name stands for a size of at least 1, which is the same in all arrays that use the name. A size
            in `MAY_BE_EMPTY` may be 0.
        required: whether the file must contain the array.
        finite: whether NaN and infinity are rejected.
    """

    kind: str
    shape: tuple[int | str, ...]
    required: bool = True
    finite: bool = True


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, Any], dense: bool = False) -> Path:
    """Write arrays as a compressed .npz file, atomically; a missing suffix is added.

    Args:
        path: the file.
        arrays: arrays by name.
        dense: compress by LZMA in place of deflate: about half the size for frames of one scene, a third of a second
            per megabyte. `numpy.load` reads both.

    Raises:
        OSError: writing failed, e.g. because the disk is full; the old file is unchanged.
        TypeError: an array holds Python objects.
    """
    target = Path(path)
    if target.suffix != ".npz":
        target = target.with_name(target.name + ".npz")
    plain = {name: np.asarray(value) for name, value in arrays.items()}
    if objects := [name for name, value in plain.items() if value.dtype.hasobject]:
        raise TypeError(f"{', '.join(objects)} holds Python objects, expected numbers or strings")
    with atomic_path(target) as temporary, temporary.open("wb") as stream:
        if not dense:
            np.savez_compressed(stream, **plain)  # type: ignore[arg-type]
            return target
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_LZMA) as archive:
            for name, value in plain.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, value, allow_pickle=False)
    return target


def read_arrays(
    path: str | os.PathLike[str], fields: Mapping[str, Field], remedy: str, limit: int = LIMIT
) -> dict[str, NDArray[Any]]:
    """Read the arrays of an .npz file that are named in `fields`; other arrays are ignored.

    Args:
        path: the file.
        fields: requirements by array name.
        remedy: instruction for the user if the file is missing or damaged; the end of the error message.
        limit: maximum total size of the arrays, bytes.

    Raises:
        CheckpointError: the file is missing, damaged or larger than `limit`, or an array does not match its field.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"{file} is missing. {remedy}")
    try:
        with zipfile.ZipFile(file) as archive:
            names = {name.removesuffix(".npy"): name for name in archive.namelist()}
            if missing := [name for name, field in fields.items() if field.required and name not in names]:
                raise CheckpointError(
                    f"{file} lacks {', '.join(missing)}; it has {', '.join(sorted(names)) or 'nothing'}. {remedy}"
                )
            chosen = {name: archive.getinfo(names[name]) for name in fields if name in names}
            sizes: dict[str, int] = {}
            for name, info in chosen.items():
                _check_claim(archive, info, file)
                _check_shape(archive, info, name, fields[name], sizes)
            total = sum(info.file_size for info in chosen.values())
            if total > limit:
                raise ValueError(f"its arrays take {total:,} bytes, more than the limit of {limit:,}")
            arrays = {name: _read(archive, info, name, fields[name]) for name, info in chosen.items()}
    except CheckpointError:
        raise
    except (
        OSError, EOFError, ValueError, TypeError, KeyError, RuntimeError, MemoryError, OverflowError, SyntaxError,
        zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError,
    ) as error:  # fmt: skip
        raise CheckpointError(f"{file} can't be read ({error}). {remedy}") from error
    return arrays


def array_names(path: str | os.PathLike[str]) -> list[str]:
    """Names of the arrays in an .npz file; empty if the file cannot be read (`read_arrays` then raises the error)."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, ValueError, zipfile.BadZipFile):
        return []


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in HEADERS:
            raise ValueError(f"{info.filename} has version {version} of the npy format")
        shape, _, kind = HEADERS[version](stream)
        return shape, kind, stream.tell()


def _check_claim(archive: zipfile.ZipFile, info: zipfile.ZipInfo, file: Path) -> None:
    shape, kind, begins = _header(archive, info)
    if kind.hasobject:
        raise ValueError(f"{info.filename} holds Python objects, which are never loaded")
    claimed = prod(shape) * kind.itemsize
    if min(shape, default=0) < 0 or begins + claimed != info.file_size:
        raise ValueError(
            f"{info.filename} claims {claimed:,} bytes of {kind} {shape} but holds {info.file_size - begins:,}"
        )
    if info.compress_type not in RATIOS:
        raise ValueError(
            f"{info.filename} is packed by method {info.compress_type}, expected deflate, lzma or none"
        )
    packed = min(info.compress_size, file.stat().st_size)
    if info.file_size > RATIOS[info.compress_type] * packed:
        raise ValueError(
            f"{info.filename} claims {info.file_size:,} bytes, compressed to {packed:,}, which is impossible"
        )


def _check_shape(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, field: Field, sizes: dict[str, int]
) -> None:
    shape, kind, _ = _header(archive, info)
    fits = kind == np.uint8 if field.kind == "uint8" else kind.kind in KINDS[field.kind]
    if not fits or len(shape) != len(field.shape):
        raise ValueError(f"{name} is {kind} {shape}, expected {field.kind} {_shape_text(field)}")
    for size, wanted in zip(shape, field.shape, strict=True):
        expected = sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted
        if size != expected:
            where = f"{wanted} = {expected}" if isinstance(wanted, str) else f"{wanted}"
            raise ValueError(f"{name} has the shape {shape}, expected {_shape_text(field)} with {where}")
        if size < 1 and wanted not in MAY_BE_EMPTY:
            raise ValueError(f"{name} has the shape {shape}: it is empty")


def _shape_text(field: Field) -> str:
    return f"({', '.join(map(str, field.shape))}{',' if len(field.shape) == 1 else ''})"


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, field: Field) -> NDArray[Any]:
    with archive.open(info) as stream:
        array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
        if stream.read(1):  # the end of the member, where its checksum is compared
            raise ValueError(f"{info.filename} holds more data after its array")
    if field.kind == "text":
        array.tolist()  # raises an error for invalid code points
    if field.finite and array.dtype.kind == "f" and not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise ValueError(f"{name} holds {count} values that are NaN or infinite, of {array.size}")
    return array


def host_array(value: Any) -> np.ndarray:
    """A tensor on any device, an array or a list as a NumPy array."""
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
