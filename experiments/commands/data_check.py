"""`worldgym data check DIR`: reads a whole dataset, prints its contents and a diagnosis, and lists all problems.

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
    """Check a dataset; the exit code is 2 if there are problems.

    Args:
        path: folder of the dataset, a worldgym dataset or in LeRobot's layout.
        camera: cameras to use of a LeRobot folder with several.
        state_key: features with proprioception of a LeRobot folder, as for `worldgym import`.
        action_key: features with actions of a LeRobot folder.
        episodes: numbers of the episodes to read, such as `0-9,12`.
        skip: numbers of episodes to skip.
        frames: how frames are assigned to rows, as for `worldgym import`.
        diagnosis: also diagnose the recordings for world-model training: ranges, alignment of actions, states and
            pictures, idle steps, repeated pictures.
        json: output file for the result; not written if None.
    """

    path: Annotated[Path, tyro.conf.Positional]
    camera: tuple[str, ...] = ()
    state_key: tuple[str, ...] = ()
    action_key: tuple[str, ...] = ()
    episodes: str | None = None
    skip: str | None = None
    frames: Literal["auto", "timestamp", "index"] = "auto"
    diagnosis: bool = True
    json: Path | None = None


def run(config: DataCheckConfig) -> int:
    """Read the dataset; print its facts, notes, diagnosis and problems."""
    from worldgym.data.check import check
    from worldgym.data.diagnosis import lines
    from worldgym.data.formats.lerobot_import import ImportSettings
    from worldgym.utils.files import atomic_write_text

    settings = ImportSettings(
        cameras=config.camera, state_keys=config.state_key, action_keys=config.action_key,
        episodes=config.episodes, skip=config.skip, frames=config.frames,
    )  # fmt: skip
    path = config.path.expanduser()
    found = check(path, settings, diagnosis=config.diagnosis)
    text = [f"{key:<18}{json.dumps(value, ensure_ascii=False)}" for key, value in found.facts.items()]
    text += [f"note: {note}" for note in found.notes[:20]]
    text += [f"note: and {len(found.notes) - 20} more"] if len(found.notes) > 20 else []
    text += [] if found.diagnosis is None else lines(found.diagnosis)
    sys.stdout.write("\n".join(text) + "\n")
    if config.json is not None:
        facts = {
            "facts": found.facts, "problems": found.problems, "notes": found.notes, "diagnosis": found.diagnosis,
        }  # fmt: skip
        text_of = json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False)
        atomic_write_text(config.json, text_of + "\n")
    if found.problems:
        listed = "\n".join(f"- {problem}" for problem in found.problems)
        raise DatasetError(f"{len(found.problems)} problems in {path}:\n{listed}")
    sys.stdout.write(f"{path}: no problem found\n")
    return 0
