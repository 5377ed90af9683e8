"""The data contract: what an action means, what an episode is, what is held out, and how it lies on disk.

Example::

    from worldgym.data import EpisodeDataset
    for episode in EpisodeDataset("data/real", split="seen"):
        print(episode.task, episode.instruction, episode.succeeded)
"""

from __future__ import annotations

from typing import Any

from worldgym.data.episode import DOMAINS, ActionSpec, Episode, GripperRule
from worldgym.data.reader import EpisodeArrays, EpisodeDataset
from worldgym.data.splits import SPLITS, SplitManifest
from worldgym.data.writer import DatasetWriter

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
    """`TABLETOP_ACTION_SPEC`, which moved to its suite: `worldgym.suite.load_suite("tabletop").specs.action`."""
    if name == "TABLETOP_ACTION_SPEC":
        import warnings

        from worldgym.suite import load_suite

        warnings.warn(
            'worldgym.data.TABLETOP_ACTION_SPEC moves; type worldgym.suite.load_suite("tabletop").specs.action',
            DeprecationWarning,
            stacklevel=2,
        )
        return load_suite("tabletop").specs.action
    raise AttributeError(f"module 'worldgym.data' has no attribute {name!r}; it has {', '.join(__all__)}")
