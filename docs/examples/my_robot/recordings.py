"""A dataset format: one `NAME.log.npz` for each episode, without success labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from my_robot.suite import SPECS
from worldgym.data import Episode
from worldgym.specs import Specs


class MyLogs:
    """Reads folders of `NAME.log.npz` with frames, actions in metres, positions and a sentence."""

    @staticmethod
    def detects(source: Path) -> bool:
        """Whether this format can read the folder; `worldgym import` asks every format."""
        return any(source.glob("*.log.npz"))

    @staticmethod
    def specs(source: Path) -> Specs:
        """Cameras, state fields and actions of these recordings."""
        return SPECS

    @staticmethod
    def episodes(source: Path) -> Iterator[Episode]:
        """All episodes, in the same order at every call."""
        for file in sorted(source.glob("*.log.npz")):
            with np.load(file, allow_pickle=False) as log:
                yield Episode(
                    frames=log["frames"],  # (T+1, H, W, 3) uint8
                    actions=SPECS.action.normalise(log["metres"]),  # (T, A) float32 in [-1, 1]
                    state=log["positions"],  # (T+1, S) float32
                    instruction=str(log["sentence"]),
                    success=None, progress=None,  # not recorded; never a guess
                    domain="real", split="seen", task="drive",
                    provenance={"behaviour": "teleoperation", "file": file.name},
                )  # fmt: skip
