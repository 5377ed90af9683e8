"""Recordings in a format of their own: one `NAME.arm.npz` an episode, and no word on success."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from foreign_arm.suite import ACTIONS, ForeignArm
from worldgym.data import Episode
from worldgym.specs import Specs


class LogFormat:
    @staticmethod
    def detects(source: Path) -> bool:
        return any(source.glob("*.arm.npz"))

    @staticmethod
    def specs(source: Path) -> Specs:
        return ForeignArm.specs

    @staticmethod
    def episodes(source: Path) -> Iterator[Episode]:
        for file in sorted(source.glob("*.arm.npz")):
            with np.load(file, allow_pickle=False) as log:
                yield Episode(
                    frames=log["table"], views={"side": log["side"]}, actions=ACTIONS.normalise(log["radians"]),
                    state=log["state"], instruction=str(log["words"]), success=None, progress=None, domain="real",
                    split="seen", task="recorded", provenance={"behaviour": "teleoperation", "file": file.name},
                )  # fmt: skip


def write(folder: Path, episodes: list[Episode]) -> None:
    """Episodes as such recordings; what they say of success is lost."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, episode in enumerate(episodes):
        np.savez(
            folder / f"{number:03d}.arm.npz", table=episode.frames, side=episode.views["side"], state=episode.state,
            radians=ACTIONS.denormalise(episode.actions), words=np.array(episode.instruction),
        )  # fmt: skip
