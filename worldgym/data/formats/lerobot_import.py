"""Imports LeRobot datasets, v2.0 to v3.0, as datasets of worldgym.

A LeRobot folder holds frames and actions, but not the meaning of the actions, held-out splits, or (often) success
labels. The import settings define these. The report of an import states the source of the success labels, the bounds
that normalise the actions, the share of rows that the bounds clip, and the skipped episodes with reasons.

An import can be resumed. Until the last episode is written, readers reject the dataset and show the command that
finishes it. The same command continues after an interruption; other settings are rejected.

Example::

    report = import_lerobot("data/pusht", "data/mine", ImportSettings(image_size=64, success="all"))
    LeRobotFolder("data/pusht").action_spec
"""

from __future__ import annotations

import os
from typing import Any

from worldgym.data.formats.folder import LeRobotFolder
from worldgym.data.formats.importing import NOTES, import_recorded
from worldgym.data.formats.settings import ImportSettings
from worldgym.data.formats.source import is_foreign

__all__ = ["NOTES", "ImportSettings", "LeRobotFolder", "import_lerobot", "is_foreign"]


def import_lerobot(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: ImportSettings | None = None,
    *,
    command: str = "worldgym import with the same options",
) -> dict[str, Any]:
    """Convert a LeRobot folder to a dataset of worldgym; the same call resumes an interrupted import.

    Args:
        source: the folder to read; it is not changed.
        out: a new folder, or the folder of the same import after an interruption.
        settings: import settings; frames are stored as PNG.
        command: command that finishes the import; shown to those who open the unfinished dataset.

    Returns:
        The report, which is also stored in `meta/import.json` of the dataset.

    Raises:
        DatasetError: see `LeRobotFolder`; also if `out` holds other data.
        ConfigError: `out` holds an import with other settings or of other recordings.
    """
    return import_recorded(LeRobotFolder(source, settings=settings), out, command=command)
