"""Locked temporary folders for atomic writes; unlocked ones belong to ended processes and are removed.

Files are first written to a temporary folder on the file system of their destination and then renamed. The process
holds an advisory lock on the folder, which the operating system releases when the process ends for any reason. The next
process that writes to the same place removes temporary folders that are no longer locked.

Example::

    from worldgym.utils.staging import staging, sweep
    with staging(Path("runs/a")) as folder:      # runs/a/.tmp-3f0c..., locked, removed at the end of the block
        (folder / "x").write_bytes(b"...")
        os.replace(folder / "x", "runs/a/x")
    sweep(Path("runs/a"))                        # removes .tmp-* entries that no running process has locked
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
except ImportError:  # Windows has no fcntl; there temporary folders are never removed, since locks are unavailable
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

PREFIX = ".tmp-"
OURS = re.compile(r"\.tmp-([0-9a-f]{12}|\d+-.+|.+-[a-z0-9_]{8})")
"""Names used by `staging` in this and earlier versions; other names with this prefix are never removed."""
_swept: set[tuple[int, str]] = set()


def fsync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """Yield a new, empty, locked folder in `parent`, and remove it when the block ends.

    `parent` is created if needed. If the block renames the folder, it is kept. The folder has default permissions.

    Raises:
        OSError: the folder cannot be created, e.g. because the disk is full.
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
        except FileNotFoundError:  # another process removed it before it was locked
            continue
        if fcntl is not None:
            with contextlib.suppress(
                OSError
            ):  # some network file systems have no locks; temporary folders are then never removed
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
    """Remove a folder atomically: it is first renamed, and if the process is killed then, `sweep` removes the rest."""
    aside = folder.with_name(f"{PREFIX}{secrets.token_hex(6)}")
    try:
        os.rename(folder, aside)
    except OSError:  # the folder does not exist, or may not be renamed
        return
    shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Lock an existing file or folder; yields False if it no longer exists, or if it is locked and `wait` is False."""
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
                taken = wait  # this file system has no locks; a caller with `wait` continues without one
        yield taken and _same(path, descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> list[Path]:
    """Remove temporary files of ended processes from `folder`; returns the removed paths."""
    removed = []
    for path in _leftovers(folder):
        with locked(path, wait=False) as acquired:
            if not acquired:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()
            removed.append(path)
    if removed:
        logger.info("removed %d temporary entries of ended processes from %s", len(removed), folder)
    return removed


def sweep_once(folder: Path) -> None:
    """Call `sweep` at most once per process and folder, since many small files are written to the same folder."""
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


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder, unless `target` exists. A copy that is killed leaves no `target`."""
    if target.exists():
        return
    with staging(target.parent) as stage:
        shutil.copytree(source, stage / target.name)
        (stage / target.name).rename(target)
