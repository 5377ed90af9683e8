"""How large a claim's runs are: `tiny` to see that everything runs, `small` for results on two cores.

Example::

    PRESETS["small"].practice(seed=0, out="runs/claims/small/imagined_rl-0")     # FineTuneSettings
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from experiments.pipelines.settings import FineTuneSettings

SPLITS = ("seen", "unseen_combination", "unseen_object", "unseen_instruction", "unseen_scene")
"""Splits that the bundled checkpoint's verbs have; `unseen_task` is a verb that it does not cover."""


@dataclass(frozen=True)
class ClaimPreset:
    """Sizes that all arms share: that is what makes their budgets equal.

    Args:
        name: of the preset; its results lie apart from those of others.
        bundle: name of a bundled checkpoint.
        seeds: of training, when none are asked for.
        rounds: of practice.
        starts: of a round.
        group: attempts a start.
        horizon: steps of a practised attempt.
        imitation_steps: supervised steps a round.
        batch: chunks a supervised step.
        measured: steps of a measured episode.
        episodes: measured in Real a policy, split and mode.
        looked: starts from which imagination and Soft judge a policy, for C20, and from which the way is measured.
        every: rounds between two measurements on the way.
        real_episodes: own episodes in Real that filtered BC, RECAP and RAMP learn from.
        foresight_steps: of training what is foreseen.
        epochs: of fitting an SFT policy to few demonstrations.
        gaps: of Soft.
        budgets: episodes in Real at which cloning is compared with imagined practice.
    """

    name: str
    bundle: str = "tabletop-small"
    seeds: tuple[int, ...] = (0, 1, 2)
    rounds: int = 20
    starts: int = 48
    group: int = 6
    horizon: int = 25
    imitation_steps: int = 24
    batch: int = 128
    measured: int = 40
    episodes: int = 201
    looked: int = 150
    every: int = 5
    real_episodes: int = 300
    foresight_steps: int = 800
    epochs: int = 60
    gaps: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    budgets: tuple[int, ...] = (50, 100, 200, 400, 800)

    def practice(self, seed: int, out: Path, **changes: object) -> FineTuneSettings:
        """Settings of one practice."""
        values: dict[str, object] = {
            "seed": seed, "out": out, "bundle": self.bundle, "iterations": self.rounds, "starts": self.starts,
            "group": self.group, "rollout_horizon": self.horizon, "imitation_steps": self.imitation_steps,
            "bc_batch": self.batch,
        }  # fmt: skip
        return FineTuneSettings(**{**values, **changes})  # type: ignore[arg-type]


PRESETS = {
    "small": ClaimPreset("small"),
    "tiny": ClaimPreset(
        "tiny", seeds=(0,), rounds=1, starts=4, group=3, horizon=10, imitation_steps=2, batch=16, measured=10,
        episodes=6, looked=6, every=1, real_episodes=6, foresight_steps=3, epochs=1, gaps=(1.0,), budgets=(50,),
    ),
}  # fmt: skip
