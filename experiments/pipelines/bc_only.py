"""The BC-only control of fine-tuning: the same updates and the same weight averaging, on demonstrations alone.

Example::

    updates = train_bc_only(settings, policy, average, demos, rounds=20)     # `average` is the trained policy
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from experiments.pipelines.settings import FineTuneSettings


def train_bc_only(
    settings: FineTuneSettings,
    policy: Any,
    average: Any,
    demos: Any,
    rounds: int | None = None,
    report: Callable[[dict[str, float]], None] | None = None,
) -> float:
    """Clone demonstrations with as many updates of each kind as fine-tuning takes.

    A step of GRPO counts as a supervised step.

    Args:
        settings: settings of the fine-tuning with which the control is compared.
        policy: the initial policy; it is trained.
        average: another copy of it; receives the average over rounds, which is the result.
        demos: dataset of chunks.
        rounds: number of rounds; that of the settings by default.
        report: called with the scalars of each round.

    Returns:
        number of updates.
    """
    from agents import SelfImitation, SelfImitationConfig, average_weights

    config = SelfImitationConfig(
        steps=settings.imitation_steps + settings.updates, lr=settings.imitation_lr, batch_size=settings.bc_batch,
        seed=settings.seed, learn=settings.learn, demo_share=1.0, action_head_steps=settings.head_steps,
    )  # fmt: skip
    cloning, updates, initial = SelfImitation(demos, config), 0.0, copy.deepcopy(average)
    for done in range(1, (rounds or settings.iterations) + 1):
        scalars = cloning.update(policy)
        updates += scalars["imitation_steps"]
        average_weights(average, policy, min(settings.average, done / (done + 2)))
        if report is not None:
            report(scalars)
    if settings.initial_share:
        average_weights(average, initial, 1 - settings.initial_share)
    return updates
