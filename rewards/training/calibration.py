"""Calibrate a judge's threshold for each task on imagined episodes, and merge the thresholds into one.

The best threshold differs between tasks. In imagination a failed push looks similar to a successful one, so a push
needs a higher threshold than a reach, whose end pose proprioception shows. For calibration, policies act in
imagination and their actions are executed in the real domain. For each task, the threshold is chosen that maximises the
lowest precision or recall of any policy. The thresholds are then merged into the judge as a shift of its logit that is
linear in the instruction embedding, fitted to instructions of each task (Platt scaling, Platt 1999, with a bias that
depends on the instruction). After that, one threshold serves all tasks.

Example::

    table = best_thresholds([verdicts_of_sft, verdicts_of_rl])       # {"reach": 0.8, "push": 0.95, ...}
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

GRID = (*np.arange(0.2, 0.8, 0.05).round(2).tolist(), *np.arange(0.8, 0.995, 0.01).round(2).tolist())
"""Candidate thresholds."""
RIDGE = 1e-3
"""Ridge regularisation of the linear map from instruction embeddings to logit shifts."""


@dataclass(frozen=True)
class AuditScores:
    """Verdicts of a judge on N imagined episodes that do not stop at success, with ground truth from the real domain.

    Args:
        scores: `(N,C)` predicted probability of success at each of C evaluations.
        truth: `(N,C)` bool, whether the same actions had succeeded in the real domain by then.
        tasks: N task names.
    """

    scores: np.ndarray
    truth: np.ndarray
    tasks: tuple[str, ...]

    def counts(self, task: str, threshold: float) -> np.ndarray:
        """False positives, true positives, false negatives of `task` if episodes stop at the first judged success."""
        rows = np.array([t == task for t in self.tasks])
        imagined, real = stopped(self.scores[rows], self.truth[rows], threshold)
        return np.array([(imagined & ~real).sum(), (imagined & real).sum(), (~imagined & real).sum()])


def worst_rate(audits: Sequence[AuditScores], thresholds: Mapping[str, float]) -> float:
    """The lowest precision or recall of any policy at any task of `thresholds`.

    A policy without true success at a task has no recall there, and one without judged success no precision; undefined
    rates do not count. 1 if no rate is defined.
    """
    worst = 1.0
    for scores in audits:
        for task, cut in thresholds.items():
            fp, tp, fn = (int(n) for n in scores.counts(task, cut))
            worst = min([worst, *(tp / whole for whole in (tp + fp, tp + fn) if whole)])
    return worst


def best_thresholds(audits: Sequence[AuditScores], grid: Sequence[float] = GRID) -> dict[str, float]:
    """Find the threshold of each task that maximises its `worst_rate`; the middle one of equally good neighbours.

    Each task is balanced alone. Rates pooled over tasks would allow many false positives at one task in exchange for
    few at another, and RL would learn from the first.

    Args:
        audits: one `AuditScores` per policy, with the verdicts on its imagined episodes.
        grid: candidate thresholds, increasing.

    Raises:
        ConfigError: `audits` is empty.
    """
    if not audits or not audits[0].tasks:
        raise ConfigError("calibrating needs imagined episodes of at least one policy; got none")
    best = {}
    for task in sorted({task for scores in audits for task in scores.tasks}):
        rates = np.array([worst_rate(audits, {task: float(cut)}) for cut in grid])
        equal = np.flatnonzero(rates == rates.max())
        best[task] = float(grid[equal[(len(equal) - 1) // 2]])
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
    """Return `judge` with a logit shift for each instruction, so that threshold `at` corresponds to `thresholds[task]`.

    Args:
        judge: any learned judge; it is not changed.
        instructions: M instructions, with several paraphrases of every task.
        tasks: the M task names of the instructions.
        thresholds: threshold of each task for the probabilities of `judge`.
        at: common threshold for the probabilities of the returned judge.

    Raises:
        ConfigError: a task has no threshold.
    """
    if unknown := sorted(set(tasks) - set(thresholds)):
        raise ConfigError(f"no threshold for {', '.join(unknown)}; calibrate on start states of these tasks too")
    shift = {task: logit(at) - logit(cut) for task, cut in thresholds.items()}
    pairs = sorted(set(zip(instructions, tasks, strict=True)))
    x = torch.from_numpy(embed([text for text, _ in pairs])).double()
    y = torch.tensor([shift[task] for _, task in pairs], dtype=torch.float64)
    # Each task has the same total weight, regardless of its number of instructions.
    count = {task: sum(t == task for _, t in pairs) for task in thresholds}
    weight = torch.tensor([1.0 / count[task] for _, task in pairs], dtype=torch.float64)
    weight = weight / weight.sum()
    mean, level = (weight[:, None] * x).sum(0), (weight * y).sum()
    centred = x - mean
    gram = centred.T @ (weight[:, None] * centred) + RIDGE * torch.eye(x.shape[1], dtype=torch.float64)
    slope = torch.linalg.solve(gram, centred.T @ (weight * (y - level)))
    return judge.with_word_shift(slope.float(), float(level - mean @ slope), at)
