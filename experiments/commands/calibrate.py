"""`worldgym calibrate`: chooses the judge's threshold for each task on imagined episodes and checks it in Real.

Policies act on imagined frames from starts that are used for nothing else, and their actions are executed in Real. Half
of the starts are used to choose the thresholds, the other half to measure precision and recall. The new judge has a
single threshold (`at`), to which the scores of each task are mapped; training and gate use it.

Example::

    worldgym calibrate --policies sft runs/demo/policy --out runs/judge_calibrated
    worldgym bench closed-loop --judge runs/judge_calibrated --policies sft runs/demo/policy
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from experiments.bundle import Bundle
from experiments.commands.evaluate import covered_tasks
from experiments.compute import DType, placing
from experiments.pipelines.policies import PolicyChoice
from experiments.pipelines.run_folder import versions
from experiments.suites import BundleName, chosen_suite, real_env
from worldgym.errors import ConfigError
from worldgym.evaluation import make_starts
from worldgym.evaluation.outcomes import EVALUATION_SEED0
from worldgym.pretrained import DEFAULT
from worldgym.utils.files import atomic_write_text
from worldgym.utils.progress import Progress


@dataclass(frozen=True)
class CalibrateConfig:
    """Choose a threshold for each task.

    Args:
        policies: policies that act: folders, or `sft`; `@T` sets a temperature.
        out: output folder of the calibrated judge.
        bundle: name of a bundled checkpoint, or a folder with the same parts.
        suite: suite whose real domain gives the ground truth; that of the bundle if None.
        world_model: folder of another world model; the bundle's if None.
        judge: `bundled`, or the folder of another learned judge; other types have no thresholds per task.
        episodes: imagined episodes per policy; half of them choose the thresholds, the other half check them.
        start_seed: first seed of the starts, which must not be used for other evaluations.
        at: threshold of the calibrated judge.
        horizon: steps per episode.
        seed: seed of all randomness.
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.
        dtype: precision of world-model inference; `auto` uses the saved precision.
    """

    policies: Annotated[tuple[str, ...], tyro.conf.arg(aliases=("--policy",))] = ("sft",)
    out: Path = Path("runs/judge_calibrated")
    bundle: BundleName = DEFAULT
    suite: str | None = None
    world_model: Path | None = None
    judge: str = "bundled"
    episodes: int = 600
    start_seed: int = 13_000_000
    at: float = 0.85
    horizon: int = 40
    seed: int = 0
    device: str = "auto"
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        """Validate the settings."""
        if not self.policies:
            raise ConfigError("no policy given; type --policies sft, or folders")
        if self.episodes < 2 or self.horizon < 1 or not 0 < self.at < 1:
            raise ConfigError(
                f"episodes is {self.episodes}, horizon {self.horizon}, at {self.at}; expected at least 2 episodes, a "
                "horizon of at least 1, and at between 0 and 1"
            )
        if self.start_seed < EVALUATION_SEED0:
            raise ConfigError(f"start_seed is {self.start_seed}, expected at least {EVALUATION_SEED0}")


def run(config: CalibrateConfig) -> int:
    """Calibrate and check the judge, print the table, and write the judge."""
    from experiments.commands.bench_closed_loop import load_world_model_of
    from rewards import LearnedJudge
    from rewards.training.calibration import AuditScores, best_thresholds, calibrate_words
    from worldgym.evaluation.judge_audit import watch

    tasks = covered_tasks(config.bundle)
    here = placing(config)
    bundle = Bundle.find(config.bundle, here)
    world_model, judge = here(load_world_model_of(config.bundle, config.world_model)), bundle.named_judge(config.judge)
    if not isinstance(judge, LearnedJudge):
        raise ConfigError(
            f"{config.judge} is a {type(judge).__name__}; only a LearnedJudge can have thresholds for each task. "
            "Calibrate other judges with rewards.CalibratedJudge.fit"
        )
    starts = make_starts(tasks, max(2, round(config.episodes / len(tasks))), config.start_seed)
    half = len(starts) // 2
    suite = chosen_suite(config.suite, config.bundle)
    env = real_env(suite, horizon=config.horizon, terminate_on_success=False)
    choosing, checking = [], []
    with Progress(len(config.policies), "policies") as bar:
        for text in config.policies:
            choice = PolicyChoice.parse(text, config.bundle, device=here.name)
            seen = watch(
                choice.ref.load(), world_model, {"judge": judge}, env, starts, horizon=config.horizon,
                temperature=choice.temperature, seed=config.seed,
            )  # fmt: skip
            scores, truth = seen.scores["judge"], seen.by_then
            start_tasks = tuple(start.task for start in starts)
            choosing.append(AuditScores(scores[:half], truth[:half], start_tasks[:half]))
            checking.append(AuditScores(scores[half:], truth[half:], start_tasks[half:]))
            bar.update(1)
    env.close()
    thresholds = best_thresholds(choosing)
    bank = bundle.start_bank(tasks).starts
    calibrated = calibrate_words(judge, bank.instructions, bank.tasks, thresholds, at=config.at)
    calibrated.save_pretrained(config.out)
    facts = {
        "thresholds": thresholds,
        "at": config.at,
        "chosen": rates(config.policies, choosing, thresholds),
        "checked": rates(config.policies, checking, thresholds),
        "before": rates(config.policies, checking, dict.fromkeys(thresholds, judge.threshold)),
        "start_seed": config.start_seed,
        "versions": versions(),
    }
    atomic_write_text(config.out / "calibration.json", json.dumps(facts, indent=1) + "\n")
    sys.stdout.write(table(facts) + f"\njudge written to {config.out}\n")
    return 0


def rates(
    names: tuple[str, ...], audits: list[Any], thresholds: dict[str, float]
) -> dict[str, dict[str, float]]:
    """Precision and recall of each policy."""
    found = {}
    for name, of_policy in zip(names, audits, strict=True):
        fp, tp, fn = np.sum([of_policy.counts(task, cut) for task, cut in thresholds.items()], 0)
        found[name] = {
            "precision": float(tp / max(1, tp + fp)),
            "recall": float(tp / max(1, tp + fn)),
            "episodes": len(of_policy.scores),
        }
    return found


def table(facts: dict[str, Any]) -> str:
    """Return the printed table."""
    lines = ["thresholds  " + ", ".join(f"{task} {cut:.2f}" for task, cut in facts["thresholds"].items())]
    lines.append(f"  {'precision / recall':<34}{'chosen on':>14}{'checked on':>14}{'one threshold':>16}")
    for name, row in facts["chosen"].items():
        cells = [row, facts["checked"][name], facts["before"][name]]
        texts = [f"{c['precision']:.2f} / {c['recall']:.2f}" for c in cells]
        lines.append(f"  {name:<34}{texts[0]:>14}{texts[1]:>14}{texts[2]:>16}")
    return "\n".join(lines)
