"""Atomic JSON files, and the lock that allows a dataset only one writer.

A data collection may be killed at any time, or the disk may fill up. Files are therefore never written in place; see
`worldgym.utils.files`.

Example::

    from worldgym.data.files import write_json
    write_json(folder / "info.json", {"episodes": 3})
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from pathlib import Path
from typing import Any

from worldgym.errors import DatasetError
from worldgym.utils.files import atomic_path, file_sha256

try:
    import fcntl
except ImportError:  # Windows has no fcntl; there the lock file only names the writer and blocks nobody
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK_NAME = ".writer.lock"


def write_json(target: Path, data: Any) -> None:
    """Write `data` as indented JSON, atomically; NaN raises a ValueError, because JSON has no NaN."""
    text = json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    with atomic_path(target) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)


def describe_file(path: Path, root: Path) -> dict[str, Any]:
    """Return the path relative to `root`, the size in bytes and the SHA-256 of a file."""
    return {
        "path": path.relative_to(root).as_posix(),
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
    }


class WriterLock:
    """Lock that allows one writer per dataset; the operating system releases it when its process ends.

    Args:
        folder: the dataset's folder, which must exist.

    Raises:
        DatasetError: from `acquire`, if another running process holds the lock.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_NAME
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Acquire the lock, or raise an error that names the process that holds it."""
        while self._descriptor is None:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                if fcntl is not None:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 400, 0).decode(errors="replace").strip()
                os.close(descriptor)
                raise DatasetError(
                    f"another writer has {self.path.parent} open ({holder or 'unknown process'}); a dataset can have "
                    "one writer at a time: wait for it, stop it, or write to another folder"
                ) from None
            except BaseException:
                os.close(descriptor)
                raise
            # The former holder may have removed the file between open and lock; then this lock has no effect.
            try:
                same = os.fstat(descriptor).st_ino == os.stat(self.path).st_ino
            except FileNotFoundError:
                same = False
            if same:
                self._descriptor = descriptor
            else:
                os.close(descriptor)
        former = os.pread(self._descriptor, 400, 0).decode(errors="replace").strip()
        if former:
            logger.info("taking over the lock of a writer that has ended (%s) in %s", former, self.path.parent)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        """Release the lock; no effect if it is not acquired."""
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):
            self.path.unlink()
        os.close(self._descriptor)
        self._descriptor = None
