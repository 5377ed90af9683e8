"""Full disks, used-up quotas, read-only folders and size limits, for every long command.

`python -m tests.campaign.disks --count 130 --out disks.jsonl`. A case runs a command where writing fails, from its
start or after a kill. It is `explained` when the command ends with a sentence and exit code 2, goes on to the results
of an undisturbed run once there is space, and a finished run is as it was after the same fault. Kinds of fault:

- `full`: a small tmpfs (needs root on Linux; else `no-space`);
- `no-space`, `quota`: every change of the file system from the n-th on fails;
- `read-only`: a tmpfs mounted so (else the error is injected);
- `file-size`: RLIMIT_FSIZE, which native writers meet too.
"""

from __future__ import annotations

import errno
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import compare
from .harness import Ended, go, markdown, options, prepare, raw, said, wanted
from .kills import baseline, inputs_of, read, run
from .workspace import COMMANDS, Workspace, settle_settings

KINDS = ("full", "no-space", "quota", "read-only", "file-size")
ERRORS = {"full": errno.ENOSPC, "no-space": errno.ENOSPC, "quota": errno.EDQUOT, "read-only": errno.EROFS}
SENTINEL = "notes of somebody.txt"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; 1 when a case is bad."""
    given = options("disks", "Let writing fail in long commands.", 130, 10).parse_args(arguments)
    given.work = given.work.resolve()
    prepare()
    place = Workspace(given.work)
    names = cases(wanted(given), given.seed)
    chosen = [given.case] if given.case else [n for n in names if not given.only or n.startswith(given.only)]
    place.make(inputs_of({name.split(".")[0] for name in chosen}))
    settle_settings(place)
    book = go(given, names, lambda name, keep: case(place, name, keep))
    rows = list(book.rows.values())
    print(markdown(rows, "command") + "\n\n" + markdown(rows, "kind") if rows else "")
    return int(any(row["bad"] for row in rows))


def cases(count: int, seed: int) -> list[str]:
    """Names `COMMAND.KIND.SEED.NUMBER`: every command meets every kind before any meets one twice."""
    names, turns = list(COMMANDS), range(len(KINDS))
    pairs = [(name, KINDS[(i + turn) % len(KINDS)]) for turn in turns for i, name in enumerate(names)]
    return [f"{pairs[i % len(pairs)][0]}.{pairs[i % len(pairs)][1]}.{seed}.{i}" for i in range(count)]


class Disk:
    """A folder on a tmpfs of its own, or an ordinary one where mounting is not allowed.

    Args:
        folder: where it is.
        kind: of fault.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder = folder
        self.mounted = kind in ("full", "read-only") and self._mount("-t", "tmpfs", "-o", "size=1g", "tmpfs")

    def _mount(self, *words: str) -> bool:
        done = subprocess.run(["mount", *words, str(self.folder)], capture_output=True, check=False)
        return done.returncode == 0

    def fill(self, free: int) -> None:
        """Leave so many bytes."""
        used = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        size = max(4096, (used + free) // 4096 * 4096)
        self._mount("-o", f"remount,size={size}")

    def lock(self) -> None:
        """Make it read-only."""
        self._mount("-o", "remount,ro")

    def free(self) -> None:
        """Give it space and write access."""
        if self.mounted:
            self._mount("-o", "remount,rw,size=1g")

    def remove(self) -> None:
        """Unmount and delete it."""
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.folder)], capture_output=True, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def case(place: Workspace, name: str, keep: bool) -> dict[str, Any]:
    """Run one case."""
    which, how, *_ = name.split(".")
    began, rng = time.monotonic(), random.Random(name)
    whole = baseline(place, which)
    here = place.folder / "cases" / name
    log = here.with_suffix(".log")
    log.unlink(missing_ok=True)
    row: dict[str, Any] = {"command": which, "kind": how}
    disk = Disk(here, how)
    try:
        (here / SENTINEL).write_text("not ours")
        after_kill = rng.random() < 0.5
        if after_kill:
            run(place, which, here, at=rng.randint(1, max(1, whole["changes"])))
            log.unlink(missing_ok=True)
        problem, row["said"] = _meets(place, which, here, how, disk, rng, whole)
        row["began"] = "after a kill" if after_kill else "afresh"
        problem = problem or _goes_on(place, which, here, whole)
        if problem is None and row["said"] and not COMMANDS[which].again:
            problem = _keeps(place, which, here, how, disk, rng, whole)
    finally:
        if not (keep and not disk.mounted):
            disk.remove()
    row["outcome"] = problem or ("explained" if row["said"] else "not reached")
    return {**row, "bad": problem is not None, "seconds": round(time.monotonic() - began, 2)}


def _faulty(
    place: Workspace, which: str, here: Path, how: str, disk: Disk, rng: random.Random, whole: dict[str, Any]
) -> Ended:
    """Run the command while the fault is there."""
    try:
        if how == "file-size":
            limit = rng.choice((0, 0, 256, 2048))
            return run(place, which, here, prepared=lambda: _limit(limit))
        if disk.mounted and how == "full":
            disk.fill(rng.choice((0, 0, 4096, 16384, 65536)))
            return run(place, which, here)
        if disk.mounted:
            disk.lock()
            return run(place, which, here)
        return run(place, which, here, at=rng.randint(1, max(1, whole["changes"])), error=ERRORS[how])
    finally:
        disk.free()


def _limit(size: int) -> None:
    """Limit the size of new files; the case's log, which is a file too, becomes a pipe to nowhere."""
    import os

    nowhere = os.open(os.devnull, os.O_WRONLY)
    reading, writing = os.pipe()
    if os.fork() == 0:  # copies what is said into the log, without the limit
        os.close(writing)
        while block := os.read(reading, 65536):
            os.write(2, block)
        os._exit(0)
    os.close(reading)
    os.close(nowhere)
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    os.close(writing)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _meets(*about: Any) -> tuple[str | None, str]:
    """What is wrong with how the command met the fault, and what it said; "" when it did not meet it."""
    place, which, here, *_ = about
    log = here.with_suffix(".log")
    ended = _faulty(*about)
    time.sleep(0.02)
    if ended.late:
        return "hang: it did not end", ""
    if raw(log):
        return f"raw traceback: {said(log, 3)}", ""
    if ended.code == 0:
        return None, ""
    if ended.code != 2:
        return f"exit code {ended.code}: {said(log, 2)}", ""
    return None, said(log, 1)


def _goes_on(place: Workspace, which: str, here: Path, whole: dict[str, Any]) -> str | None:
    log = here.with_suffix(".log")
    log.unlink(missing_ok=True)
    ended = run(place, which, here)
    if ended.code:
        return f"does not go on: {said(log, 2)}"
    return _differs(which, here, whole, "goes on differently")


def _keeps(*about: Any) -> str | None:
    """The same fault in a finished run costs nothing of it."""
    place, which, here, how, disk, rng, whole = about
    log = here.with_suffix(".log")
    log.unlink(missing_ok=True)
    _faulty(*about)
    if raw(log):
        return f"raw traceback in a finished run: {said(log, 3)}"
    return _differs(which, here, whole, "a finished run is damaged")


def _differs(which: str, here: Path, whole: dict[str, Any], what: str) -> str | None:
    if not (here / SENTINEL).is_file():
        return f"{what}: a file of somebody else is gone"
    found = {
        key: value for key, value in read(here, COMMANDS[which].skip).items() if not key.startswith(SENTINEL)
    }
    differ = compare.differences(whole["facts"], found, frozenset(whole["unsteady"]))
    return f"{what}: {', '.join(differ[:5])} ({len(differ)} facts)" if differ else None


if __name__ == "__main__":
    sys.exit(main())
