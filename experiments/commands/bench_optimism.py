"""`worldgym bench optimism`: how often imagination shows success for actions that fail in Real.

From each start state the scripted expert's actions, and perturbations of them in graded ways, are executed in Real and
imagined (`worldgym.data.counterfactual`): wrong object, missed grasp, early release, late close, frozen, reversed. The
share of failing sequences that are judged successful is printed by family and severity, beside the share of recognised
successes, the AUROC of the judge's probability and its success-failure gap. The same judge on the frames from Real
shows which part of the optimism is the judge's own.

Example::

    worldgym bench optimism --starts 60 --json runs/optimism.json
    worldgym bench optimism --world-model runs/world_model/export --judge runs/judge --json runs/other.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from experiments.bundle import Bundle
from experiments.commands.bench_closed_loop import load_world_model_of
from experiments.commands.evaluate import covered_tasks
from experiments.compute import DType, placing
from experiments.pipelines.run_folder import versions
from experiments.pipelines.simple_policies import ReplayPolicy
from experiments.suites import BundleName, chosen_suite, domain_settings, known_split, known_tasks
from worldgym.data.counterfactual import FAMILIES, UNPERTURBED, Counterfactual
from worldgym.errors import ConfigError
from worldgym.evaluation import Start, make_starts
from worldgym.evaluation.judge_audit import JudgeAudit, watch
from worldgym.evaluation.optimism import Optimism
from worldgym.evaluation.outcomes import EVALUATION_SEED0
from worldgym.pretrained import DEFAULT
from worldgym.protocols import threshold_of
from worldgym.suite import Suite, extra
from worldgym.utils.files import atomic_write_text
from worldgym.utils.progress import Progress

OPTIMISM_SEED0 = 18_200_000
BATCH = 16
"""Start states whose sequences are imagined at once."""
JUDGE, WORLD_MODEL = "judge", "world model"


@dataclass(frozen=True)
class BenchOptimismConfig:
    """Measure how often failing action sequences are judged successful in imagination.

    Args:
        starts: start states, spread over the tasks; each gives up to 15 action sequences.
        tasks: tasks; those that the bundle covers if empty.
        split: split of starts and instructions.
        start_seed: first seed of the starts.
        bundle: name of a bundled checkpoint, or a folder with the same parts.
        suite: suite of the expert and of the ground truth; that of the bundle if None.
        world_model: folder of another world model; the bundle's if None.
        judge: `bundled`, `latent`, `open_clip`, or a folder written by a judge's `save_pretrained`.
        threshold: probability of the judge that counts as success; the judge's own threshold if None.
        horizon: steps per sequence.
        seed: seed of the world model's sampling.
        clips: videos of the surest false successes, written beside the results.
        json: output file for the results; the page is written beside it as .html.
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.
        dtype: precision of world-model inference; `auto` uses the saved precision.
    """

    starts: int = 60
    tasks: tuple[str, ...] = ()
    split: str = "seen"
    start_seed: int = OPTIMISM_SEED0
    bundle: BundleName = DEFAULT
    suite: str | None = None
    world_model: Path | None = None
    judge: str = "bundled"
    threshold: float | None = None
    horizon: int = 40
    seed: int = 0
    clips: int = 6
    json: Annotated[Path, tyro.conf.arg(aliases=("--out",))] = Path("runs/optimism.json")
    device: str = "auto"
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        """Validate the settings."""
        if self.starts < 1 or self.horizon < 1 or self.clips < 0:
            raise ConfigError("starts and horizon must be at least 1, clips at least 0")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold is {self.threshold}, expected a probability above 0")
        if self.start_seed < EVALUATION_SEED0:
            raise ConfigError(
                f"start_seed is {self.start_seed}, expected at least {EVALUATION_SEED0}: lower seeds may be in the "
                "training data"
            )


def run(config: BenchOptimismConfig) -> int:
    """Execute and imagine the sequences, print the table, and write the JSON file and the page."""
    from experiments.reports.audit import worst_false_positives
    from experiments.reports.optimism import table, write_optimism_report

    suite, here = chosen_suite(config.suite, config.bundle), placing(config)
    tasks = known_tasks(suite, config.tasks or covered_tasks(config.bundle))
    split = known_split(suite, config.split)
    bundle, world_model = Bundle.find(config.bundle, here), here(load_world_model_of(config.bundle, config.world_model))
    judge = bundle.named_judge(config.judge, getattr(world_model, "tokenizer", None))
    starts = make_starts(tasks, max(1, round(config.starts / len(tasks))), config.start_seed, split)
    done = executed_and_judged(
        world_model, judge, suite, starts, chunk=bundle.policy().chunk, horizon=config.horizon,
        threshold=config.threshold, seed=config.seed,
    )  # fmt: skip
    threshold = done.parts[JUDGE].threshold
    facts = facts_of(done.parts, starts, done.plans, suite)
    facts |= {"tasks": list(tasks), "split": split, "start_seed": config.start_seed, "judge": str(judge.name)}
    facts |= {"threshold": threshold, "seed": config.seed, "versions": versions()}
    atomic_write_text(config.json, json.dumps(facts, indent=1) + "\n")
    films = worst_false_positives(
        {f"starts {i * BATCH}-": audit for i, audit in enumerate(done.audits)}, JUDGE, threshold,
        config.json.with_suffix(""), config.clips,
    ) if config.clips else []  # fmt: skip
    page = write_optimism_report(facts, films, config.json.with_suffix(".html"))
    sys.stdout.write(f"{table(facts)}\nwritten to {config.json} and {page}\n")
    return 0


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


def facts_of(
    parts: dict[str, Optimism], starts: Sequence[Start], found: Sequence[tuple[int, Counterfactual]], suite: Suite
) -> dict[str, Any]:
    """Results as JSON types: `all`, `by_family` (with every severity) and `by_task`, for each of the parts."""
    first = parts[WORLD_MODEL]
    tasks = np.array([starts[i].task for i in first.starts])
    families = [name for name in (UNPERTURBED, *FAMILIES) if name in first.families]

    def rows(part: Optimism) -> dict[str, Any]:
        return {
            "all": row_of(part),
            "by_family": {
                name: {
                    **row_of(part.of(name)),
                    "by_severity": {
                        f"{severity:g}": row_of(part.of(name, severity))
                        for severity in sorted(set(part.of(name).severities.tolist()))
                    },
                }
                for name in families
            },
            "by_task": {task: row_of(part.where(tasks == task)) for task in dict.fromkeys(tasks.tolist())},
        }

    failed = sum(each.family == UNPERTURBED and each.end is None for _, each in found)
    return {
        "suite": suite.name, "starts": len(starts), "sequences": len(found), "expert_failed": failed,
        "invalid": len(found) - len(first.true), "parts": {name: rows(part) for name, part in parts.items()},
    }  # fmt: skip


def row_of(part: Optimism) -> dict[str, Any]:
    """Counts and figures of a set of sequences; None where a figure is undefined."""
    values = {"optimism": part.optimism(), "recognised": part.recognised(), "auroc": part.auroc(), "gap": part.gap()}
    return {
        "sequences": len(part.true), "failures": int((~part.true).sum()),
        **{name: None if value is None else value.to_dict("sequences") for name, value in values.items()},
    }  # fmt: skip
