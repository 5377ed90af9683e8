"""Speed of this build and of an earlier commit, measured in turns in one run.

The earlier commit is checked out into a temporary folder, and a worker process of each build answers the same jobs one
after the other, so that load on the machine affects both alike.

Example::

    against("88131a3", "tabletop-small", threads=2, rounds=3, seconds=2.0)["ratios"]["last_frame"]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from worldgym.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
JOBS = {"last_frame": 64, "all_frames": 64, "no_frame": 64, "rl": 64, "batch_1": 1}
"""What is measured -> rows of the batch."""
RUN = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
"""Runs a file without its folder on the import path, where other modules would hide libraries of the same name."""


class _Build:
    """Worker process of one checkout."""

    def __init__(self, checkout: Path, bundle: str, threads: int) -> None:
        code = Path(__file__).with_name("speed_worker.py")
        command = [sys.executable, "-c", RUN, str(code), bundle, str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout)},
        )  # fmt: skip

    def measure(self, what: str, batch: int, seconds: float) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        name = "last_frame" if what == "batch_1" else what
        self.process.stdin.write(json.dumps({"what": name, "batch": batch, "seconds": seconds}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise ConfigError(
                f"the worker of {self.process.args} ended with code {self.process.wait()}; its error is above"
            )
        return float(json.loads(answer)["rate"])

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def against(
    commit: str,
    bundle: str,
    *,
    threads: int,
    rounds: int,
    seconds: float,
    earlier_bundle: str = "tabletop-small",
) -> dict[str, Any]:
    """Environment steps per second of both builds, and their ratios.

    Args:
        commit: earlier commit of this repository.
        bundle: bundle that this build measures.
        threads: torch threads of each worker; the workers do not run at the same time.
        rounds: measurements of each job; the median counts.
        seconds: duration of one measurement.
        earlier_bundle: bundle that the earlier build measures.

    Raises:
        ConfigError: no such commit, or no repository.
    """
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "earlier"
        made = subprocess.run(
            ["git", "worktree", "add", "--detach", str(checkout), commit], cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        if made.returncode:
            raise ConfigError(
                f"commit {commit} cannot be checked out: {made.stderr.strip()}; give one of `git log`"
            )
        try:
            builds = {
                "now": _Build(ROOT, bundle, threads),
                "earlier": _Build(checkout, earlier_bundle, threads),
            }
            rates: dict[str, dict[str, list[float]]] = {job: {"now": [], "earlier": []} for job in JOBS}
            for number in range(rounds + 1):
                for job, batch in JOBS.items():
                    for name, build in builds.items():
                        rate = build.measure(job, batch, seconds)
                        if number:  # the first round warms up
                            rates[job][name].append(rate)
            for build in builds.values():
                build.close()
        finally:
            subprocess.run(
                ["git", "worktree", "remove", "--force", str(checkout)], cwd=ROOT, capture_output=True
            )
    medians = {
        job: {name: float(np.median(values)) for name, values in pair.items()} for job, pair in rates.items()
    }
    return {
        "commit": commit,
        "steps_per_second": medians,
        "ratios": {job: pair["now"] / pair["earlier"] for job, pair in medians.items()},
        "rounds": {
            job: [a / b for a, b in zip(p["now"], p["earlier"], strict=True)] for job, p in rates.items()
        },
    }
