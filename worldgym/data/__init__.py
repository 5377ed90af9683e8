"""The data contract: what an action means, what an episode is, what is held out, and how it lies on disk.

Example::

    from worldgym.data import EpisodeDataset
    for episode in EpisodeDataset("data/real", split="seen"):
        print(episode.task, episode.instruction, episode.succeeded)
"""

from worldgym.data.episode import DOMAINS, TABLETOP_ACTION_SPEC, ActionSpec, Episode, GripperRule
from worldgym.data.reader import EpisodeArrays, EpisodeDataset
from worldgym.data.splits import SPLITS, SplitManifest
from worldgym.data.writer import DatasetWriter

__all__ = [
    "DOMAINS",
    "SPLITS",
    "TABLETOP_ACTION_SPEC",
    "ActionSpec",
    "DatasetWriter",
    "Episode",
    "EpisodeArrays",
    "EpisodeDataset",
    "GripperRule",
    "SplitManifest",
]
