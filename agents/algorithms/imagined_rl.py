"""RL inside a world model: rounds of rollouts, GRPO and self-imitation. The result is an averaged policy.

A round draws start frames from logged episodes, imagines a group of rollouts from each, rewards them with the judge,
and updates the policy by GRPO (World-Gymnast, arXiv 2602.02454, section 4) and by supervised steps on judged successes.
Round n is seeded by (seed, n), so a resumed run gives the same result as an uninterrupted one.

Example::

    trainer = ImaginedRLTrainer(ImaginedRLConfig(), world_model, judge, make_policy, starts, demos)
    while len(trainer.history) < 20:
        trainer.round()["success_rate"]
    trainer.average.save_pretrained("runs/policy")
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from agents.algorithms.grpo import GRPO, GRPOConfig
from agents.algorithms.guards import require_finite_weights
from agents.algorithms.hindsight import relabel
from agents.algorithms.improver import make_improver, updated
from agents.algorithms.parameters import learned_parameters
from agents.algorithms.self_imitation import SelfImitation, SelfImitationConfig
from agents.algorithms.sft import average_weights
from agents.data.demonstrations import ChunkDataset
from agents.rollouts.imagined import StartBank, Starts, collect
from agents.rollouts.trajectories import Rollouts
from worldgym.errors import CheckpointError
from worldgym.protocols import RewardModel, Temperature, WorldModel
from worldgym.registry import IMPROVERS, accepted
from worldgym.specs import check_fit, specs_of

ROUNDS_A_SEED = 10_000
STAGES = ("imagine", "judge", "policy")
RESERVED = (
    "iteration", "success_rate", "ep_len_mean", "valid", "groups_share", "updates", "imagined_steps", "seconds_update",
    *(f"seconds_{stage}" for stage in STAGES), "imitation_loss", "memory", "remembered", "imitation_steps",
)  # fmt: skip
"""Scalars of a round that the trainer computes itself; the metrics of an improver must have other names."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RolloutConfig:
    """Settings of the imagined rollouts of a round.

    Args:
        starts: start frames per round, drawn from logged episodes.
        start_oversampling: draw this many times more frames, and keep those at which the policy is least certain of its
            goal; 1 keeps all drawn frames. Rollouts from a start at which the policy is certain do not differ, and GRPO
            learns nothing from a group without contrast.
        group_size: rollouts per start.
        horizon: steps of a rollout.
        temperature: sampling temperature of the goal, or of the actions if the policy has no goal.
        action_temperature: sampling temperature of the actions of a policy with goals; 0 is greedy.
        middle_fraction: fraction of start frames that are not the first frame of their episode.
        threshold: probability that counts as success; None uses the judge's own threshold.
        confirm: number of successive judgements that must be successful.
        max_uncertainty: a rollout whose world-model uncertainty exceeds this is invalid; None disables the check.
        penalty: weight of a rollout's uncertainty, which is subtracted from its reward before the improver and the
            imitation see it (RWM-U, arXiv 2504.16680); a success whose reward falls to 0.5 or less is not imitated.
        distinct_goals: the attempts from a start try different goals (`agents.rollouts.exploration`).
        hindsight: other instructions per failed attempt that the judge is asked about (`agents.algorithms.hindsight`);
            attempts that fulfil one are imitated under it. 0 disables it.
        hindsight_threshold: lowest probability that counts there.
    """

    starts: int = 48
    start_oversampling: int = 2
    group_size: int = 6
    horizon: int = 25
    temperature: float = 2.0
    action_temperature: float = 0.0
    middle_fraction: float = 0.3
    threshold: float | None = None
    confirm: int = 1
    max_uncertainty: float | None = None
    penalty: float = 0.0
    distinct_goals: bool = False
    hindsight: int = 0
    hindsight_threshold: float = 0.9

    def temperatures(self, policy: Any) -> Temperature:
        """Sampling temperature of each component of `policy`."""
        if "goal" in getattr(policy, "components", ()):
            return {"goal": self.temperature, "action": self.action_temperature}
        return self.temperature

    def settings(self, policy: Any) -> dict[str, Any]:
        """Keyword arguments for `agents.collect`."""
        return {
            "group_size": self.group_size,
            "horizon": self.horizon,
            "temperature": self.temperatures(policy),
            "threshold": self.threshold,
            "max_uncertainty": self.max_uncertainty,
            "confirm": self.confirm,
            **({"distinct_goals": True} if self.distinct_goals else {}),
        }


@dataclass(frozen=True)
class ImaginedRLConfig:
    """Settings of `ImaginedRLTrainer`.

    Args:
        rollout: settings of the imagined rollouts.
        grpo: settings of the policy-gradient update; None disables it. Another improver gets its lr, updates, seed and
            learn.
        imitation: supervised update on judged successes and demonstrations; `steps=0` disables it.
        ema: decay per round of the averaged weights.
        actor: the policy that generates the rollouts: `current`, or always `initial` (iterated SFT).
        seed: seed of all randomness.
        improver: registered improver that updates the policy from rollouts (`worldgym.registry.IMPROVERS`).
    """

    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    grpo: GRPOConfig | None = field(default_factory=lambda: GRPOConfig(lr=2e-5, learn="goal"))
    imitation: SelfImitationConfig = field(default_factory=SelfImitationConfig)
    ema: float = 0.8
    actor: Literal["current", "initial"] = "current"
    seed: int = 0
    improver: str = "grpo"

    @property
    def update(self) -> GRPOConfig:
        """Settings of the improver: those of `grpo`, or the defaults if `grpo` is None."""
        return self.grpo or GRPOConfig()


class ImaginedRLTrainer:
    """Runs rounds of RL inside a world model.

    Args:
        config: settings.
        world_model: world model that imagines the rollouts.
        judge: judge that rewards them.
        make_policy: returns a new copy of the initial policy at each call.
        starts: start frames from logged episodes.
        demos: demonstrations for the supervised steps.
        gather: `gather(policy, starts, round, settings)` collects the rollouts of a round, e.g. on Ray workers or in a
            simulator. None runs `collect` in this process.
        draw: `draw(policy, rng)` draws the starts of a round. None uses `draw_starts`.

    Raises:
        CheckpointError: starts, demonstrations, policy and world model are incompatible.
        ConfigError: policy or judge do not fit the world model's specs, the policy has no such component to learn, or
            the improver cannot be used here.
    """

    def __init__(
        self,
        config: ImaginedRLConfig,
        world_model: WorldModel,
        judge: RewardModel,
        make_policy: Callable[[], Any],
        starts: StartBank,
        demos: ChunkDataset,
        *,
        gather: Callable[..., Rollouts] | None = None,
        draw: Callable[[Any, np.random.Generator], Any] | None = None,
    ) -> None:
        self.config, self.world_model, self.judge, self.starts = config, world_model, judge, starts
        self.make_policy, self.gather, self.draw = (
            make_policy,
            gather or self._collect,
            draw or self.draw_starts,
        )
        self.policy, self.average = make_policy(), make_policy()
        check_fit(world_model, self.policy, "the world model", "the policy")
        check_fit(world_model, judge, "the world model", "the judge")
        check_frames(world_model, starts.starts, demos)
        self._check_chunks(demos)
        parts = ((config.update.learn, config.grpo), (config.imitation.learn, config.imitation.steps))
        for learn, used in (*parts, ("action_head", config.imitation.action_head_steps)):
            if used:
                learned_parameters(self.policy, learn)  # raises before anything is imagined
        self.improver = self._improver(demos)
        self.imitation = SelfImitation(demos, config.imitation)
        self.history: list[dict[str, float]] = []

    def _improver(self, demos: ChunkDataset) -> Any:
        given = self.config.update
        if self.config.improver == "grpo":
            return GRPO(given)
        return make_improver(
            self.config.improver, lr=given.lr, updates=given.updates, seed=given.seed, learn=given.learn, demos=demos
        )

    def _check_chunks(self, demos: ChunkDataset) -> None:
        """Check the demonstrations' chunks if anything clones them; `imitation.steps=0` switches that off."""
        if self.config.imitation.steps:
            remedy = (
                "Add --imitation-steps 0 (imitation.steps=0), which trains on rollouts without demonstrations, or "
                "begin with a policy of this chunk length"
            )
        elif self.config.improver != "grpo" and takes_demos(self.config.improver):
            remedy = f"The improver {self.config.improver!r} clones them: begin with a policy of this chunk length"
        else:
            return
        check_chunks(self.world_model, self.policy, demos, remedy)

    def _invalid(self, rollouts: Rollouts) -> str:
        """Explain why all rollouts are invalid."""
        last = rollouts.p_success[torch.arange(len(rollouts)), rollouts.lengths.clamp(min=1) - 1]
        doubted = int(torch.isnan(last).sum())
        limit = self.config.rollout.max_uncertainty
        bound = "" if limit is None else f" (max_uncertainty {limit:g})"
        reasons = [
            f"{len(rollouts) - doubted} without a verdict of judge {judge_name(self.judge)} (NaN, valid=False or no "
            "answer)",
            f"{doubted} with an unusable prediction of the world model{bound}",
        ]
        given = [reason for reason in reasons if not reason.startswith("0 ")]
        return (
            f"all {len(rollouts)} imagined episodes are invalid, and the policy learns nothing from them: "
            f"{', '.join(given)}"
        )

    def stream(self, number: int) -> int:
        """Return the seed of round `number`."""
        return self.config.seed * ROUNDS_A_SEED + number

    def round(self) -> dict[str, float]:
        """Run one round: imagine, judge, update, average.

        Returns:
            scalars, also appended to `history`: those of the improver and of the imitation, success_rate, ep_len_mean
            (steps), valid (fraction), groups_share, updates, imagined_steps (cumulative), and seconds per stage.

        Raises:
            ConfigError: the policy's outputs or the improver's metrics are not as expected.
            DivergedError: a loss, gradient or weight is NaN or infinite. The history and the averaged policy do not
                change then.
        """
        config, number = self.config, len(self.history)
        rng = np.random.default_rng([config.seed, number])
        torch.manual_seed(self.stream(number))
        actor = self.policy if config.actor == "current" else self.make_policy()
        rollouts = self.gather(actor, self.draw(actor, rng), number, config.rollout.settings(actor))
        if len(rollouts) and not bool(rollouts.valid.any()):
            logger.warning("round %d: %s", number + 1, self._invalid(rollouts))
        began, rate = time.perf_counter(), rollouts.success_rate()
        if config.rollout.penalty and rollouts.uncertainty is not None:
            rollouts.reward = rollouts.reward - config.rollout.penalty * rollouts.uncertainty.nan_to_num()
        compared = rollouts if config.grpo else rollouts.select(torch.zeros(len(rollouts), dtype=torch.bool))
        scalars = updated(config.improver, self.improver, self.policy, compared, RESERVED)
        require_finite_weights(self.policy, f"improver {config.improver!r}")
        scalars |= self._hindsight(rollouts, rng)
        scalars |= self.imitation.update(self.policy, rollouts)
        require_finite_weights(self.policy, "self-imitation")
        spent = time.perf_counter() - began
        learned = scalars.get("steps", 0.0)
        if isinstance(self.improver, GRPO):
            given = self.improver.config
            learned = min(scalars.get("trajectories_kept", 0.0), given.updates) * given.epochs
        before = self.history[-1]["imagined_steps"] if self.history else 0.0
        row = {
            **{k: float(v) for k, v in scalars.items()},
            "iteration": float(number + 1),
            "success_rate": rate,
            "ep_len_mean": float(rollouts.lengths.float().mean()) * self.policy.chunk,
            "valid": float(rollouts.valid.float().mean()),
            "groups_share": scalars.get("groups_kept", 0.0) / max(1.0, scalars.get("groups", 0.0)),
            "updates": learned + scalars["imitation_steps"],
            "imagined_steps": before + rollouts.frames_used,
            "seconds_update": spent,
            **{f"seconds_{k}": float(rollouts.seconds.get(k, 0.0)) for k in STAGES},
        }
        self.history.append(row)
        done = len(self.history)
        average_weights(self.average, self.policy, min(config.ema, done / (done + 2)))
        return row

    def _hindsight(self, rollouts: Rollouts, rng: np.random.Generator) -> dict[str, float]:
        """Store failed attempts that fulfil another instruction; returns counts by name."""
        r = self.config.rollout
        if not r.hindsight:
            return {}
        sentences: dict[str, list[str]] = {}
        if rollouts.other_instructions is None:
            if not self.history:
                logger.warning(
                    "hindsight: the starts do not say which other instructions can be followed from them, so the judge "
                    "is asked about all instructions of the task, also about objects that are not there. If the "
                    "suite has other_instructions(), as the tabletop has, take --start-frames from logs of `worldgym "
                    "collect`; `worldgym bench hindsight --no-scene` audits the judge there"
                )
            given = self.starts.starts
            for task, text in sorted(set(zip(given.tasks, given.instructions, strict=True))):
                sentences.setdefault(task, []).append(text)
        extra, facts = relabel(
            rollouts, self.judge, sentences, threshold=r.hindsight_threshold, rng=rng, candidates=r.hindsight
        )
        if extra is not None:
            self.imitation.remember(self.policy, extra)
        return {f"hindsight_{name}": value for name, value in facts.items()}

    def _collect(self, policy: Any, starts: Starts, number: int, settings: dict[str, Any]) -> Rollouts:
        generator = torch.Generator().manual_seed(self.stream(number))
        return collect(self.world_model, self.judge, policy, starts, generator=generator, **settings)

    def draw_starts(self, policy: Any, rng: np.random.Generator) -> Starts:
        """Draw frames and keep those at which the policy is least certain of its goal."""
        r = self.config.rollout
        drawn = self.starts.sample(r.starts * r.start_oversampling, rng, middle_fraction=r.middle_fraction)
        if r.start_oversampling == 1:
            return drawn
        if not hasattr(policy, "confidence"):  # the policy does not report its certainty
            return drawn.select(np.arange(r.starts))
        return drawn.select(policy.confidence(drawn.observation()).argsort()[: r.starts].cpu().numpy())

    # -- resuming ------------------------------------------------------------------------------------------------
    def save(self, folder: Path, save_policy: Callable[[Any, Path], None], **meta: Any) -> None:
        """Write the full training state.

        Args:
            folder: target folder; `average`, `imitation` and `grpo` are written into it.
            save_policy: function that writes a policy.
            **meta: JSON values that `load` returns.
        """
        save_policy(self.average, folder / "average")
        self.imitation.save(self.policy, folder / "imitation")
        self.improver.save(self.policy, folder / "grpo", {"history": self.history, **meta})

    def load(self, folder: Path, load_policy: Callable[[Path], Any]) -> dict[str, Any]:
        """Inverse of `save`; returns the `meta` passed to it."""
        self.imitation.load(self.policy, folder / "imitation")
        meta = self.improver.load(self.policy, folder / "grpo")
        self.history = list(meta.pop("history"))
        self.average = load_policy(folder / "average")
        return meta


def check_frames(world_model: Any, starts: Starts, demos: ChunkDataset) -> None:
    """Raise a CheckpointError if starts or demonstrations do not match the inputs of the world model."""
    spec = specs_of(world_model).observation
    wanted, states = (*spec.main.size, 3), spec.state_dim
    parts: dict[str, Starts | ChunkDataset] = {"starts": starts, "demonstrations": demos}
    for name, data in parts.items():
        shape = tuple(data.images.shape[1:]), int(data.states.shape[1])
        if shape != (wanted, states):
            raise CheckpointError(
                f"the {name} have images {shape[0]} and states ({shape[1]},), but the world model reads images "
                f"{wanted} and states ({states},)"
            )
        missing = [camera.name for camera in spec.views if camera.name not in data.views]
        if missing:
            raise CheckpointError(
                f"the {name} lack frames of the camera {', '.join(missing)}, which the world model reads"
            )


def check_chunks(world_model: Any, policy: Any, demos: ChunkDataset, remedy: str = "") -> None:
    """Compare the action chunks of the demonstrations with those of the policy.

    Args:
        world_model: gives the action dimension.
        policy: gives the chunk length.
        demos: the demonstrations.
        remedy: what to do about another chunk length.

    Raises:
        CheckpointError: another chunk length or action dimension.
    """
    got, wanted = tuple(demos.actions.shape[1:]), (policy.chunk, world_model.action_dim)
    if got[1:] != wanted[1:]:
        raise CheckpointError(
            f"the demonstrations have action chunks {got}, but policy and world model expect {wanted}"
        )
    if got != wanted:
        raise CheckpointError(
            f"the demonstrations have chunks of {got[0]} actions, but the policy predicts {policy.chunk}, so it cannot "
            f"clone them. {remedy}".rstrip()
        )


def takes_demos(improver: str) -> bool:
    """Whether a registered improver is given the demonstrations."""
    kind = IMPROVERS.get(improver)
    return "demos" in accepted(getattr(kind, "for_rl", kind), {"demos": None})


def judge_name(judge: Any) -> str:
    """Name of a judge for messages."""
    return str(getattr(judge, "name", type(judge).__name__))
