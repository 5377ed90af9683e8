"""The data contract: what an action means, what an episode is, what is held out, and how it lies on disk.

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
    """Names of earlier versions, with a warning."""
    from worldgym.moved import earlier

    return earlier(__name__, name)
