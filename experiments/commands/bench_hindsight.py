"""`worldgym bench hindsight`: how often the judge is right that a failed attempt fulfils another instruction.

A policy explores in imagination from starts of Real, as in RL. Failed attempts that the judge relabels
(`agents.algorithms.hindsight`) are executed in Real, and the suite says whether the new instruction is fulfilled there.

Example::

    worldgym bench hindsight --starts 48 --candidates 6 --json runs/hindsight.json
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bundle import Bundle
from experiments.commands.evaluate import covered_tasks
from experiments.compute import DType, placing
from experiments.pipelines.policies import PolicyChoice
from experiments.pipelines.run_folder import finite, versions
from experiments.pipelines.settings import FineTuneSettings
from experiments.suites import BundleName, chosen_suite, real_env
from worldgym.errors import ConfigError
from worldgym.evaluation import make_starts
from worldgym.evaluation.outcomes import EVALUATION_SEED0
from worldgym.evaluation.rollouts import first_observations, reset_env
from worldgym.evaluation.statistics import wilson
from worldgym.pretrained import DEFAULT
from worldgym.suite import extra
from worldgym.utils.files import atomic_write_text
from worldgym.utils.progress import Progress


@dataclass(frozen=True)
class BenchHindsightConfig:
    """Execute relabelled attempts in Real.

    Args:
        policy: folder of a policy, or `sft`.
        bundle: bundle that provides world model, judge and instructions.
        suite: suite of Real; that of the bundle if None.
        world_model: folder of another world model; the bundle's if None.
        starts: starts in Real, over all tasks.
        group: attempts per start.
        candidates: other instructions per failed attempt that the judge is asked about.
        threshold: lowest probability that relabels an attempt.
        scene: ask only about instructions that can be followed from the start, if the suite knows them; False asks
            about all instructions of the task in the start set.
        distinct_goals: the attempts from a start try different goals.
        horizon: steps of an attempt.
        start_seed: first seed of the starts.
        seed: seed of all randomness.
        json: output file for the results.
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.
        dtype: precision of world-model inference; `auto` uses the saved precision.
    """

    policy: str = "sft"
    bundle: BundleName = DEFAULT
    suite: str | None = None
    world_model: Path | None = None
    starts: int = 48
    group: int = 6
    candidates: int = 8
    threshold: float = 0.9
    scene: bool = True
    distinct_goals: bool = False
    horizon: int = 25
    start_seed: int = EVALUATION_SEED0 + 1_950_000
    seed: int = 0
    json: Path = Path("runs/hindsight.json")
    device: str = "auto"
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        """Validate the settings."""
        if min(self.starts, self.group, self.candidates, self.horizon) < 1 or not 0 < self.threshold <= 1:
            raise ConfigError("starts, group, candidates and horizon must be at least 1, threshold in (0, 1]")


def run(config: BenchHindsightConfig) -> int:
    """Explore, relabel, execute, and write the results."""
    import torch

    from agents import Starts, collect
    from agents.algorithms.hindsight import relabel
    from worldgym.models import load_world_model

    here = placing(config)
    bundle, suite = Bundle.find(config.bundle, here), chosen_suite(config.suite, config.bundle)
    fulfilled = extra(suite, "fulfilled", "truth of other instructions")
    tasks = covered_tasks(config.bundle)
    model = here(load_world_model(config.world_model)) if config.world_model else bundle.world_model()
    judge, choice = bundle.judge(), PolicyChoice.parse(config.policy, config.bundle, device=here.name)
    policy = choice.ref.load()
    places = make_starts(tasks, max(1, config.starts // len(tasks)), config.start_seed)
    env = real_env(suite, horizon=config.horizon, terminate_on_success=False)
    seen = first_observations(env, places)
    asked = getattr(suite, "other_instructions", None) if config.scene else None
    starts = Starts(
        seen["image"], seen["state"], seen["instruction"], [place.task for place in places],
        torch.zeros(len(places), dtype=torch.int64),
        other_instructions=None
        if asked is None
        else [tuple(asked(task=place.task, seed=place.seed, split=place.split)) for place in places],
    )  # fmt: skip
    rollouts = collect(
        model, judge, policy, starts, group_size=config.group, horizon=config.horizon,
        temperature=FineTuneSettings().sampling(policy), generator=torch.Generator().manual_seed(config.seed),
        distinct_goals=config.distinct_goals,
    )  # fmt: skip
    sentences: dict[str, list[str]] = {}
    bank = bundle.start_bank(tasks).starts
    pairs = [*zip(bank.tasks, bank.instructions, strict=True), *zip(starts.tasks, starts.instructions, strict=True)]
    for task, text in sorted(set(pairs)):
        sentences.setdefault(task, []).append(text)
    rollouts.groups = torch.arange(len(rollouts))  # relabelled attempts keep the row that they came from
    kept, facts = relabel(
        rollouts, judge, sentences, threshold=config.threshold, rng=np.random.default_rng(config.seed),
        candidates=config.candidates, keep_groups=True,
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    if kept is not None:
        with Progress(len(kept), "execute in Real") as bar:
            for i in range(len(kept)):
                place = places[int(kept.groups[i]) // config.group]
                plan = kept.actions[i, : int(kept.lengths[i])].flatten(0, 1).numpy()
                rows.append(_execute(env, place, plan, kept.instructions[i], fulfilled))
                bar.update(1)
    env.close()
    table = {task: [row["true"] for row in rows if row["task"] == task] for task in tasks}
    own = rollouts.success_rate()
    result = {
        **facts, "imagined_success": own, "distinct_goals": config.distinct_goals, "threshold": config.threshold,
        "scene": asked is not None,
        "by_task": {
            task: {"relabelled": len(true), "true": wilson(sum(true), len(true)).to_dict() if true else None}
            for task, true in table.items()
        },
        "true": wilson(sum(row["true"] for row in rows), len(rows)).to_dict() if rows else None,
        "rows": rows, "versions": versions(),
    }  # fmt: skip
    atomic_write_text(config.json, json.dumps(finite(result), indent=1) + "\n")
    lines = [
        f"{len(rollouts)} attempts, imagined success {own:.2f}; {facts['failures']:.0f} failures, "
        f"{facts['relabelled']:.0f} relabelled; asked about {'what the scene allows' if asked else 'all instructions'}"
    ]
    for task, row in [*result["by_task"].items(), ("all", {"relabelled": len(rows), "true": result["true"]})]:
        true = row["true"]
        rate = f"{true['mean']:.2f} [{true['low']:.2f}, {true['high']:.2f}]" if true else "-"
        lines.append(f"  {task:<14}{row['relabelled']:>5} relabelled, true in Real: {rate}")
    sys.stdout.write("\n".join(lines) + f"\nwritten to {config.json}\n")
    return 0


def _execute(env: Any, place: Any, plan: np.ndarray, text: str, fulfilled: Any) -> dict[str, Any]:
    """Execute `plan (T,A)` in Real, and ask whether `text` is fulfilled at the end and was at the start."""
    reset_env(env, place)
    before = fulfilled(env, text)
    for action in plan:
        _, _, terminated, truncated, _ = env.step(np.clip(action, -1, 1))
        if terminated or truncated:
            break
    return {"task": place.task, "instruction": text, "true": bool(fulfilled(env, text)) and not before}
