"""Reads a dataset completely and lists everything that is wrong with it, its own layout or LeRobot's.

Example::

    found = check("data/mine")
    found.problems          # [] when all is well
    found.facts["episodes"]
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from worldgym.data.imports import ImportSettings, LeRobotFolder, is_foreign
from worldgym.data.lerobot import read_meta
from worldgym.data.reader import EpisodeDataset
from worldgym.errors import ConfigError, DatasetError, WorldgymError
from worldgym.utils.files import file_sha256

STILL = 1e-4  # standard deviation of pixels, of 255, below which all frames of an episode are one picture


@dataclass
class Found:
    """What a check found.

    Args:
        facts: counts, as plain JSON.
        problems: what keeps the dataset, or an episode of it, from being used.
        notes: what a user should know and may accept.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check(path: str | os.PathLike[str], settings: ImportSettings | None = None) -> Found:
    """Read every file of a dataset.

    Args:
        path: its folder.
        settings: how to read it, where it is in LeRobot's layout of others; each bad episode is one problem.

    Raises:
        DatasetError: there is no dataset, or its metadata can't be read at all.
    """
    root = Path(path)
    if is_foreign(root):
        return _foreign(root, settings)
    if settings is not None and settings != ImportSettings():
        raise ConfigError(f"{root} is a dataset of worldgym; options of reading apply to folders of others")
    return _own(root)


def _own(root: Path) -> Found:
    found = Found()
    meta = read_meta(root)
    for entry in meta.files:
        if file_sha256(root / entry["path"]) != entry["sha256"]:
            found.problems.append(
                f"{root / entry['path']} differs from what was committed; restore it from a copy"
            )
    try:
        dataset = EpisodeDataset(root)
    except WorldgymError as error:
        found.problems.append(str(error))
        return found
    rows = 0
    for position, record in enumerate(dataset.records):
        try:
            episode = dataset[position]
            rows += episode.length
            _look(
                found,
                f"episode {record.index}",
                episode.frames,
                episode.actions,
                episode.succeeded,
                record.success,
            )
        except (WorldgymError, ValueError) as error:
            found.problems.append(f"episode {record.index}: {error}")
    found.facts = {
        "layout": f"worldgym format {meta.format_version}", "episodes": len(dataset), "actions": rows,
        "image_size": meta.image_size, "state_dim": meta.state_dim, "hz": meta.fps, "cameras": 1 + len(meta.views),
        "action_names": list(meta.action_spec.names),
        "instructions": dict(Counter(record.instruction for record in dataset.records).most_common()),
        "successes": sum(record.success for record in dataset.records),
        "splits": dict(Counter(record.split for record in dataset.records)),
        "behaviours": dict(Counter(record.behaviour for record in dataset.records)),
    }  # fmt: skip
    if not len(dataset):
        found.problems.append("there is no episode in it")
    return found


def _foreign(root: Path, settings: ImportSettings | None) -> Found:
    import dataclasses

    found = Found()
    base = settings or ImportSettings()
    folder = LeRobotFolder(root, settings=dataclasses.replace(base, skip_bad=True))
    for item in folder.items:
        try:
            episode = folder.episode(item, base.image_size)
            _look(found, f"episode {item.place.index}", episode.frames, episode.actions, True, True)
        except (DatasetError, ValueError) as error:
            folder.skipped[item.place.index] = str(error)
    found.facts = folder.report()
    found.problems += [f"episode {number}: {why}" for number, why in sorted(folder.skipped.items())]
    return found


def _look(
    found: Found, where: str, frames: np.ndarray, actions: np.ndarray, solved: bool, listed: bool
) -> None:
    if solved != listed:
        found.problems.append(
            f"{where} is listed as {'solved' if listed else 'unsolved'}, its frames say otherwise"
        )
    if float(frames.reshape(len(frames), -1).std(0).max()) < STILL:
        found.notes.append(f"{where}: all its frames are the same picture")
    if len(actions) > 1 and float(np.abs(np.diff(actions, axis=0)).max()) == 0.0:
        found.notes.append(f"{where}: all its actions are the same")
