"""Kill the driver of a sweep at a random moment: 20 s later no process that it started is left.

`python -m tests.campaign.processes --count 10 --out processes.jsonl`. The processes are found by a variable of their
environment, which they inherit, wherever they have moved to.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .harness import SETTINGS, go, markdown, options, prepare, wanted
from .workspace import COMMANDS, Workspace

MARK = "WORLDGYM_CAMPAIGN_CASE"
PATIENCE = 20.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; 1 when a case is bad."""
    given = options("processes", "Kill drivers of sweeps and look for what is left.", 10, 1).parse_args(
        arguments
    )
    given.work = given.work.resolve()
    prepare()
    place = Workspace(given.work)
    place.make(("bundle",))
    names = [f"sweep.{given.seed}.{i}" for i in range(wanted(given))]
    book = go(given, names, lambda name, keep: case(place, name))
    rows = list(book.rows.values())
    print(markdown(rows, "kind") if rows else "")
    return int(any(row["bad"] for row in rows))


def marked(mark: str) -> list[int]:
    """Processes whose environment holds the mark, without those that have ended and wait for their parent."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z" and f"{MARK}={mark}\0".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def case(place: Workspace, name: str) -> dict[str, Any]:
    """Run one case."""
    began, rng = time.monotonic(), random.Random(name)
    here = place.folder / "cases" / name
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir(parents=True)
    line = [sys.executable, "-m", "worldgym", *COMMANDS["sweep"].line(place)]
    with here.with_suffix(".log").open("w") as log:
        driver = subprocess.Popen(
            line,
            cwd=here,
            env={**os.environ, **SETTINGS, MARK: name},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        until, most = time.monotonic() + rng.uniform(4.0, 40.0), 0
        while time.monotonic() < until and driver.poll() is None:
            most = max(most, len(marked(name)))
            time.sleep(0.2)
        ended = driver.poll() is not None
        driver.kill()
        driver.wait()
    killed = time.monotonic()
    while (left := marked(name)) and time.monotonic() - killed < PATIENCE:
        time.sleep(0.2)
    for pid in left:
        subprocess.run(["kill", "-9", str(pid)], check=False, capture_output=True)
    row = {
        "kind": "after its end" if ended else "killed",
        "most": most,
        "gone": round(time.monotonic() - killed, 1),
    }
    outcome = f"left: {len(left)} processes" if left else "none left"
    if not left:
        shutil.rmtree(here)
        here.with_suffix(".log").unlink(missing_ok=True)
    return {**row, "outcome": outcome, "bad": bool(left), "seconds": round(time.monotonic() - began, 1)}


if __name__ == "__main__":
    sys.exit(main())
