"""Datasets: action specs, episodes, held-out splits, and the LeRobotDataset v3 format on disk.

Example::

    from worldgym.data import EpisodeDataset
    for episode in EpisodeDataset("data/real", split="seen"):
        print(episode.task, episode.instruction, episode.succeeded)
"""

from __future__ import annotations

from typing import Any

from worldgym.data.episode import DOMAINS, Episode
from worldgym.data.reader import EpisodeArrays, EpisodeDataset
from worldgym.data.splits import SPLITS, SplitManifest
from worldgym.data.writer import DatasetWriter
from worldgym.specs import ActionSpec, GripperRule

__all__ = [
    "DOMAINS",
    "SPLITS",
    "ActionSpec",
    "DatasetWriter",
    "Episode",
    "EpisodeArrays",
    "EpisodeDataset",
    "GripperRule",
    "SplitManifest",
]


def __getattr__(name: str) -> Any:
    """Resolve names of earlier versions, with a DeprecationWarning."""
    from worldgym.moved import earlier

    return earlier(__name__, name)
