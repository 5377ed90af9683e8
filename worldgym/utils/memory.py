"""Resident memory of this process, for soak tests.

Why: a pool that leaks a little every round ends a night's run. `/proc` knows what the process holds now;
`resource.getrusage` only the most it ever held.

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
    """Megabytes that the process holds in memory now; nan where the system has no `/proc`."""
    if not STATM.is_file():
        return float("nan")
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
