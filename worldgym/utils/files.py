"""Saving so that the old file survives whatever goes wrong: a full disk, a kill, an error half way.

Everything is written under a temporary name on the same file system, flushed to the disk, and only then renamed over
the old file, which is atomic on POSIX.

Example::

    from worldgym.utils.files import atomic_save, atomic_write_bytes
    atomic_write_bytes("runs/a/results.json", b"{}")
    with atomic_save("runs/a/model") as folder:          # an empty temporary folder
        (folder / "config.json").write_text("{}")        # appears in runs/a/model when the block ends well
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from worldgym.errors import ConfigError

_PREFIX = ".tmp-"


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write `data` to `path`, making parent folders; on any error the old file is as it was.

    Raises:
        OSError: as `open` and `write` do, for example when the disk is full.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{_PREFIX}{os.getpid()}-{target.name}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _fsync(target.parent)
    return target


def atomic_write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write `text` as UTF-8; see `atomic_write_bytes`."""
    return atomic_write_bytes(path, text.encode("utf-8"))


@contextlib.contextmanager
def atomic_save(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty temporary folder; its files replace those of `folder` when the block ends without an error.

    Files of `folder` that the block didn't write stay. Nothing is renamed before everything is on the disk, so a full
    disk leaves the old files whole.

    Raises:
        ConfigError: `folder` exists and is a file.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise ConfigError(
            f"{target} is a file, and a folder of files is to be saved there. Choose another name."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    # mkdtemp makes the folder private; files in it get the ordinary mode, and only they are moved.
    temporary = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{target.name}-", dir=target.parent))
    try:
        yield temporary
        written = sorted(path for path in temporary.rglob("*") if path.is_file())
        for path in written:
            _fsync(path)
        for path in written:
            final = target / path.relative_to(temporary)
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, final)
        if target.is_dir():
            _fsync(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
