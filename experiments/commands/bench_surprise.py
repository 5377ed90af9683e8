"""`worldgym bench surprise`: does the error of the predicted frames predict that an episode in Real fails?

A policy acts in Real; before each chunk of actions the world model predicts the frame after it. Among the episodes that
are still running after n chunks, the AUROC says how well the mean error of these chunks separates failures from
successes. As a control, the same with the mean change of the frame, for which no world model is needed.

Example::

    worldgym bench surprise --policy sft --episodes 402 --json runs/surprise.json
    worldgym bench surprise --world-model runs/wam/export --policy runs/wam/export
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.bundle import Bundle
from experiments.commands.bench_closed_loop import load_world_model_of
from experiments.commands.evaluate import covered_tasks
from experiments.compute import DType, placing
from experiments.pipelines.run_folder import versions
from experiments.suites import BundleName, chosen_suite, known_split, known_tasks, real_env
from worldgym.errors import ConfigError
from worldgym.evaluation import make_starts
from worldgym.evaluation.outcomes import EVALUATION_SEED0
from worldgym.evaluation.statistics import wilson
from worldgym.evaluation.surprise import Watched, watch
from worldgym.pretrained import DEFAULT
from worldgym.utils.files import atomic_write_text
from worldgym.utils.progress import Progress


@dataclass(frozen=True)
class BenchSurpriseConfig:
    """Measure how well the error of the predicted frames predicts failure in Real.

    Args:
        policy: folder written by save_pretrained, or `sft` for the bundled policy.
        episodes: episodes, spread over the tasks.
        chunks: chunks after which the prediction is made, each a row of the table.
        split: split of starts and instructions.
        tasks: tasks; those that the bundle covers if empty.
        start_seed: first seed of the starts.
        horizon: steps per episode.
        bundle: name of a bundled checkpoint, or a folder with the same parts.
        suite: suite of the episodes; that of the bundle if None.
        world_model: folder of another world model; the bundle's if None.
        seed: seed of the world model's sampling.
        json: output file for the results.
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.
        dtype: precision of world-model inference; `auto` uses the saved precision.
    """

    policy: str = "sft"
    episodes: int = 201
    chunks: tuple[int, ...] = (1, 2, 3, 4, 5)
    split: str = "seen"
    tasks: tuple[str, ...] = ()
    start_seed: int = EVALUATION_SEED0
    horizon: int = 40
    bundle: BundleName = DEFAULT
    suite: str | None = None
    world_model: Path | None = None
    seed: int = 0
    json: Annotated[Path, tyro.conf.arg(aliases=("--out",))] = Path("runs/surprise.json")
    device: str = "auto"
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        """Validate the settings."""
        if self.episodes < 1 or self.horizon < 1 or not self.chunks or min(self.chunks) < 1:
            raise ConfigError("episodes, horizon and each of chunks must be at least 1")


def run(config: BenchSurpriseConfig) -> int:
    """Run the episodes, print the table and write the JSON file."""
    from agents.loading import load_policy

    suite, here = chosen_suite(config.suite, config.bundle), placing(config)
    tasks, split = (
        known_tasks(suite, config.tasks or covered_tasks(config.bundle)),
        known_split(suite, config.split),
    )
    bundle = Bundle.find(config.bundle, here)
    model = here(load_world_model_of(config.bundle, config.world_model))
    policy = here(load_policy(bundle.policy_folder if config.policy == "sft" else Path(config.policy)))
    starts = make_starts(tasks, max(1, round(config.episodes / len(tasks))), config.start_seed, split)
    env = real_env(suite, horizon=config.horizon)
    with Progress(len(starts), "episodes") as bar:
        found = watch(
            policy,
            model,
            env,
            starts,
            horizon=config.horizon,
            seed=config.seed,
            progress=lambda done, _: bar.update(1),
        )
    env.close()
    facts = facts_of(found, config.chunks)
    facts |= {"tasks": list(tasks), "split": split, "start_seed": config.start_seed, "policy": config.policy}
    facts |= {"world_model": str(config.world_model or config.bundle), "versions": versions()}
    atomic_write_text(config.json, json.dumps(facts, indent=1) + "\n")
    sys.stdout.write(f"{table(facts)}\nwritten to {config.json}\n")
    return 0


def facts_of(found: Watched, chunks: tuple[int, ...]) -> dict[str, Any]:
    """Success rate, and by number of chunks: running episodes, their failures, AUROC of error and of change."""
    rows = []
    for n in chunks:
        open_ = found.running(n)
        row: dict[str, Any] = {
            "chunks": n,
            "running": int(open_.sum()),
            "failures": int((~found.success[open_]).sum()),
        }
        for name, control in (("error", False), ("change", True)):
            value = found.auroc(n, control)
            row[name] = None if value is None else value.to_dict()
        rows.append(row)
    won = found.success
    return {"success": wilson(int(won.sum()), len(won)).to_dict(), "rows": rows}


def table(facts: dict[str, Any]) -> str:
    """The rows as a markdown table."""
    lines = [
        f"success in Real {_said(facts['success'])}",
        "",
        "| after chunks | episodes that go on | of these fail | AUROC of the error | AUROC of the change |",
        "|---|---|---|---|---|",
    ]
    for row in facts["rows"]:
        cells = [
            str(row["chunks"]),
            str(row["running"]),
            str(row["failures"]),
            _said(row["error"]),
            _said(row["change"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _said(value: dict[str, float] | None) -> str:
    return "-" if value is None else f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"
