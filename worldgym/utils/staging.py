"""Temporary folders that their owner locks, so that anybody can tell a dead process's leftovers from work in progress.

Everything that must appear whole is first written into such a folder, which lies on the file system of its
destination, and is then renamed. The owner holds an advisory lock on the folder; the operating system drops it when
the process ends, however it ends. The next process that writes there removes what is no longer locked.

Example::

    from worldgym.utils.staging import staging, sweep
    with staging(Path("runs/a")) as folder:      # runs/a/.tmp-3f0c..., locked, removed at the end of the block
        (folder / "x").write_bytes(b"...")
        os.replace(folder / "x", "runs/a/x")
    sweep(Path("runs/a"))                        # removes unlocked .tmp-* entries: their processes are dead
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows, where leftovers are kept: nothing tells whether their owner lives
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

PREFIX = ".tmp-"
OURS = re.compile(r"\.tmp-([0-9a-f]{12}|\d+-.+|.+-[a-z0-9_]{8})")
"""Names that `staging` and earlier versions gave; anything else of that prefix is somebody else's and stays."""
_swept: set[tuple[int, str]] = set()


def fsync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """Yield a new, empty, locked folder in `parent`, which is made when needed; remove it when the block ends.

    The block may rename the folder: then it stays. Its mode is the ordinary one of new folders.

    Raises:
        OSError: the folder can't be made, for example because the disk is full.
    """
    parent.mkdir(parents=True, exist_ok=True)
    sweep_once(parent)
    folder, descriptor = _locked(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _locked(parent: Path) -> tuple[Path, int]:
    while True:
        folder = parent / f"{PREFIX}{secrets.token_hex(6)}"
        folder.mkdir()
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # a sweep took it for a leftover before it was locked
            continue
        if fcntl is not None:
            with contextlib.suppress(
                OSError
            ):  # some network file systems have no locks: then nothing is swept
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _same(folder, descriptor):
            return folder, descriptor
        os.close(descriptor)


def _same(path: Path, descriptor: int) -> bool:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    opened = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino)


def discard(folder: Path) -> None:
    """Remove a folder in one step: a process that dies leaves it whole, or a leftover that `sweep` removes."""
    aside = folder.with_name(f"{PREFIX}{secrets.token_hex(6)}")
    try:
        os.rename(folder, aside)
    except OSError:  # not there, or not allowed: then it stays
        return
    shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of an existing file or folder; yields False when it is gone, or in use and `wait` is False."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        taken = fcntl is not None
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError:
                taken = wait  # no locks on this file system: a waiting caller goes on without one
        yield taken and _same(path, descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> list[Path]:
    """Remove what dead processes left in `folder`; returns what was removed."""
    removed = []
    for path in _leftovers(folder):
        with locked(path, wait=False) as dead:
            if not dead:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()
            removed.append(path)
    if removed:
        logger.info("removed %d leftovers of dead processes from %s", len(removed), folder)
    return removed


def sweep_once(folder: Path) -> None:
    """`sweep`, at most once a process and folder: many small files are written to the same one."""
    key = (os.getpid(), str(folder.absolute()))
    if key not in _swept:
        _swept.add(key)
        sweep(folder)


def _leftovers(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if OURS.fullmatch(entry.name)]
    except OSError:
        return []
