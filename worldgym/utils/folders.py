"""Atomic saves of folders, whose files are replaced together and verified when they are loaded.

A model consists of config and weights, a checkpoint of weights, optimizer and counters. A folder must never mix files
of two saves. A save is therefore written to a temporary folder, with `manifest.json` (size and SHA-256 of every file),
flushed to disk, and committed by one rename:

- a new folder is renamed to its final name;
- if the target folder exists, the temporary folder is renamed to `.commit` inside it, and its files are then moved over
  the old ones. If the process is killed during the moves, `.commit` remains, and the next process that opens the folder
  completes them.

So the folder holds either the old save or the new one. Files that no manifest lists (TensorBoard events, videos) are
kept.

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
"""Files and folders of a training run that do not belong to its result."""


@contextlib.contextmanager
def save_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder; its files become the content of `folder` when the block ends without an error.

    Files of the previous save are replaced or removed; other files of `folder` are kept.

    Raises:
        ConfigError: `folder` is a file, or the block wrote nothing.
        OSError: writing failed, e.g. because the disk is full; the old save is unchanged.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise ConfigError(
            f"{target} is a file; expected the path of a folder. Choose another name."
        )
    target = target.resolve()
    if target.is_dir():
        settle(target)
    with staging(target if target.is_dir() else target.parent) as stage:
        yield stage
        files = [path for path in sorted(stage.rglob("*")) if path.is_file()]
        if not files:
            raise ConfigError(f"nothing was written for {target}; the folder is unchanged")
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
            settle(target)  # another process or thread is committing to the same folder; wait until it is done


def seal_folder(folder: str | os.PathLike[str]) -> None:
    """Write the manifest of all files that a folder already holds, including those in sub-folders."""
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
    """Complete a save that was interrupted after its commit, and remove temporary files of ended processes.

    Raises:
        CheckpointError: the save cannot be completed, e.g. because the folder is read-only.
    """
    target = Path(folder)
    if (target / COMMIT).is_dir():
        try:
            with locked(target / COMMIT) as acquired:
                if acquired:
                    _finish(target)
        except OSError as error:
            raise CheckpointError(
                f"a save into {target} was interrupted and can't be completed ({error}). Open the folder once with "
                "write permission, or copy it to a writable disk"
            ) from error
    sweep_once(target)


def _finish(target: Path) -> None:
    """Move the committed files over the old ones; may be interrupted at any point and repeated."""
    commit = target / COMMIT
    if (commit / MANIFEST).is_file():  # otherwise all files are moved and only the folder remains
        new = _listed(commit / MANIFEST)
        with contextlib.suppress(CheckpointError):  # with a damaged old manifest, no old files are removed
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
                raise ValueError(f"the file name {name!r} is outside the folder")
            if not isinstance(entry["bytes"], int) or not isinstance(entry["sha256"], str):
                raise TypeError(f"the entry of {name!r} does not hold a size and a hash")
        return dict(files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{manifest} is damaged ({error!r}). {remedy}") from error


def verify_folder(folder: str | os.PathLike[str], files: Sequence[str], remedy: str) -> Path:
    """Check that `files` exist in a folder and match its manifest; call this before reading them.

    A folder without `manifest.json`, e.g. of other software or an earlier version, is only checked for missing files.

    Args:
        folder: folder written by `save_folder`.
        files: file names relative to the folder.
        remedy: instruction for the user if a file is missing or damaged; the end of the error message.

    Returns:
        The folder.

    Raises:
        CheckpointError: there is no such folder, a file is missing, or its size or hash differs from the manifest.
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
    for _ in range(3):  # another process may replace the files while they are read
        problem = _problem(root, files)
        if problem is None:
            return root
        settle(root)
    raise CheckpointError(
        f"{problem}: it was damaged or edited after it was saved. {remedy[:1].upper()}{remedy[1:]}; or, if the edit is "
        f"yours, remove {root / MANIFEST} to load the files as they are"
    )


def verify_listed(folder: str | os.PathLike[str], remedy: str) -> Path:
    """Call `verify_folder` for every file that the folder's manifest lists.

    Raises:
        CheckpointError: there is no such folder or no manifest, or a file is missing or was changed.
    """
    root = verify_folder(folder, (), remedy)
    if not (root / MANIFEST).is_file():
        raise CheckpointError(f"{root} holds no {MANIFEST}; {remedy}")
    return verify_folder(root, sorted(_listed(root / MANIFEST)), remedy)


def files_of(folder: str | os.PathLike[str]) -> list[str]:
    """Relative names of the files that belong to a saved folder: those in its manifest, or all files without one.

    Other files of a training run (checkpoints, logs, run metadata) and hidden files are not included.

    Raises:
        CheckpointError: there is no such folder, or its manifest is damaged.
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
    """Check one file against the `manifest.json` in its folder.

    The file is checked only if `save_folder` wrote the manifest and the manifest lists the file.

    Returns:
        The file. If no manifest lists it, its existence is not checked.

    Raises:
        CheckpointError: see `verify_folder`.
    """
    path = Path(file)
    manifest = path.parent / MANIFEST
    try:
        data = json.loads(manifest.read_text(encoding="utf-8"))
        listed = data["files"] if data["format"] == FORMAT else {}
    except FileNotFoundError:
        return path
    except (OSError, ValueError, RecursionError):
        listed = {path.name: None}  # verify_folder will raise the error
    except (KeyError, TypeError):
        return path  # a JSON file of that name by other software
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
            return f"{path} has {path.stat().st_size} bytes, but {MANIFEST} lists {entry['bytes']}"
        if file_sha256(path) != entry["sha256"]:
            return f"{path} has another SHA-256 than {MANIFEST} lists"
    return None
