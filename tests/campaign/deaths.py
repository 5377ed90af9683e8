"""Faults at a chosen change of the file system: the process dies before it, or the change fails from then on.

Python's own calls are wrapped: rename, replace, unlink, mkdir, rmdir, fsync, opening a file for writing, and the
writers of safetensors and parquet, which write in native code. Only changes below one folder are counted.

Example::

    count = watch(Path("out"))             # counts
    watch(Path("out"), at=17)              # the process ends before the 17th change, as by a kill
    watch(Path("out"), at=17, error=28)    # the 17th and all later ones fail with "no space left on device"
"""

from __future__ import annotations

import builtins
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = ("rename", "replace", "unlink", "remove", "mkdir", "rmdir", "fsync")
NEED_SPACE = ("mkdir", "open", "fsync", "save_file", "write_table", "ParquetWriter")
KILLED = 137


class Watch:
    """Number of changes seen so far."""

    def __init__(self, folder: Path, at: int | None, error: int | None) -> None:
        self.folder, self.at, self.error = os.path.abspath(folder), at, error
        self.count = 0

    def change(self, what: str, place: Any) -> None:
        """Called before each change."""
        if not self._counts(place):
            return
        self.count += 1
        if self.at is None or self.count < self.at:
            return
        if self.error is None:
            os._exit(KILLED)
        if what in NEED_SPACE:
            raise OSError(
                self.error, os.strerror(self.error), place if isinstance(place, str | Path) else None
            )

    def _counts(self, place: Any) -> bool:
        if isinstance(place, int):
            try:
                place = os.readlink(f"/proc/self/fd/{place}")
            except OSError:
                return False
        try:
            path = os.path.abspath(os.fsdecode(place))
        except TypeError:
            return False
        return path == self.folder or path.startswith(self.folder + os.sep)


def watch(folder: Path, at: int | None = None, error: int | None = None) -> Watch:
    """Count changes below `folder` in this process; see the module. It can't be undone: call it in a child."""
    state = Watch(folder, at, error)
    for name in NAMES:
        setattr(os, name, _wrapped(getattr(os, name), name, state))
    plain = io.open

    def opened(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if set(mode) & set("wax+"):
            state.change("open", file)
        return plain(file, mode, *rest, **more)

    builtins.open = io.open = opened  # type: ignore[assignment]
    import pyarrow.parquet

    from worldgym.utils import tensors

    save, write = tensors.save_file, pyarrow.parquet.write_table

    def saved(values: Any, where: Any, **more: Any) -> Any:
        state.change("save_file", where)
        return save(values, where, **more)

    def written(table: Any, where: Any, *rest: Any, **more: Any) -> Any:
        state.change("write_table", where)
        return write(table, where, *rest, **more)

    tensors.save_file, pyarrow.parquet.write_table = saved, written
    writer = pyarrow.parquet.ParquetWriter

    class Writer(writer):  # type: ignore[misc,valid-type]
        def __init__(self, where: Any, *rest: Any, **more: Any) -> None:
            state.change("ParquetWriter", where)
            super().__init__(where, *rest, **more)

    pyarrow.parquet.ParquetWriter = Writer
    return state


def _wrapped(call: Callable[..., Any], name: str, state: Watch) -> Callable[..., Any]:
    def changed(place: Any, *rest: Any, **more: Any) -> Any:
        at = more.get("dir_fd") or more.get("src_dir_fd")
        named = place
        if at is not None and not os.path.isabs(os.fsdecode(place)):
            named = os.path.join(os.readlink(f"/proc/self/fd/{at}"), os.fsdecode(place))
        state.change(name, named)
        return call(place, *rest, **more)

    return changed
