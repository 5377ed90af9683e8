"""`worldgym data check DIR`: reads a dataset completely, says what it holds and lists every problem.

Example::

    worldgym data check data/mine
    worldgym data check data/pusht --camera observation.image     # a LeRobot folder, before it is imported
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from worldgym.errors import DatasetError


@dataclass(frozen=True)
class DataCheckConfig:
    """Check a dataset; exit code 2 when there are problems.

    Args:
        path: the dataset's folder, ours or in LeRobot's layout.
        camera: cameras of a LeRobot folder, where there are several.
        json: also write what was found to this file.
    """

    path: Annotated[Path, tyro.conf.Positional]
    camera: tuple[str, ...] = ()
    json: Path | None = None


def run(config: DataCheckConfig) -> int:
    """Read everything, print facts, notes and problems."""
    from worldgym.data.check import check
    from worldgym.data.imports import ImportSettings
    from worldgym.utils.files import atomic_write_text

    found = check(config.path, ImportSettings(cameras=config.camera) if config.camera else None)
    text = [f"{key:<16}{json.dumps(value, ensure_ascii=False)}" for key, value in found.facts.items()]
    text += [f"note: {note}" for note in found.notes[:20]]
    text += [f"note: and {len(found.notes) - 20} more"] if len(found.notes) > 20 else []
    sys.stdout.write("\n".join(text) + "\n")
    if config.json is not None:
        facts = {"facts": found.facts, "problems": found.problems, "notes": found.notes}
        atomic_write_text(config.json, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    if found.problems:
        listed = "\n".join(f"- {problem}" for problem in found.problems)
        raise DatasetError(f"{len(found.problems)} problems in {config.path}:\n{listed}")
    sys.stdout.write(f"{config.path}: no problem found\n")
    return 0
