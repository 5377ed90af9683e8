"""Draw the tabletop in every kind of thread and process, after every order of imports, under every `MUJOCO_GL`.

`python -m tests.campaign.rendering --out rendering.jsonl`. A case draws in a fresh process without a display. It is
good when every drawing is the same picture, bit for bit, or a RenderingError that says what to type; bad are a black
or another picture, another error, a hang, a crash, and a picture of Gymnasium's that ours has changed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import drawing
from .harness import go, markdown, options

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 40.0  # a case takes two
BACKENDS = ("unset", "egl", "glfw", "osmesa", "off", "nonsense")
# What else is set: worker threads of the software driver, PyOpenGL's platform, MuJoCo's device, EGL without a driver.
EXTRA: dict[str, dict[str, str]] = {
    "unset+threads": {"LP_NUM_THREADS": "2"},
    "unset+pyopengl": {"PYOPENGL_PLATFORM": "glx"},
    "egl+pyopengl": {"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "osmesa"},
    "egl+device": {"MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "7"},
    "egl+word": {"MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "gpu"},
    "egl+driverless": {"MUJOCO_GL": "egl", "__EGL_VENDOR_LIBRARY_FILENAMES": "/dev/null"},
}
WORST = (
    "hang",
    "crash",
    "black",
    "other picture",
    "neighbour changed",
    "raw error",
    "clear error",
    "same picture",
)
CLEARED = (
    "MUJOCO_GL",
    "PYOPENGL_PLATFORM",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "LP_NUM_THREADS",
    "MUJOCO_EGL_DEVICE_ID",
)
# Each of these must be in a clear error: something to type, to unset or to change.
REMEDIES = ("apt-get install", "MUJOCO_GL=egl", "unset ", "spawn", "main thread", "another thread")
QUICK = ("unset/mujoco/main", "unset/worldgym/thread", "egl/worldgym/fork", "nonsense/worldgym/main")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; 1 when a case is bad."""
    names = cases()
    given = options("rendering", "Draw in every thread and process.", len(names), len(QUICK)).parse_args(
        arguments
    )
    names = list(QUICK) if given.quick else names[: given.count]
    book = go(given, names, lambda name, keep: case(name))
    rows = list(book.rows.values())
    if rows:
        print(markdown(rows, "method"), markdown(rows, "backend"), markdown(rows, "first"), sep="\n\n")
    return int(any(row["bad"] for row in rows))


def cases() -> list[str]:
    """All cases as backend/first/method; the extra settings with the methods that they may spoil."""
    names = [f"{b}/{first}/{m}" for b in BACKENDS for first in drawing.FIRST for m in drawing.METHODS]
    some = ("main", "thread", "fork", "spawn", "vector", "beside")
    names += [f"{b}/{first}/{m}" for b in EXTRA for first in ("worldgym", "gymnasium") for m in some]
    return names + [f"{b}/worldgym/info" for b in (*BACKENDS, *EXTRA)]


def case(name: str) -> dict[str, Any]:
    """Run one case and judge it."""
    backend, first, method = name.split("/")
    began = time.monotonic()
    if method == "info":
        outcome, detail = informed(backend)
    else:
        outcome, detail = judged(
            run([sys.executable, "-m", drawing.__name__, method, first], backend), reference()
        )
    expected = allowed(backend, first, method)
    row = {"backend": backend, "first": first, "method": method, "outcome": outcome, "detail": detail}
    return {**row, "bad": outcome not in expected, "seconds": time.monotonic() - began}


def allowed(backend: str, first: str, method: str) -> tuple[str, ...]:
    """Outcomes that are good: the picture, and where that can't be had, a clear error.

    Where EGL can draw, an error is right in three places: after a fork of a process whose driver doesn't survive it;
    after Gymnasium tried to draw without a backend, which leaves MuJoCo's loader of OpenGL broken in that process; and
    under another platform of PyOpenGL's, where MuJoCo can't be imported.
    """
    if method == "info":
        return ("true report",)
    draws = backend == "egl" or backend.startswith("unset")
    broken = backend != "egl" and (first == "gymnasium" or method == "beside")
    forks = method.startswith("fork") or method == "vector"
    if draws and not broken and not forks and backend != "unset+pyopengl":
        return ("same picture",)
    return ("same picture", "clear error")


@functools.cache
def reference() -> str:
    """Hash of the pictures that the main thread of a fresh process draws through EGL."""
    said = run([sys.executable, "-m", drawing.__name__, "main", "worldgym"], "egl")
    if not isinstance(said, dict) or "hash" not in said["drawings"][0]:
        raise SystemExit(f"nothing can be drawn here, so there is nothing to compare with: {said}")
    return str(said["drawings"][0]["hash"])


def run(command: list[str], backend: str) -> dict[str, Any] | str:
    """The JSON of the last line that `command` prints, or how it ended instead."""
    environment = {k: v for k, v in os.environ.items() if k not in CLEARED}
    environment |= {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
    }
    environment |= EXTRA.get(backend, {} if backend == "unset" else {"MUJOCO_GL": backend})
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return "hang"
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # children that hang too
        process.wait()
    try:
        said = json.loads(out[out.index("{") :])
    except ValueError:
        said = None
    if isinstance(said, dict):
        return said
    if process.returncode < 0:
        return f"crash: signal {-process.returncode}"
    return f"raw error: {(err.strip().splitlines() or ['no output'])[-1][:300]}"


def judged(said: dict[str, Any] | str, expected: str) -> tuple[str, str]:
    """The worst of a case's drawings, and what it said."""
    if isinstance(said, str):
        outcome, _, detail = said.partition(": ")
        return outcome, detail
    found = [_judge(one, expected) for one in said["drawings"]]
    return min(found, key=lambda pair: WORST.index(pair[0]))


def _judge(one: dict[str, Any], expected: str) -> tuple[str, str]:
    if "neighbour" in one:
        return "neighbour changed", one["neighbour"]
    if "error" in one:
        if one["error"] == "crash":
            return "crash", one["text"]
        known = "RenderingError" in one["kinds"] or "RenderingError" in one["text"]  # re-raised for a worker
        clear = known and any(remedy in one["text"] for remedy in REMEDIES)
        return "clear error" if clear else "raw error", f"{one['error']}: {one['text']}"
    if one["black"]:
        return "black", ""
    return ("same picture" if one["hash"] == expected else "other picture"), ""


def informed(backend: str) -> tuple[str, str]:
    """Whether `worldgym info` says what a drawing shows: it works where a picture comes out, else why not."""
    said = run([sys.executable, "-m", "worldgym", "info", "--json"], backend)
    if isinstance(said, str):
        return "raw error", said
    drawn, why = judged(
        run([sys.executable, "-m", drawing.__name__, "main", "worldgym"], backend), reference()
    )
    report = said["gl"]
    if report["works"] != (drawn == "same picture"):
        return "false report", f"info: {report}; drawn: {drawn} {why}"
    if not report["works"] and not any(remedy in report["detail"] for remedy in REMEDIES):
        return "false report", f"no remedy: {report}"
    return "true report", f"{report['backend']}, {report['works']}, {report['detail']}"


if __name__ == "__main__":
    sys.exit(main())
