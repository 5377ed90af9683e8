"""Reward-weighted regression: raise the log-probability of the choices of rollouts better than their group's mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agents.algorithms.improver import OptimizerImprover


@dataclass(frozen=True)
class Settings:
    lr: float = 1e-4


class RewardWeighted(OptimizerImprover):
    def __init__(self, lr: float = 1e-4) -> None:
        self.config = Settings(lr)

    def update(self, policy: Any, rollouts: Any) -> dict[str, float]:
        better = rollouts.valid & (rollouts.reward > rollouts.reward[rollouts.valid].mean())
        row, chunk = (rollouts.mask & better[:, None]).nonzero(as_tuple=True)
        self.iteration += 1
        if not len(row):
            return {"loss": 0.0, "entropy": 0.0, "steps": 0.0}
        now = policy.evaluate(rollouts.observation(row, chunk), rollouts.trace_at(row, chunk))
        loss = -now.log_probs["action"].mean()
        optimizer = self.optimizer(policy)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": float(loss.detach()), "entropy": float(now.entropies["action"].mean()), "steps": 1.0}
