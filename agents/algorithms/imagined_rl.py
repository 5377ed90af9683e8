"""RL inside a world model: rounds of rollouts, GRPO and self-imitation, with an averaged policy as the result.

A round draws starts from logged episodes, imagines a group of rollouts from each, lets the judge reward them, and
updates the policy by GRPO (World-Gymnast, arXiv 2602.02454, section 4) and by supervised steps on judged successes.
Round n is seeded by (seed, n), so a resumed run ends as an uninterrupted one.

Example::

    trainer = ImaginedRLTrainer(ImaginedRLConfig(), world_model, judge, make_policy, starts, demos)
    while len(trainer.history) < 20:
        trainer.round()["success_rate"]
    trainer.average.save_pretrained("runs/policy")
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from agents.algorithms.grpo import GRPO, GRPOConfig
from agents.algorithms.self_imitation import SelfImitation, SelfImitationConfig
from agents.algorithms.sft import average_weights
from agents.data.demonstrations import ChunkDataset
from agents.rollouts.imagined import StartBank, Starts, collect
from agents.rollouts.trajectories import Rollouts
from worldgym.errors import CheckpointError
from worldgym.protocols import RewardModel, Temperature, WorldModel
from worldgym.specs import specs_of

ROUNDS_A_SEED = 10_000
STAGES = ("imagine", "judge", "policy")


@dataclass(frozen=True)
class RolloutConfig:
    """How a round is imagined.

    Args:
        starts: logged frames a round.
        start_oversampling: draw so many times more frames, and keep those at which the policy is least certain of its
            goal; 1 keeps what is drawn. Rollouts from a start at which the policy is certain do not differ, and a group
            without contrast teaches GRPO nothing.
        group_size: rollouts from each start.
        horizon: steps of a rollout.
        temperature: of the goal that the policy chooses, or of its actions where it has no goals.
        action_temperature: of the actions of a policy with goals; 0 is greedy.
        middle_fraction: share of starts from inside logged episodes.
        threshold: probability that counts as success; the judge's own when None.
        confirm: successive judgements that must be successful.
        max_uncertainty: a rollout with a larger uncertainty of the world model is invalid; None for never.
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

    def temperatures(self, policy: Any) -> Temperature:
        """Of a policy's components."""
        if "goal" in getattr(policy, "components", ()):
            return {"goal": self.temperature, "action": self.action_temperature}
        return self.temperature

    def settings(self, policy: Any) -> dict[str, Any]:
        """Keyword arguments of `agents.collect`."""
        return {
            "group_size": self.group_size,
            "horizon": self.horizon,
            "temperature": self.temperatures(policy),
            "threshold": self.threshold,
            "max_uncertainty": self.max_uncertainty,
            "confirm": self.confirm,
        }


@dataclass(frozen=True)
class ImaginedRLConfig:
    """Settings of `ImaginedRLTrainer`.

    Args:
        rollout: how a round is imagined.
        grpo: policy-gradient update; None leaves it out.
        imitation: supervised update on judged successes and demonstrations; `steps=0` leaves it out.
        ema: decay, a round, of the averaged weights.
        actor: whose rollouts are learned from: the `current` policy's, or always the `initial` one's (iterated SFT).
        seed: of everything random.
    """

    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    grpo: GRPOConfig | None = field(default_factory=lambda: GRPOConfig(lr=2e-5, learn="goal"))
    imitation: SelfImitationConfig = field(default_factory=SelfImitationConfig)
    ema: float = 0.8
    actor: Literal["current", "initial"] = "current"
    seed: int = 0


class ImaginedRLTrainer:
    """Rounds of RL inside a world model.

    Args:
        config: settings.
        world_model: that is imagined in.
        judge: whose reward is learned from.
        make_policy: gives a fresh copy of the policy to begin with, at each call.
        starts: logged frames.
        demos: demonstrations, for the supervised steps.
        gather: `gather(policy, starts, round, settings)` collects a round's rollouts in place of `collect` in this
            process: Ray workers, or a simulator.
        draw: `draw(policy, rng)` draws a round's starts in place of `draw_starts`.

    Raises:
        CheckpointError: starts, demonstrations, policy and world model do not fit each other.
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
        check_frames(world_model, starts.starts, demos)
        check_chunks(world_model, self.policy, demos)
        self.improver = GRPO(config.grpo or GRPOConfig())
        self.imitation = SelfImitation(demos, config.imitation)
        self.history: list[dict[str, float]] = []

    def stream(self, number: int) -> int:
        """Seed of round `number`."""
        return self.config.seed * ROUNDS_A_SEED + number

    def round(self) -> dict[str, float]:
        """One round: imagine, judge, update, average.

        Returns:
            scalars, also appended to `history`: those of GRPO and of the imitation, success_rate, ep_len_mean (steps),
            valid (share), groups_share, updates, imagined_steps (so far), and seconds by stage.
        """
        config, number = self.config, len(self.history)
        rng = np.random.default_rng([config.seed, number])
        torch.manual_seed(self.stream(number))
        actor = self.policy if config.actor == "current" else self.make_policy()
        rollouts = self.gather(actor, self.draw(actor, rng), number, config.rollout.settings(actor))
        began = time.perf_counter()
        compared = rollouts if config.grpo else rollouts.select(torch.zeros(len(rollouts), dtype=torch.bool))
        scalars = {
            **self.improver.update(self.policy, compared),
            **self.imitation.update(self.policy, rollouts),
        }
        spent = time.perf_counter() - began
        grpo = self.improver.config
        learned = min(scalars.get("trajectories_kept", 0.0), grpo.updates) * grpo.epochs
        before = self.history[-1]["imagined_steps"] if self.history else 0.0
        row = {
            **{k: float(v) for k, v in scalars.items()},
            "iteration": float(number + 1),
            "success_rate": rollouts.success_rate(),
            "ep_len_mean": float(rollouts.lengths.float().mean()) * self.policy.chunk,
            "valid": float(rollouts.valid.float().mean()),
            "groups_share": scalars["groups_kept"] / max(1.0, scalars["groups"]),
            "updates": learned + scalars["imitation_steps"],
            "imagined_steps": before + rollouts.frames_used,
            "seconds_update": spent,
            **{f"seconds_{k}": float(rollouts.seconds.get(k, 0.0)) for k in STAGES},
        }
        self.history.append(row)
        done = len(self.history)
        average_weights(self.average, self.policy, min(config.ema, done / (done + 2)))
        return row

    def _collect(self, policy: Any, starts: Starts, number: int, settings: dict[str, Any]) -> Rollouts:
        generator = torch.Generator().manual_seed(self.stream(number))
        return collect(self.world_model, self.judge, policy, starts, generator=generator, **settings)

    def draw_starts(self, policy: Any, rng: np.random.Generator) -> Starts:
        """A round's starts: those of the drawn frames at which the policy is least certain of its goal."""
        r = self.config.rollout
        drawn = self.starts.sample(r.starts * r.start_oversampling, rng, middle_fraction=r.middle_fraction)
        if r.start_oversampling == 1:
            return drawn
        if not hasattr(policy, "confidence"):  # a policy that does not say how certain it is
            return drawn.select(np.arange(r.starts))
        return drawn.select(policy.confidence(drawn.observation()).argsort()[: r.starts].cpu().numpy())

    # -- resuming ------------------------------------------------------------------------------------------------
    def save(self, folder: Path, save_policy: Callable[[Any, Path], None], **meta: Any) -> None:
        """Write everything that the next round depends on.

        Args:
            folder: gets `average`, `imitation` and `grpo`.
            save_policy: writes a policy.
            **meta: what `load` returns, as plain JSON.
        """
        save_policy(self.average, folder / "average")
        self.imitation.save(self.policy, folder / "imitation")
        self.improver.save(self.policy, folder / "grpo", {"history": self.history, **meta})

    def load(self, folder: Path, load_policy: Callable[[Path], Any]) -> dict[str, Any]:
        """Inverse of `save`; returns its `meta`."""
        self.imitation.load(self.policy, folder / "imitation")
        meta = self.improver.load(self.policy, folder / "grpo")
        self.history = list(meta.pop("history"))
        self.average = load_policy(folder / "average")
        return meta


def check_frames(world_model: Any, starts: Starts, demos: ChunkDataset) -> None:
    """Raise a CheckpointError where starts or demonstrations are not what the world model reads."""
    spec = specs_of(world_model).observation
    wanted, states = (*spec.main.size, 3), spec.state_dim
    parts: dict[str, Starts | ChunkDataset] = {"starts": starts, "demonstrations": demos}
    for name, data in parts.items():
        shape = tuple(data.images.shape[1:]), int(data.states.shape[1])
        if shape != (wanted, states):
            raise CheckpointError(
                f"the {name} have images {shape[0]} and states ({shape[1]},), its world model reads images {wanted} "
                f"and states ({states},)"
            )
        missing = [camera.name for camera in spec.views if camera.name not in data.views]
        if missing:
            raise CheckpointError(
                f"the {name} lack frames of the camera {', '.join(missing)}, which its world model reads"
            )


def check_chunks(world_model: Any, policy: Any, demos: ChunkDataset) -> None:
    """Raise a CheckpointError where the demonstrated chunks are not such as the policy makes."""
    got, wanted = tuple(demos.actions.shape[1:]), (policy.chunk, world_model.action_dim)
    if got != wanted:
        raise CheckpointError(
            f"the demonstrations have action chunks {got}, policy and world model take {wanted}"
        )
