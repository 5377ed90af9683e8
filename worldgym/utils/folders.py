"""Folders of files that belong together: replaced as a whole, and verified when they are loaded.

A model is a config and weights; a checkpoint is weights, optimizer and counters. Files of two different saves in one
folder are worse than none. So a save is written aside, with `manifest.json` (size and SHA-256 of every file), flushed
to the disk, and committed by one rename:

- a new folder is renamed to its name;
- in a folder that exists, the staged folder is renamed to `.commit`, and its files are then moved over the old ones. A
  process that dies during the moves leaves `.commit`; whoever opens the folder next finishes them.

So the folder holds the old save or the new one. Files in it that no manifest lists (TensorBoard events, videos) stay.

Example::

    from worldgym.utils.folders import save_folder, verify_folder
    with save_folder("runs/judge") as folder:
        (folder / "config.json").write_text("{}")
    verify_folder("runs/judge", ("config.json",), remedy="train it with `worldgym train judge`")
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from worldgym.errors import CheckpointError, ConfigError
from worldgym.utils.files import file_sha256
from worldgym.utils.staging import fsync, locked, staging, sweep_once

MANIFEST, COMMIT, FORMAT = "manifest.json", ".commit", 1
RUN_FILES = ("checkpoint", "tensorboard", "run.json", "training.json")
"""What a training run leaves beside its result."""


@contextlib.contextmanager
def save_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder; what the block writes into it becomes the content of `folder` when it ends well.

    Files of the previous save are replaced or removed; other files of `folder` stay.

    Raises:
        ConfigError: `folder` exists and is a file, or the block wrote nothing.
        OSError: for example a full disk; the old save is as it was.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise ConfigError(
            f"{target} is a file, and a folder of files is to be saved there. Choose another name."
        )
    target = target.resolve()
    if target.is_dir():
        settle(target)
    with staging(target if target.is_dir() else target.parent) as stage:
        yield stage
        files = [path for path in sorted(stage.rglob("*")) if path.is_file()]
        if not files:
            raise ConfigError(f"nothing was written for {target}; the folder is as it was")
        _write_manifest(stage, files)
        for path in (*files, stage / MANIFEST, *sorted(p for p in stage.rglob("*") if p.is_dir()), stage):
            fsync(path)
        if target.is_dir():
            _commit(stage, target)
            _finish(target)
        else:
            os.rename(stage, target)
            fsync(target.parent)


def _commit(stage: Path, target: Path) -> None:
    while True:
        try:
            os.rename(stage, target / COMMIT)  # from here on the new save is the valid one
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            settle(target)  # another process or thread is committing to the same folder: let it finish


def seal_folder(folder: str | os.PathLike[str]) -> None:
    """Write the manifest of a folder whose files are already in place, all of them, sub-folders included."""
    root = Path(folder)
    _write_manifest(root, [path for path in sorted(root.rglob("*")) if path.is_file()])


def _write_manifest(root: Path, files: Sequence[Path]) -> None:
    listed = {
        path.relative_to(root).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in files
        if path != root / MANIFEST
    }
    text = json.dumps({"format": FORMAT, "files": listed}, indent=1, sort_keys=True) + "\n"
    (root / MANIFEST).write_text(text, encoding="utf-8")


def settle(folder: str | os.PathLike[str]) -> None:
    """Finish a save that was committed and interrupted, and remove what dead processes left in the folder.

    Raises:
        CheckpointError: the save can't be finished, for example in a read-only folder.
    """
    target = Path(folder)
    if (target / COMMIT).is_dir():
        try:
            with locked(target / COMMIT) as held:
                if held:
                    _finish(target)
        except OSError as error:
            raise CheckpointError(
                f"a save into {target} was interrupted and can't be finished here ({error}). Open the folder once "
                "with write permission, or copy it to a writable disk"
            ) from error
    sweep_once(target)


def _finish(target: Path) -> None:
    """Move what is committed over the old files; may be interrupted and repeated at any point."""
    commit = target / COMMIT
    if (commit / MANIFEST).is_file():  # else everything is moved and only the empty folder is left
        new = _listed(commit / MANIFEST)
        with contextlib.suppress(CheckpointError):  # a damaged old manifest lists nothing to remove
            if (target / MANIFEST).is_file():
                for name in set(_listed(target / MANIFEST)) - set(new):
                    with contextlib.suppress(OSError):
                        (target / name).unlink()
        for name in new:
            source, final = commit / name, target / name
            if source.is_file():
                final.parent.mkdir(parents=True, exist_ok=True)
                os.replace(source, final)
        for parent in {Path(name).parent for name in new}:
            fsync(target / parent)
        os.replace(commit / MANIFEST, target / MANIFEST)
        fsync(target)
    shutil.rmtree(commit, ignore_errors=True)


def _listed(manifest: Path) -> dict[str, dict[str, Any]]:
    remedy = f"Restore it from a copy, or remove it to load {manifest.parent} without that check"
    try:
        data = json.loads(manifest.read_text(encoding="utf-8"))
        files = data["files"]
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']}, this version reads {FORMAT}")
        for name, entry in files.items():
            parts = Path(name).parts
            if not parts or Path(name).is_absolute() or ".." in parts:
                raise ValueError(f"the file name {name!r} leaves the folder")
            if not isinstance(entry["bytes"], int) or not isinstance(entry["sha256"], str):
                raise TypeError(f"the entry of {name!r} is no size and hash")
        return dict(files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{manifest} is damaged ({error!r}). {remedy}") from error


def verify_folder(folder: str | os.PathLike[str], files: Sequence[str], remedy: str) -> Path:
    """Check that `files` are in a folder and are what was saved there; call before reading them.

    A folder without `manifest.json`, which somebody else or an earlier version wrote, is only checked for the files.

    Args:
        folder: of `save_folder`.
        files: names relative to it.
        remedy: what the user should do about a missing or damaged file; ends the error's message.

    Returns:
        the folder.

    Raises:
        CheckpointError: no such folder, a file is missing, or its size or hash is not the manifest's.
    """
    root = Path(folder)
    if not root.is_dir():
        raise CheckpointError(f"there is no folder {root}; {remedy}")
    settle(root)
    missing = [name for name in files if not (root / name).is_file()]
    if missing:
        raise CheckpointError(f"{root} holds no {' and no '.join(missing)}; {remedy}")
    if not (root / MANIFEST).is_file():
        return root
    problem = None
    for _ in range(3):  # a living process may replace the files while they are read
        problem = _problem(root, files)
        if problem is None:
            return root
        settle(root)
    raise CheckpointError(
        f"{problem}: it was damaged or edited after it was saved. {remedy[:1].upper()}{remedy[1:]}; or, if the edit is "
        f"yours, remove {root / MANIFEST} to load the files as they are"
    )


def verify_listed(folder: str | os.PathLike[str], remedy: str) -> Path:
    """`verify_folder` of every file that the folder's manifest lists.

    Raises:
        CheckpointError: no such folder, no manifest, or a file is missing or not what was saved.
    """
    root = verify_folder(folder, (), remedy)
    if not (root / MANIFEST).is_file():
        raise CheckpointError(f"{root} holds no {MANIFEST}; {remedy}")
    return verify_folder(root, sorted(_listed(root / MANIFEST)), remedy)


def files_of(folder: str | os.PathLike[str]) -> list[str]:
    """Names, relative to a saved folder, of what belongs to it: what its manifest lists, or all files without one.

    What a training run leaves beside its result (checkpoints, logs, its marker) and hidden files do not belong to it.

    Raises:
        CheckpointError: no such folder, or a damaged manifest.
    """
    root = Path(folder)
    if not root.is_dir():
        raise CheckpointError(f"there is no folder {root}; give one written by save_pretrained")
    settle(root)
    if (root / MANIFEST).is_file():
        return sorted(_listed(root / MANIFEST))
    found = (path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file())
    return [
        name.as_posix() for name in found if name.parts[0] not in RUN_FILES and name.parts[0][0] not in "._"
    ]


def verify_file(file: str | os.PathLike[str], remedy: str) -> Path:
    """Check one file against the `manifest.json` beside it, when that is a manifest of `save_folder` and lists it.

    Returns:
        the file; whether it exists is not checked when no manifest lists it.

    Raises:
        CheckpointError: as `verify_folder`.
    """
    path = Path(file)
    manifest = path.parent / MANIFEST
    try:
        data = json.loads(manifest.read_text(encoding="utf-8"))
        listed = data["files"] if data["format"] == FORMAT else {}
    except FileNotFoundError:
        return path
    except (OSError, ValueError, RecursionError):
        listed = {path.name: None}  # let verify_folder say what is wrong with it
    except (KeyError, TypeError):
        return path  # JSON of that name, written by somebody else
    if isinstance(listed, dict) and path.name in listed:
        verify_folder(path.parent, (path.name,), remedy)
    return path


def _problem(root: Path, files: Sequence[str]) -> str | None:
    listed = _listed(root / MANIFEST)
    for name in files:
        path, entry = root / name, listed.get(name)
        if entry is None:
            return f"{path} is not listed in {MANIFEST}"
        if path.stat().st_size != entry["bytes"]:
            return f"{path} has {path.stat().st_size} bytes, {MANIFEST} says {entry['bytes']}"
        if file_sha256(path) != entry["sha256"]:
            return f"{path} has another SHA-256 than {MANIFEST} says"
    return None
