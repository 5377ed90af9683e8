"""Copies of datasets on disk, which appear as a whole or not at all.

Example::

    copy_dataset(Path("data/real"), Path("runs/mine/data"))
"""

from __future__ import annotations

import shutil
from pathlib import Path

from worldgym.utils.staging import staging


def copy_dataset(source: Path, target: Path) -> None:
    """Copy a dataset folder, unless `target` exists. A copy that is killed leaves no `target`."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with staging(target.parent) as stage:
        shutil.copytree(source, stage / target.name)
        (stage / target.name).rename(target)
