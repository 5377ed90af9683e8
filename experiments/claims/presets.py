"""Sizes of the runs of a claim: `tiny` checks that everything runs, `small` gives results on two cores.

Example::

    PRESETS["small"].practice(seed=0, out="runs/claims/small/imagined_rl-0")     # FineTuneSettings
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from experiments.bundle import Bundle
from experiments.pipelines.settings import FineTuneSettings, rollout_horizon
from experiments.suites import chosen_suite
from worldgym.suite import Suite, extra

UNCOVERED = "unseen_task"
"""The split of tasks that a bundled checkpoint does not cover; claims are measured on all others."""


@dataclass(frozen=True)
class ClaimPreset:
    """Sizes that all arms share, so that their budgets are equal.

    Args:
        name: name of the preset; each preset has its own folder of results.
        bundle: name of a bundled checkpoint, or of its suite.
        world: the bundle as it was given to `in_world`; empty for the default one.
        seeds: default training seeds.
        rounds: rounds of fine-tuning.
        starts: starts per round.
        group: rollouts per start.
        horizon: steps of a training rollout.
        imitation_steps: supervised steps per round.
        batch: chunks per supervised step.
        measured: steps of an evaluation episode.
        episodes: evaluation episodes in Real for each policy, split and action mode.
        looked: number of starts of the evaluator comparison (C20), and of evaluations during training.
        every: rounds between two evaluations during training.
        real_episodes: the policy's own episodes in Real on which filtered BC, RECAP and RAMP are trained.
        foresight_steps: training steps of the network that predicts future latents and values.
        epochs: epochs of SFT on few demonstrations (E2).
        logs: episodes of the logs on which world models are trained further (C24).
        extra_episodes: episodes that are added to them.
        world_steps: training steps of such a world model.
        judge_steps: training steps of a judge on it.
        judge_imagined: logged episodes that it imagines for the judge.
        state_episodes: logged episodes of the state-only world models (C16).
        state_updates: their optimizer steps.
        state_steps: imagined steps of PPO in them.
        dwl_steps: environment steps in Soft of an arm of C17.
        aux_episodes: expert episodes from which the demonstrations of C6 and C7 are drawn.
        aux_video: episodes of unseen objects whose actions are ignored (C6).
        aux_steps: optimizer steps of SFT with an auxiliary loss; at most 25 CPU minutes on one core (C6, C7).
        wam_steps: optimizer steps of a joint world-action model (C8, C9, C10, C14, C25).
        wam_video: episodes whose actions are ignored (C10, C14).
        wam_batch: sequences per step of these.
        optimism_starts: start states of the perturbed demonstrations on which it is measured.
        gaps: domain gaps of Soft.
        budgets: numbers of episodes in Real at which behaviour cloning is compared with RL in imagination (E1).
    """

    name: str
    bundle: str = "tabletop-small"
    world: str = ""
    seeds: tuple[int, ...] = (0, 1, 2)
    rounds: int = 20
    starts: int = 96
    group: int = 6
    horizon: int = 25
    imitation_steps: int = 48
    batch: int = 128
    measured: int = 40
    episodes: int = 201
    looked: int = 150
    every: int = 5
    real_episodes: int = 300
    foresight_steps: int = 800
    epochs: int = 60
    logs: int = 1500
    extra_episodes: int = 300
    world_steps: int = 1000
    judge_steps: int = 300
    judge_imagined: int = 900
    optimism_starts: int = 60
    state_episodes: int = 60
    state_updates: int = 1500
    state_steps: int = 131_072
    dwl_steps: int = 49_152
    aux_episodes: int = 330
    aux_video: int = 150
    aux_steps: int = 1000
    wam_steps: int = 3000
    wam_video: int = 300
    wam_batch: int = 64
    gaps: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    budgets: tuple[int, ...] = (50, 100, 200, 400, 800)

    @property
    def suite(self) -> Suite:
        """The suite of the bundle."""
        return chosen_suite(None, self.bundle)

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits of the suite on which policies are measured."""
        return tuple(split for split in self.suite.splits if split != UNCOVERED)

    @property
    def frozen_gap(self) -> float:
        """The domain gap at which C2 is decided. It was fixed by its effect on scripted experts before any training."""
        return float(extra(self.suite, "frozen_gap", "gap")())

    @property
    def options(self) -> str:
        """Options of the commands that use this preset."""
        return " ".join([*(["--world", self.world] if self.world else []), "--preset", self.name])

    def in_world(self, bundle: str) -> ClaimPreset:
        """The preset with another bundle. Soft is compared at the frozen gap of its suite alone.

        Raises:
            CheckpointError: there is no such bundle.
        """
        Bundle.find(bundle)
        preset = replace(self, bundle=bundle, world=bundle)
        horizon = self.horizon if self.name == "tiny" else rollout_horizon(bundle)
        return replace(preset, gaps=(preset.frozen_gap,), horizon=horizon)

    def practice(self, seed: int, out: Path, **changes: object) -> FineTuneSettings:
        """Return the settings of one fine-tuning run."""
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
        episodes=6, looked=6, every=1, real_episodes=6, foresight_steps=3, epochs=1, logs=60, extra_episodes=6,
        world_steps=2, judge_steps=2, judge_imagined=80, optimism_starts=3,
        state_episodes=8, state_updates=3, state_steps=256, dwl_steps=4096, aux_episodes=6, aux_video=3,
        aux_steps=2, wam_steps=2, wam_batch=4, wam_video=4, gaps=(1.0,), budgets=(50,),
    ),
}  # fmt: skip
