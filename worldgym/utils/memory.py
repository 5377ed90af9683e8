"""Resident memory of this process, for tests of memory leaks.

`/proc` gives the current value; `resource.getrusage` gives only the maximum since the start.

Example::

    before = resident_mb()
    work()
    assert resident_mb() - before < 50
"""

from __future__ import annotations

import os
from pathlib import Path

STATM = Path("/proc/self/statm")


def resident_mb() -> float:
    """Current resident memory of the process in megabytes; nan on systems without `/proc`."""
    if not STATM.is_file():
        return float("nan")
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
