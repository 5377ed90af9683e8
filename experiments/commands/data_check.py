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
from typing import Annotated, Literal

import tyro

from worldgym.errors import DatasetError


@dataclass(frozen=True)
class DataCheckConfig:
    """Check a dataset; exit code 2 when there are problems.

    Args:
        path: the dataset's folder, ours or in LeRobot's layout.
        camera: cameras of a LeRobot folder, where there are several.
        state_key: its features of proprioception, as for `worldgym import`.
        action_key: its features of actions.
        episodes: numbers such as `0-9,12`; only these are read.
        skip: numbers of episodes that are left out.
        frames: which frame belongs to a row, as for `worldgym import`.
        json: also write what was found to this file.
    """

    path: Annotated[Path, tyro.conf.Positional]
    camera: tuple[str, ...] = ()
    state_key: tuple[str, ...] = ()
    action_key: tuple[str, ...] = ()
    episodes: str | None = None
    skip: str | None = None
    frames: Literal["auto", "timestamp", "index"] = "auto"
    json: Path | None = None


def run(config: DataCheckConfig) -> int:
    """Read everything, print facts, notes and problems."""
    from worldgym.data.check import check
    from worldgym.data.formats.lerobot_import import ImportSettings
    from worldgym.utils.files import atomic_write_text

    settings = ImportSettings(
        cameras=config.camera, state_keys=config.state_key, action_keys=config.action_key,
        episodes=config.episodes, skip=config.skip, frames=config.frames,
    )  # fmt: skip
    path = config.path.expanduser()
    found = check(path, settings)
    text = [f"{key:<16}{json.dumps(value, ensure_ascii=False)}" for key, value in found.facts.items()]
    text += [f"note: {note}" for note in found.notes[:20]]
    text += [f"note: and {len(found.notes) - 20} more"] if len(found.notes) > 20 else []
    sys.stdout.write("\n".join(text) + "\n")
    if config.json is not None:
        facts = {"facts": found.facts, "problems": found.problems, "notes": found.notes}
        atomic_write_text(config.json, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    if found.problems:
        listed = "\n".join(f"- {problem}" for problem in found.problems)
        raise DatasetError(f"{len(found.problems)} problems in {path}:\n{listed}")
    sys.stdout.write(f"{path}: no problem found\n")
    return 0
