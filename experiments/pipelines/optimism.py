"""Counterfactual action sequences, executed in Real and imagined, with the verdicts of a judge on both.

Example::

    done = executed_and_judged(model, judge, suite, make_starts(suite.default_tasks, 20, OPTIMISM_SEED0), chunk=5)
    done.parts["world model"].optimism()        # Interval(mean=0.11, ...)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.pipelines.simple_policies import ReplayPolicy
from experiments.suites import domain_settings
from worldgym.data.counterfactual import Counterfactual
from worldgym.evaluation import Start
from worldgym.evaluation.judge_audit import JudgeAudit, watch
from worldgym.evaluation.optimism import Optimism
from worldgym.protocols import threshold_of
from worldgym.suite import Suite, extra
from worldgym.utils.progress import Progress

OPTIMISM_SEED0 = 18_200_000
"""First seed of the starts."""
BATCH = 16
"""Start states whose sequences are imagined at once."""
JUDGE, WORLD_MODEL = "judge", "world model"
"""Names of `Executed.parts`."""


@dataclass(frozen=True)
class Executed:
    """Action sequences that were executed in Real and imagined.

    Args:
        parts: scores and outcomes as judged in imagination and on the frames from Real.
        audits: scores at every check, and frames.
        plans: number of the start of each sequence, and the sequence.
    """

    parts: dict[str, Optimism]
    audits: list[JudgeAudit]
    plans: list[tuple[int, Counterfactual]]


def executed_and_judged(
    world_model: Any,
    judge: Any,
    suite: Suite,
    starts: Sequence[Start],
    *,
    chunk: int,
    horizon: int = 40,
    threshold: float | None = None,
    seed: int = 0,
) -> Executed:
    """Plan the sequences from each start, imagine and execute them, and judge both.

    Args:
        world_model: imagines them.
        judge: scores them after every chunk.
        suite: its experts plan the sequences, and its real domain executes them.
        starts: start states.
        chunk: actions between two checks.
        horizon: steps per sequence.
        threshold: probability that counts as success; the judge's own threshold if None.
        seed: seed of the world model's sampling.

    Raises:
        ConfigError: the suite has no counterfactual action sequences.
    """
    import torch

    planned = extra(suite, "counterfactuals", "source of counterfactual action sequences")
    audits: list[JudgeAudit] = []
    found: list[tuple[int, Counterfactual]] = []
    env = suite.make_single(**domain_settings(suite), terminate_on_success=False, horizon=horizon)
    with Progress(len(starts), "starts") as bar:
        for low in range(0, len(starts), BATCH):
            block = starts[low : low + BATCH]
            plans = [
                (low + i, each)
                for i, start in enumerate(block)
                for each in planned(env, task=start.task, seed=start.seed, split=start.split)
            ]
            policy = ReplayPolicy(chunk, torch.from_numpy(np.stack([each.actions for _, each in plans])))
            own = [starts[i] for i, _ in plans]
            audits.append(
                watch(policy, world_model, {JUDGE: judge}, env, own, horizon=horizon, seed=seed, real_frames=True)
            )
            found += plans
            bar.update(len(block))
    env.close()
    return Executed(measured(audits, found, threshold_of(judge) if threshold is None else threshold), audits, found)


def measured(
    audits: Sequence[JudgeAudit], found: Sequence[tuple[int, Counterfactual]], threshold: float
) -> dict[str, Optimism]:
    """Scores and outcomes of all sequences, as judged in imagination and on the frames from Real.

    Sequences that the judge did not judge at every check are left out of both.
    """
    scores = {
        WORLD_MODEL: np.concatenate([audit.scores[JUDGE] for audit in audits]),
        JUDGE: np.concatenate([audit.real_scores[JUDGE] for audit in audits]),
    }
    true = np.concatenate([audit.by_then[:, -1] for audit in audits])
    known = ~np.isnan(np.stack(list(scores.values()))).any((0, 2))
    starts = np.array([i for i, _ in found])
    names = tuple(each.family for (_, each), keep in zip(found, known, strict=True) if keep)
    severities = np.array([each.severity for _, each in found], np.float64)
    return {
        name: Optimism(
            starts[known], names, severities[known], table[known].max(1).astype(np.float64), true[known], threshold
        )
        for name, table in scores.items()
    }  # fmt: skip
