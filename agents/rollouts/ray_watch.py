"""Ends the processes of a local Ray cluster after its driver has ended. A script that needs only the standard library.

If a driver is killed, Ray's servers and workers end with it, but Ray's agents run for another minute. This process
outlives the driver, because it has its own session. It detects the driver's end by its standard input, whose other end
the driver holds open.

Example::

    watcher = watch(Path(ray.__file__).parent)      # in the driver, before ray.init(address="local")
    watcher.stdin.close()   # or the driver is killed: three seconds later no Ray process is left
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

GRACE = 3.0  # seconds in which Ray may end its processes by itself
TICK = 1.0  # seconds between two scans of the driver's processes


def watch(package: str | os.PathLike[str]) -> subprocess.Popen[bytes] | None:
    """Watch processes that the caller starts from Ray's `package` folder; returns None on systems without /proc."""
    if not os.path.isdir("/proc/self"):
        return None
    command = [sys.executable, "-I", os.path.abspath(__file__), str(os.getpid()), os.fspath(package)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def processes() -> dict[int, tuple[int, str]]:
    """Parent and start time of every process, by process id."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as stream:
                    fields = stream.read().rpartition(")")[2].split()
            except OSError:
                continue  # the process has ended in the meantime
            found[int(name)] = (int(fields[1]), fields[19])
    return found


def runs(pid: int, package: str) -> bool:
    """Whether the command line of a process contains a file of `package`."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as stream:
            return package + os.sep in stream.read().decode(errors="replace")
    except OSError:
        return False


def cluster_of(driver: int, package: str, there: dict[int, tuple[int, str]]) -> dict[int, str]:
    """Start time of each process that `driver` started from `package`, and of their descendants."""
    chosen = {pid for pid, (parent, _) in there.items() if parent == driver and runs(pid, package)}
    chosen.discard(os.getpid())
    while more := {pid for pid, (parent, _) in there.items() if parent in chosen} - chosen:
        chosen |= more
    return {pid: there[pid][1] for pid in chosen}


def main(driver: int, package: str) -> None:
    """Scan until the driver ends or closes the pipe, then end the remaining processes."""
    known: dict[int, str] = {}
    while True:
        there = processes()
        known = alive(known, there) | cluster_of(driver, package, there)
        if select.select([sys.stdin], [], [], TICK)[0] and not os.read(sys.stdin.fileno(), 1):
            break
    until = time.monotonic() + GRACE
    while left := alive(known, processes()):
        if time.monotonic() > until:
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            return
        time.sleep(TICK / 10)


def alive(known: dict[int, str], there: dict[int, tuple[int, str]]) -> dict[int, str]:
    """Those of `known` that still run; a different start time means that the process id was reused."""
    return {pid: began for pid, began in known.items() if pid in there and there[pid][1] == began}


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
