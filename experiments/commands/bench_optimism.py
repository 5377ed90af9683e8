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
from experiments.pipelines.optimism import BATCH, JUDGE, OPTIMISM_SEED0, WORLD_MODEL, executed_and_judged
from experiments.pipelines.run_folder import versions
from experiments.suites import BundleName, chosen_suite, known_split, known_tasks
from worldgym.data.counterfactual import FAMILIES, UNPERTURBED, Counterfactual
from worldgym.errors import ConfigError
from worldgym.evaluation import Start, make_starts
from worldgym.evaluation.optimism import Optimism
from worldgym.evaluation.outcomes import EVALUATION_SEED0
from worldgym.pretrained import DEFAULT
from worldgym.suite import Suite
from worldgym.utils.files import atomic_write_text


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
