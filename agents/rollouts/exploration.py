"""Exploration over goals: the attempts of a group try different places, and each keeps its place until it is reached.

Attempts of one start that sample their goals independently mostly choose the same place, and change it at every chunk.
A group without a success teaches nothing, whatever its size. Here the first goals of a group are drawn *without
replacement* among the distinct places that the policy proposes: Gumbel noise is added to the log-probability of every
proposed place, and the largest are taken (Gumbel top-k; Kool et al. 2019). An attempt keeps its goal until the hand is
there, or for `patience` chunks.

Rare places are drawn more often than the policy would, so every attempt has a weight, its probability over its
probability of being drawn (Kool et al. 2020, eq. 14), which GRPO uses.

Example::

    explore = GoalExploration(policy, group_size=6, temperature={"goal": 2.0, "action": 0.0}, generator=generator)
    result = rollout(explore, episodes, observers=[recorder])
    explore.weights          # (N,)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from worldgym.errors import ConfigError
from worldgym.protocols import Observation, PolicyOutput, Temperature


class GoalExploration:
    """An `act` for `worldgym.imagination.rollout` that chooses goals for groups of attempts.

    Args:
        policy: has `distinct_goals` and `reached`, and takes `goal` in its observation (`VLAPolicy` with goals).
        group_size: attempts per start; rows of a group follow each other.
        temperature: sampling temperatures of the policy.
        generator: source of randomness.
        patience: chunks for which an unreached goal is kept.

    Attributes:
        weights: `(N,)` importance weights of the attempts, with mean 1 in each group.

    Raises:
        ConfigError: the policy has no goals.
    """

    def __init__(
        self,
        policy: Any,
        group_size: int,
        temperature: Temperature,
        generator: torch.Generator | None = None,
        patience: int = 2,
    ) -> None:
        if not hasattr(policy, "distinct_goals") or "goal" not in getattr(policy, "components", ()):
            raise ConfigError(
                f"{type(policy).__name__} has no goals to explore; leave out --distinct-goals, or take a policy with a "
                "goal head"
            )
        self.policy, self.group_size, self.patience = policy, group_size, patience
        self.temperature, self.generator = temperature, generator
        self.goals, self.age = torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)
        self.weights = torch.ones(0)

    def __call__(self, observation: Observation, rows: NDArray[np.int64]) -> PolicyOutput:
        """Act in the episodes `rows`."""
        index = torch.from_numpy(rows)
        if not len(self.goals):
            heat = self.temperature.get("goal", 1.0) if isinstance(self.temperature, dict) else self.temperature
            self.goals, self.weights = self.policy.distinct_goals(
                observation, index // self.group_size, float(heat), self.generator  # type: ignore[arg-type]
            )
            self.age = torch.zeros(len(rows), dtype=torch.int64)
        wanted = self.goals[index]
        free = self.policy.reached(observation, wanted).cpu() | (self.age[index] >= self.patience)
        wanted = torch.where(free[:, None], torch.full_like(wanted, float("nan")), wanted)
        shown: Any = {**observation, "goal": wanted}
        output: PolicyOutput = self.policy.act(shown, temperature=self.temperature, generator=self.generator)
        self.goals[index] = output.trace["aim"].cpu()
        self.age[index] = torch.where(free, 1, self.age[index] + 1)
        return output
