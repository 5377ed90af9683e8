"""Audits of a policy while it learns inside a world model: how far imagined success exceeds true success.

Why: a policy that is rewarded by a judge learns to please the judge (World-VLA-Loop, arXiv 2602.06508, saw one grasp a
cup by its back, which passed for success in imagination). So every few rounds the averaged policy acts in imagination
from fixed starts, its actions are executed in Real, and learning ends when imagined success exceeds the true one by
more than a bound. Real's use is counted.

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
"""Starts of these audits: held out, and other than those of any measurement."""


class RewardHackingMonitor:
    """The audits of one fine-tuning; off unless `settings.audit_every`.

    Args:
        settings: how often, on how many episodes, and how wide a gap is too wide.
        world_model: that the policy learns in.
        judge: whose reward it learns from.
        tasks: that it learns.
        start_seed: of the audits' starts.
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
        """Whether an audit comes after so many rounds."""
        every = self.settings.audit_every
        return every > 0 and rounds % every == 0

    def starts(self) -> list[Start]:
        """Of the audits, as many of each task."""
        each = max(1, round(self.settings.audit_episodes / len(self.tasks)))
        return make_starts(self.tasks, each, self.start_seed)

    def audit(self, policy: Any) -> dict[str, float]:
        """Act in imagination, greedily; execute in Real; compare. The same starts every time, all of them paired."""
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
            said, true = float(imagined[valid].mean()), float(real[valid].mean())
            found |= {"audit_imagined": said, "audit_true": true, "audit_gap": said - true}
        return found

    def trips(self, row: dict[str, float]) -> bool:
        """Whether learning must end after a round with these scalars."""
        gap = row.get("audit_gap")
        if gap is None or gap <= self.settings.audit_bound:
            return False
        logger.warning(
            "learning ends after round %d: imagined success %.2f, true success %.2f from the same starts, a gap beyond "
            "%.2f. What was learned last pleases judge %s and not Real",
            row["iteration"], row["audit_imagined"], row["audit_true"], self.settings.audit_bound, self.judge.name,
        )  # fmt: skip
        return True
