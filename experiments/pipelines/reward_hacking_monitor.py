"""Audits of a policy during training inside a world model: by how much imagined success exceeds true success.

A policy that is rewarded by a judge learns to exploit the judge's errors (World-VLA-Loop, arXiv 2602.06508, reports a
policy that grasped a cup by its back, which the judge accepted as success in imagination). Every few rounds, the
averaged policy therefore acts in imagination from fixed starts, and its actions are executed in Real. Training stops
when imagined success exceeds true success by more than a bound. The episodes in Real are counted.

Example::

    monitor = RewardHackingMonitor(settings, world_model, judge, ("reach", "push"))
    row |= monitor.audit(average)       # audit_imagined, audit_true, audit_gap, audit_episodes, audit_steps
    monitor.trips(row)
"""

from __future__ import annotations

import logging
from typing import Any

from experiments.pipelines.settings import FineTuneSettings
from experiments.suites import chosen_suite, real_env
from worldgym.evaluation import Start, make_starts
from worldgym.protocols import threshold_of

logger = logging.getLogger(__name__)
MONITOR_SEED0 = 18_500_000
"""First seed of the audit starts: held-out starts that no measurement uses."""


class RewardHackingMonitor:
    """Audits of one fine-tuning run; disabled unless `settings.audit_every` is set.

    Args:
        settings: interval, number of episodes, and the maximum gap.
        world_model: world model in which the policy is trained.
        judge: judge that provides the reward.
        tasks: tasks of the training.
        start_seed: first seed of the audit starts.
    """

    def __init__(
        self,
        settings: FineTuneSettings,
        world_model: Any,
        judge: Any,
        tasks: tuple[str, ...],
        start_seed: int = MONITOR_SEED0,
    ) -> None:
        self.settings, self.world_model, self.judge, self.tasks = settings, world_model, judge, tasks
        self.start_seed = start_seed

    def due(self, rounds: int) -> bool:
        """Whether an audit follows round number `rounds`."""
        every = self.settings.audit_every
        return every > 0 and rounds % every == 0

    def starts(self) -> list[Start]:
        """Starts of the audits, the same number for each task."""
        each = max(1, round(self.settings.audit_episodes / len(self.tasks)))
        return make_starts(self.tasks, each, self.start_seed)

    def audit(self, policy: Any) -> dict[str, float]:
        """Act greedily in imagination, execute the actions in Real, and compare (paired; same starts every time)."""
        from worldgym.evaluation.judge_audit import watch

        settings = self.settings
        starts = self.starts()
        suite = chosen_suite(None, settings.bundle)
        env = real_env(suite, horizon=settings.rollout_horizon, terminate_on_success=False)
        seen = watch(
            policy, self.world_model, {"judge": self.judge}, env, starts, horizon=settings.rollout_horizon,
            seed=settings.seed,
        )  # fmt: skip
        steps = env.batch.interactions
        env.close()
        level = settings.threshold
        threshold = threshold_of(self.judge) if level is None else level
        imagined, real, valid = seen.outcomes("judge", threshold)
        found = {
            "audit_episodes": float(len(starts)),
            "audit_steps": float(steps),
            "audit_valid": float(valid.mean()),
        }
        if valid.any():
            judged, true = float(imagined[valid].mean()), float(real[valid].mean())
            found |= {"audit_imagined": judged, "audit_true": true, "audit_gap": judged - true}
        return found

    def trips(self, row: dict[str, float]) -> bool:
        """Whether training must stop after a round with these scalars."""
        gap = row.get("audit_gap")
        if gap is None or gap <= self.settings.audit_bound:
            return False
        logger.warning(
            "training stops after round %d: imagined success %.2f, true success %.2f from the same starts, a gap above "
            "%.2f. The last updates exploit judge %s without success in Real",
            row["iteration"], row["audit_imagined"], row["audit_true"], self.settings.audit_bound, self.judge.name,
        )  # fmt: skip
        return True
