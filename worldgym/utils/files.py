"""Atomic writes of single files: if writing fails or the process is killed, the old file stays unchanged.

A file is written under a temporary name on the same file system, flushed to disk, and then renamed over the old file,
which is atomic on POSIX. `worldgym.utils.folders` does the same for folders.

Example::

    from worldgym.utils.files import atomic_write_text, read_sealed, write_sealed
    atomic_write_text("runs/a/config.yaml", "seed: 0")
    write_sealed("runs/a/round.json", {"success": 0.7})   # with a hash, so that later changes are detected
    read_sealed("runs/a/round.json")                      # {"success": 0.7}
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worldgym.errors import CheckpointError, ConfigError
from worldgym.utils.staging import fsync, staging

SEAL = "sha256"


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path, which is renamed to `path` when the block ends without an error.

    Raises:
        ConfigError: `path` is a folder.
        OSError: writing failed, e.g. because the disk is full; the old file is unchanged.
    """
    target = Path(path)
    if target.is_dir():
        raise ConfigError(f"{target} is a folder; expected the path of a file. Choose another name.")
    with staging(target.parent) as folder:
        temporary = folder / target.name
        yield temporary
        fsync(temporary)
        os.replace(temporary, target)
        fsync(target.parent)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write `data` to `path` and create parent folders; on any error the old file stays unchanged.

    Raises:
        ConfigError: `path` is a folder.
        OSError: writing failed, e.g. because the disk is full.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write `text` as UTF-8; see `atomic_write_bytes`."""
    return atomic_write_bytes(path, text.encode("utf-8"))


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the content of a file, 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _content_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_sealed(path: str | os.PathLike[str], value: Any, *, indent: int | None = None) -> Path:
    """Write JSON with a hash of its content; `read_sealed` raises an error if the content has changed.

    A dictionary gets the entry `sha256`; any other value is stored as `{"value": ..., "sha256": ...}`.

    Raises:
        OSError: see `atomic_write_bytes`.
        TypeError: `value` cannot be written as JSON.
    """
    plain = json.loads(json.dumps(value))
    body = plain if isinstance(plain, dict) and SEAL not in plain else {"value": plain}
    return atomic_write_text(path, json.dumps({**body, SEAL: _content_hash(body)}, indent=indent) + "\n")


def read_json(path: str | os.PathLike[str], remedy: str) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        remedy: instruction for the user if the file is damaged; the end of the error message.

    Raises:
        CheckpointError: the file is not readable, not UTF-8, or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} can't be read ({error}). {remedy}") from error


def read_sealed(path: str | os.PathLike[str], remedy: str, *, required: bool = True) -> Any:
    """Read a file of `write_sealed` and check its hash.

    Args:
        path: the file.
        remedy: instruction for the user if the file is damaged; the end of the error message.
        required: require a hash; False also reads files of earlier versions without a hash.

    Raises:
        CheckpointError: the file is not readable, not JSON, or was changed since it was written.
    """
    data = read_json(path, remedy)
    if not isinstance(data, dict) or SEAL not in data:
        if required:
            raise CheckpointError(f"{path} holds no {SEAL}: it is damaged or of an earlier version. {remedy}")
        return data
    body = {key: value for key, value in data.items() if key != SEAL}
    if data[SEAL] != _content_hash(body):
        raise CheckpointError(
            f"{path} has changed since it was written: its content does not match its {SEAL}. {remedy}"
        )
    return body["value"] if set(body) == {"value"} else body
