"""Filtered behaviour cloning: imitate successful trajectories. The simplest improver, and a control for GRPO.

Example::

    scalars = FilteredBC(FilteredBCConfig(lr=1e-4)).update(policy, rollouts)
    scalars["trajectories_kept"], scalars["loss"]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from typing_extensions import Self

from agents.algorithms.guards import evaluated, require_finite_step
from agents.algorithms.improver import OptimizerImprover
from agents.rollouts.trajectories import Rollouts
from worldgym.errors import ConfigError


@dataclass(frozen=True)
class FilteredBCConfig:
    """Settings of filtered behaviour cloning.

    Args:
        lr: AdamW learning rate.
        epochs: passes over the successful trajectories.
        batch_size: chunks per step.
        weights: loss weight of each policy component by name; 1 for components without an entry.
        grad_clip: maximum gradient norm.
        seed: seed of the order of chunks.
    """

    lr: float = 1e-4
    epochs: int = 1
    batch_size: int = 256
    weights: Mapping[str, float] = field(default_factory=dict)
    grad_clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate."""
        if self.lr <= 0 or self.epochs < 1 or self.batch_size < 1:
            raise ConfigError(f"lr must be positive, epochs and batch_size at least 1; got {self}")


class FilteredBC(OptimizerImprover):
    """Improver that maximises the log-likelihood of the choices in valid successful trajectories, up to success.

    Args:
        config: settings.
    """

    def __init__(self, config: FilteredBCConfig | None = None) -> None:
        self.config = config or FilteredBCConfig()

    @classmethod
    def for_rl(cls, lr: float, seed: int) -> Self:
        """Filtered behaviour cloning with the settings of an RL run."""
        return cls(FilteredBCConfig(lr=lr, seed=seed))

    def update(self, policy: Any, rollouts: Rollouts) -> dict[str, float]:
        """Clone the successes in place; returns loss, steps, trajectories_kept. Without a success, changes nothing.

        Raises:
            ConfigError: `evaluate` lacks a component, or its log-probabilities have another shape than those of `act`.
            DivergedError: a loss or a gradient is NaN or infinite; that step is not taken.
        """
        config = self.config
        good = (rollouts.valid & (rollouts.reward > 0.5)).nonzero().squeeze(1)
        rng = np.random.default_rng((config.seed, self.iteration))
        self.iteration += 1
        if len(good) == 0:
            return {"loss": 0.0, "steps": 0.0, "trajectories_kept": 0.0, "reward": rollouts.success_rate()}
        optimizer = self.optimizer(policy)
        where = rollouts.mask[good].nonzero()
        row, chunk = good[where[:, 0]], where[:, 1]
        policy.eval()
        losses = []
        for _ in range(config.epochs):
            order = torch.from_numpy(rng.permutation(len(row)))
            for part in order.split(config.batch_size):
                r, c = row[part], chunk[part]
                old = {name: value[r, c] for name, value in rollouts.log_probs.items()}
                now = evaluated(policy, rollouts.observation(r, c), rollouts.trace_at(r, c), old).log_probs
                parts = {name: config.weights.get(name, 1.0) * value.mean() for name, value in now.items()}
                loss = -sum(parts.values())
                losses.append(float(loss.detach()))
                if not math.isfinite(losses[-1]):
                    bad = [name for name, value in parts.items() if not math.isfinite(float(value.detach()))]
                    what = f"loss of the component {', '.join(map(repr, bad))}"
                    require_finite_step(losses[-1], what, policy, config.lr)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                norm = float(torch.nn.utils.clip_grad_norm_(policy.parameters(), config.grad_clip))
                require_finite_step(norm, "gradient norm", policy, config.lr)
                optimizer.step()
        return {
            "loss": float(np.mean(losses)),
            "steps": float(len(losses)),
            "trajectories_kept": float(len(good)),
            "reward": rollouts.success_rate(),
        }
