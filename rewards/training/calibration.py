"""A judge's threshold for each verb, found where it will be used and said in its own words.

Why: how much a probability is worth differs from verb to verb. In imagination a push that misses looks much like one
that does not, and needs more than a reach whose end the robot feels in its own arm. So policies act in imagination,
their actions are executed in Real, and for each verb the threshold is taken at which the least of all policies'
precision and recall is largest. It goes into the judge as a shift of its logit that is linear in the instruction's
embedding, fitted to sentences of each verb (Platt scaling, Platt 1999, with a bias that words decide): one threshold
then serves all.

Example::

    table = best_thresholds([looks_of_sft, looks_of_practised])       # {"reach": 0.8, "push": 0.95, ...}
    calibrate_words(judge, instructions, tasks, table, at=0.85)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from rewards.training.imagined_logs import stopped
from worldgym.errors import ConfigError
from worldgym.text import embed

if TYPE_CHECKING:
    from rewards.models.learned import LearnedJudge

GRID = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.88, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99)
RIDGE = 1e-3


@dataclass(frozen=True)
class Looks:
    """What a judge said of N imagined episodes that went on whatever it said, and what was true by then in Real.

    Args:
        said: `(N,C)` probability of success at each look.
        truth: `(N,C)` bool, whether the same actions had succeeded in Real by then.
        tasks: N verbs.
    """

    said: np.ndarray
    truth: np.ndarray
    tasks: tuple[str, ...]

    def counts(self, task: str, threshold: float) -> np.ndarray:
        """False positives, true positives, false negatives of `task`, if episodes stop at the first success judged."""
        rows = np.array([t == task for t in self.tasks])
        imagined, real = stopped(self.said[rows], self.truth[rows], threshold)
        return np.array([(imagined & ~real).sum(), (imagined & real).sum(), (~imagined & real).sum()])


def worst_rate(looks: Sequence[Looks], thresholds: Mapping[str, float]) -> float:
    """The least precision or recall of any policy over all verbs; 0 where one is undefined."""
    worst = 1.0
    for of_policy in looks:
        fp, tp, fn = np.sum([of_policy.counts(task, cut) for task, cut in thresholds.items()], 0)
        worst = min(worst, tp / max(1, tp + fp), tp / max(1, tp + fn))
    return float(worst)


def best_thresholds(looks: Sequence[Looks], grid: Sequence[float] = GRID) -> dict[str, float]:
    """For each verb the threshold at which `worst_rate` is largest, one verb after the other until none helps.

    Raises:
        ConfigError: no looks.
    """
    if not looks or not looks[0].tasks:
        raise ConfigError("calibrating needs imagined episodes of at least one policy; got none")
    tasks = sorted({task for of_policy in looks for task in of_policy.tasks})
    at = [worst_rate(looks, dict.fromkeys(tasks, float(cut))) for cut in grid]
    common = grid[int(np.argmax(at))]
    best: dict[str, float] = {task: float(common) for task in tasks}
    value, improved = worst_rate(looks, best), True
    while improved:
        improved = False
        for task in tasks:
            for cut in grid:
                other = {**best, task: float(cut)}
                if (rate := worst_rate(looks, other)) > value + 1e-9:
                    best, value, improved = other, rate, True
    return best


def logit(p: float) -> float:
    """Log odds of a probability."""
    return math.log(p / (1 - p))


def calibrate_words(
    judge: LearnedJudge,
    instructions: Sequence[str],
    tasks: Sequence[str],
    thresholds: Mapping[str, float],
    *,
    at: float,
) -> LearnedJudge:
    """`judge` with a logit shift for each instruction, so that the threshold `at` means `thresholds[verb]`.

    Args:
        judge: any; unchanged.
        instructions: M sentences, paraphrases of every verb among them.
        tasks: their verbs.
        thresholds: of each verb, on the judge's present scale.
        at: the threshold on the new one.

    Raises:
        ConfigError: a verb without a threshold.
    """
    if unknown := sorted(set(tasks) - set(thresholds)):
        raise ConfigError(f"no threshold for {', '.join(unknown)}; calibrate on starts of these verbs too")
    shift = {task: logit(at) - logit(cut) for task, cut in thresholds.items()}
    pairs = sorted(set(zip(instructions, tasks, strict=True)))
    x = torch.from_numpy(embed([text for text, _ in pairs])).double()
    y = torch.tensor([shift[task] for _, task in pairs], dtype=torch.float64)
    # Each verb weighs the same, however many sentences it has.
    count = {task: sum(t == task for _, t in pairs) for task in thresholds}
    weight = torch.tensor([1.0 / count[task] for _, task in pairs], dtype=torch.float64)
    weight = weight / weight.sum()
    middle, level = (weight[:, None] * x).sum(0), (weight * y).sum()
    centred = x - middle
    gram = centred.T @ (weight[:, None] * centred) + RIDGE * torch.eye(x.shape[1], dtype=torch.float64)
    slope = torch.linalg.solve(gram, centred.T @ (weight * (y - level)))
    return judge.with_word_shift(slope.float(), float(level - middle @ slope), at)
