"""What the campaign's tools share: their options, a file of finished cases, and processes forked from a warm parent.

Importing torch takes seconds, so one parent imports everything once and forks a child for each command. The parent
never renders and never starts a thread: both would be broken in the child. The child is a process group of its own,
with limits of time and memory.

Example::

    ended = forked(lambda: main(["info"]), log=Path("out.txt"), seconds=60)
    ended.code, ended.value, ended.seconds
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETTINGS = {
    "MUJOCO_GL": "egl",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Args:
        code: exit code; negative numbers are signals, as in `subprocess`.
        seconds: wall time.
        value: what the function returned, when it ended.
        late: it was killed because its time was over.
    """

    code: int
    seconds: float
    value: Any = None
    late: bool = False


def options(tool: str, about: str, count: int, quick: int) -> argparse.ArgumentParser:
    """The options that all tools have.

    Args:
        tool: name of the module.
        about: one sentence.
        count: cases by default.
        quick: cases with `--quick`.
    """
    parser = argparse.ArgumentParser(prog=f"python -m tests.campaign.{tool}", description=about)
    parser.add_argument(
        "--count", type=int, default=None, help=f"cases (default: {count}, {quick} with --quick)"
    )
    parser.add_argument("--quick", action="store_true", help="a few cases, to see that the tool runs")
    parser.add_argument("--out", type=Path, required=True, help="file of finished cases, one JSON a line")
    parser.add_argument("--case", help="repeat this case and keep its files; nothing is written to --out")
    parser.add_argument("--only", help="only cases whose name begins with this")
    parser.add_argument(
        "--part", default="0/1", help="I/N: every N-th case from the I-th on, for N tools side by side"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("/tmp/worldgym-campaign"), help="scratch folder")
    parser.set_defaults(usual=count, few=quick)
    return parser


def wanted(given: argparse.Namespace) -> int:
    """How many cases are asked for."""
    return int(given.count if given.count is not None else given.few if given.quick else given.usual)


class Book:
    """Finished cases in a file of JSON lines; a line that a kill cut off is not counted.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        for row in read_rows(path):
            self.rows[row["id"]] = row

    def add(self, row: dict[str, Any]) -> None:
        """Append one finished case."""
        self.rows[row["id"]] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = not self.path.exists() or self.path.read_bytes()[-1:] in (b"", b"\n")
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(("" if whole else "\n") + json.dumps(row) + "\n")


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file of cases."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and "id" in row:
                yield row


def go(given: argparse.Namespace, cases: Iterable[str], run: Callable[[str, bool], dict[str, Any]]) -> Book:
    """Run the cases that are not finished, or the one asked for, and print each.

    Args:
        given: the options.
        cases: names of all cases, in their order.
        run: takes a name and whether the files are kept; gives the row, with `outcome` and `bad`.
    """
    if given.case:
        print(json.dumps(run(given.case, True), indent=1))
        return Book(Path(os.devnull))
    book = Book(given.out)
    names = [name for name in cases if not given.only or name.startswith(given.only)]
    first, step = (int(number) for number in given.part.split("/"))
    names = names[first::step]
    todo = [name for name in names if name not in book.rows]
    print(f"{len(names)} cases, {len(names) - len(todo)} finished before", flush=True)
    began = time.monotonic()
    for number, name in enumerate(todo, 1):
        row = {"id": name, **run(name, False), "versions": versions()}
        book.add(row)
        left = (time.monotonic() - began) / number * (len(todo) - number) / 60
        mark = "BAD " if row["bad"] else ""
        print(f"{mark}{name}: {row['outcome']} ({row['seconds']:.1f} s; {left:.0f} min left)", flush=True)
    return Book(given.out)


def versions() -> dict[str, str]:
    """Of what the results depend on."""
    from importlib.metadata import version

    import worldgym

    names = ("torch", "safetensors", "pyarrow", "numpy")
    found = {name: version(name) for name in names}
    return {"worldgym": worldgym.__version__, "python": platform.python_version(), **found}


def markdown(rows: Sequence[dict[str, Any]], group: str) -> str:
    """Cases by `group` and outcome, as a table of markdown."""
    kinds = [name for name, _ in Counter(kind(row) for row in rows).most_common()]
    lines = [f"| {group} | cases | {' | '.join(kinds)} |", "|---" * (len(kinds) + 2) + "|"]
    for name in [*sorted({str(row[group]) for row in rows}), None]:
        mine = [row for row in rows if name is None or str(row[group]) == name]
        counts = Counter(kind(row) for row in mine)
        label = "**all**" if name is None else name
        lines.append(f"| {label} | {len(mine)} | {' | '.join(str(counts[k]) for k in kinds)} |")
    return "\n".join(lines)


def kind(row: dict[str, Any]) -> str:
    """The outcome without its details."""
    return str(row["outcome"]).split(":", 1)[0]


def prepare() -> None:
    """Import what the commands need, once, without threads and without graphics; children inherit it."""
    os.environ.update(SETTINGS)
    import importlib
    import pkgutil

    import numpy  # noqa: F401
    import torch
    import torch.utils.tensorboard  # noqa: F401

    torch.set_num_threads(1)
    import experiments.commands

    for found in pkgutil.iter_modules(experiments.commands.__path__):
        importlib.import_module(f"experiments.commands.{found.name}")
    for name in (
        "agents",
        "rewards",
        "envs.tabletop",
        "worldgym.data",
        "worldgym.imagination",
        "experiments.pipelines.demo",
    ):
        importlib.import_module(name)
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("worldgym.text").embed(["push the cube"])  # loads the encoder of instructions
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    others = [name for name in names if name != "jemalloc_bg_thd"]  # Arrow's allocator, which handles forks
    if len(others) > 1:
        print(f"the parent has threads ({', '.join(others)}); children may hang", file=sys.stderr)


def modules() -> list[str]:
    """What this process has imported."""
    return sorted(
        name for name in sys.modules if not name.startswith(("__", "tests", "OpenGL", "ray", "mujoco"))
    )


def learn(names: Iterable[str]) -> None:
    """Import what a child has imported, so that the next ones need not."""
    import importlib

    for name in names:
        if name not in sys.modules:
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def forked(
    work: Callable[[], Any],
    *,
    log: Path | None = None,
    seconds: float = 300.0,
    memory: int | None = None,
    until: float | None = None,
) -> Ended:
    """Run `work` in a child with its own process group.

    Args:
        work: gives an exit code or anything JSON-able.
        log: its output is appended to this file; dropped when None.
        seconds: it is killed when it takes longer.
        memory: bytes of address space that it may add to the parent's.
        until: kill the process group after so many seconds; the case is not `late` then.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _child(work, writing, log, memory)
    os.close(writing)
    limit = seconds if until is None else min(until, seconds)
    late = False
    os.set_blocking(reading, False)
    said = b""
    while True:
        said += _drain(reading)
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() - began > limit:
            late = until is None or limit < until
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):  # before it became the leader of its group
                os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            break
        time.sleep(0.004)
    said += _drain(reading)
    os.close(reading)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)  # what the child started and did not end
    value = None
    with contextlib.suppress(ValueError):
        value = json.loads(said)
    return Ended(os.waitstatus_to_exitcode(status), time.monotonic() - began, value, late)


def _drain(reading: int) -> bytes:
    said = b""
    with contextlib.suppress(BlockingIOError):
        while block := os.read(reading, 1 << 16):
            said += block
    return said


def _child(work: Callable[[], Any], writing: int, log: Path | None, memory: int | None) -> None:
    code = 70
    try:
        os.setsid()
        out = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
        if memory is not None:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + memory, size + memory))
        value = work()
        code = value if isinstance(value, int) else 0
        os.write(writing, json.dumps(value).encode())
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code & 0xFF)


def said(log: Path, lines: int = 3) -> str:
    """The last lines of a child's output, in one line."""
    text = log.read_text(errors="replace") if log.is_file() else ""
    kept = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return " / ".join(line[:600] for line in kept[-lines:])


def raw(log: Path) -> bool:
    """Whether the output holds a traceback."""
    return log.is_file() and "Traceback (most recent call last)" in log.read_text(errors="replace")
