"""How files are damaged: single bits, cut ends, other types in JSON, arrays that claim what they don't hold.

An operator takes a file and a random generator, changes the file and says what it did, or returns None where it does
not apply. Operators never look at the outcome.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Operator = Callable[[Path, random.Random, Path], str | None]
OTHER_VALUES: tuple[Any, ...] = (
    True, "3", None, {}, [], 10**30, float("nan"), float("inf"), -1, 0, 1.5, "../../etc/passwd", "/etc/passwd",
    [[[[[1]]]]], {"a": {"b": {"c": None}}}, "x" * 5000, "\u202e\x00", 2**63,
)  # fmt: skip
TEXTS = (".json", ".jsonl", ".yaml", ".txt")


def _bytes(change: Callable[[bytearray, random.Random], str | None]) -> Operator:
    def operate(path: Path, rng: random.Random, root: Path) -> str | None:
        data = bytearray(path.read_bytes())
        if not data:
            return None
        told = change(data, rng)
        if told is not None:
            path.write_bytes(data)
        return told

    return operate


def _flip_bit(data: bytearray, rng: random.Random) -> str:
    at, bit = rng.randrange(len(data)), rng.randrange(8)
    data[at] ^= 1 << bit
    return f"bit {bit} of byte {at}"


def _truncate(data: bytearray, rng: random.Random) -> str:
    length = rng.randrange(len(data))
    del data[length:]
    return f"cut to {length} bytes"


def _empty(data: bytearray, rng: random.Random) -> str:
    data.clear()
    return "emptied"


def _append(data: bytearray, rng: random.Random) -> str:
    extra = rng.choice((b"\0" * 8, b"{}", b"\n", bytes(rng.randrange(256) for _ in range(32))))
    data += extra
    return f"{len(extra)} bytes appended"


def _zero(data: bytearray, rng: random.Random) -> str:
    at = rng.randrange(len(data))
    size = min(rng.choice((16, 512, 4096)), len(data) - at)
    data[at : at + size] = bytes(size)
    return f"{size} bytes from {at} on are zero"


def _shift(data: bytearray, rng: random.Random) -> str:
    at = rng.randrange(len(data))
    del data[at]
    return f"byte {at} removed"


def _low_bit(path: Path, rng: random.Random, root: Path) -> str | None:
    """The lowest bit of one number of a weight file: no format notices, only a checksum does."""
    if path.suffix != ".safetensors":
        return None
    data = bytearray(path.read_bytes())
    header = struct.unpack("<Q", data[:8])[0] + 8
    if header >= len(data):
        return None
    at = header + 4 * rng.randrange((len(data) - header) // 4 or 1)
    data[at] ^= 1
    path.write_bytes(data)
    return f"lowest bit of byte {at}"


def _delete(path: Path, rng: random.Random, root: Path) -> str:
    path.unlink()
    return "deleted"


def _swap(path: Path, rng: random.Random, root: Path) -> str | None:
    others = [p for p in sorted(root.rglob("*")) if p.is_file() and p != path and p.suffix == path.suffix]
    if not others:
        return None
    other = rng.choice(others)
    if other.read_bytes() == path.read_bytes():
        return None
    aside = path.with_name(path.name + "-aside")
    path.rename(aside)
    other.rename(path)
    aside.rename(other)
    return f"swapped with {other.relative_to(root)}"


def _folder_instead(path: Path, rng: random.Random, root: Path) -> str:
    path.unlink()
    path.mkdir()
    return "a folder stands there"


def _json(change: Callable[[Any, Any, random.Random], str | None]) -> Operator:
    """`change` gets a container and one of its keys, chosen at random."""

    def operate(path: Path, rng: random.Random, root: Path) -> str | None:
        if path.suffix not in (".json", ".jsonl"):
            return None
        text = path.read_text()
        lines = text.splitlines() if path.suffix == ".jsonl" else [text]
        number = rng.randrange(len(lines)) if lines else 0
        data = json.loads(lines[number])
        places = list(_places(data, ""))
        if not places:
            return None
        holder, key, name = rng.choice(places)
        told = change(holder, key, rng)
        if told is None:
            return None
        if told.startswith("RAW"):
            _, told, lines[number] = told.split("\0")
        else:
            lines[number] = json.dumps(data)
        path.write_text("\n".join(lines) + ("\n" if path.suffix == ".jsonl" else ""))
        return f"{name}: {told}"

    return operate


def _places(value: Any, name: str) -> Any:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        yield value, key, f"{name}/{key}"
        yield from _places(below, f"{name}/{key}")


def _other_value(holder: Any, key: Any, rng: random.Random) -> str:
    holder[key] = rng.choice(OTHER_VALUES)
    return f"becomes {json.dumps(holder[key])[:40]}"


def _next_number(holder: Any, key: Any, rng: random.Random) -> str | None:
    value = holder[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    holder[key] = rng.choice(
        (value + 1, -value, value * 1000, float(value) if isinstance(value, int) else int(value))
    )
    return f"{value} becomes {holder[key]}"


def _remove_key(holder: Any, key: Any, rng: random.Random) -> str:
    del holder[key]
    return "removed"


def _rename_key(holder: Any, key: Any, rng: random.Random) -> str | None:
    if not isinstance(holder, dict):
        return None
    holder[f"{key}_"] = holder.pop(key)
    return "renamed"


def _extra_key(holder: Any, key: Any, rng: random.Random) -> str | None:
    if not isinstance(holder, dict):
        return None
    holder["surprise"] = rng.choice(OTHER_VALUES)
    return "another key beside it"


def _whole(path: Path, rng: random.Random, root: Path) -> str | None:
    if path.suffix not in (".json", ".jsonl"):
        return None
    text = rng.choice(("[]", "{}", "null", "3", '"x"', "[" * 5000, '{"a":' * 3000, "{", "NaN", "{'a': 1}"))
    path.write_text(text)
    return f"holds {text[:12]}"


def _duplicate_key(path: Path, rng: random.Random, root: Path) -> str | None:
    if path.suffix != ".json":
        return None
    data = json.loads(path.read_text())
    if not isinstance(data, dict) or not data:
        return None
    key = rng.choice(sorted(data))
    text = path.read_text().rstrip()
    path.write_text(text[:-1].rstrip() + f", {json.dumps(key)}: {json.dumps(rng.choice((0, 'x', None)))}}}")
    return f"{key} twice"


def _bom(path: Path, rng: random.Random, root: Path) -> str | None:
    if path.suffix not in TEXTS:
        return None
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    return "byte order mark"


def _other_code(path: Path, rng: random.Random, root: Path) -> str | None:
    if path.suffix not in TEXTS:
        return None
    text = path.read_text()
    path.write_bytes(
        rng.choice((text.encode("utf-16"), b"\xff\xfe" + text.encode(), text.encode()[:-2] + b"\xe9}"))
    )
    return "not UTF-8"


def _member(path: Path, rng: random.Random, root: Path) -> str | None:
    """One array of an archive is reshaped, of another type, missing, or claims 36 GiB."""
    if path.suffix != ".npz":
        return None
    import numpy as np

    with np.load(path, allow_pickle=False) as found:
        arrays = {name: found[name] for name in found.files}
    name = rng.choice(sorted(arrays))
    value = arrays[name]
    how = rng.choice(("flat", "last row gone", "other type", "missing", "huge", "NaN", "objects", "empty"))
    huge = None
    if how == "flat":
        arrays[name] = value.reshape(-1)
    elif how == "last row gone":
        arrays[name] = value[:-1]
    elif how == "other type":
        arrays[name] = value.astype("U8") if value.dtype.kind in "fiu" else np.arange(len(value))
    elif how == "missing":
        del arrays[name]
    elif how == "NaN":
        arrays[name] = np.full(value.shape, np.nan, np.float32)
    elif how == "objects":
        arrays[name] = np.array([None] * max(1, len(value)), dtype=object)
    elif how == "empty":
        arrays[name] = value[:0]
    else:
        huge = name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in arrays.items():
            stream = io.BytesIO()
            if key == huge:
                np.lib.format.write_array_header_1_0(
                    stream, {"descr": "<f4", "fortran_order": False, "shape": (9 * 2**30,)}
                )
                stream.write(bytes(64))
            else:
                np.lib.format.write_array(stream, array, allow_pickle=True)
            archive.writestr(f"{key}.npy", stream.getvalue())
    return f"{name}: {how}"


def _header(path: Path, rng: random.Random, root: Path) -> str | None:
    """The header of a weight file: another type, another shape, another name, or a length that is not there."""
    if path.suffix != ".safetensors":
        return None
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    head = json.loads(data[8 : 8 + size])
    name = rng.choice(sorted(key for key in head if key != "__metadata__"))
    how = rng.choice(("type", "shape", "name", "length"))
    if how == "length":
        path.write_bytes(struct.pack("<Q", rng.choice((0, 2**40, size + 1))) + data[8:])
        return "another length of the header"
    if how == "type":
        head[name]["dtype"] = rng.choice(("F16", "I32", "BOOL", "F99"))
    elif how == "shape":
        head[name]["shape"] = list(reversed([*head[name]["shape"], 1]))
    else:
        head[f"{name}_"] = head.pop(name)
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    return f"{name}: another {how}"


OPERATORS: dict[str, Operator] = {
    "low bit": _low_bit, "bit": _bytes(_flip_bit), "cut": _bytes(_truncate), "empty": _bytes(_empty),
    "append": _bytes(_append), "zeros": _bytes(_zero), "byte gone": _bytes(_shift), "delete": _delete, "swap": _swap,
    "folder": _folder_instead, "value": _json(_other_value), "number": _json(_next_number),
    "key gone": _json(_remove_key), "key renamed": _json(_rename_key), "key added": _json(_extra_key),
    "other JSON": _whole, "key twice": _duplicate_key, "BOM": _bom, "not UTF-8": _other_code, "array": _member,
    "header": _header,
}  # fmt: skip
MEANING = (
    "low bit",
    "value",
    "number",
    "key gone",
    "key renamed",
    "key added",
    "other JSON",
    "array",
    "header",
)
"""Operators that keep the file readable and change what it says; tried more often, as formats notice the rest."""


def mutate(root: Path, file: str, operator: str, rng: random.Random) -> str | None:
    """Damage `file` below `root`; says how, or None when the operator does not apply (the file is as it was)."""
    path = root / file
    before = path.read_bytes()
    try:
        told = OPERATORS[operator](path, rng, root)
    except (ValueError, UnicodeDecodeError, KeyError, TypeError, zipfile.BadZipFile):
        told = None
        if path.is_dir():
            shutil.rmtree(path)
        path.write_bytes(before)
    if told is not None and path.is_file() and path.read_bytes() == before:
        return None
    return told
