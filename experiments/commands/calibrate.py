"""`worldgym calibrate`: the judge's threshold for each verb, found in imagination and checked in Real.

On starts that nothing else looks at, policies act on imagined frames and their actions are executed in Real. Half of
the starts choose the thresholds, the other half says what they are worth. The judge that is written has one threshold,
which practice and gate then share.

Example::

    worldgym calibrate --policies sft runs/demo/policy --out runs/judge_calibrated
    worldgym bench closed-loop --judge runs/judge_calibrated --policies sft runs/demo/policy
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
from experiments.pipelines.run_folder import versions
from experiments.suites import chosen_suite, real_env
from worldgym.errors import ConfigError
from worldgym.evaluation import make_starts
from worldgym.evaluation.outcomes import EVALUATION_SEED0
from worldgym.pretrained import DEFAULT
from worldgym.utils.files import atomic_write_text
from worldgym.utils.progress import Progress


@dataclass(frozen=True)
class CalibrateConfig:
    """Give each verb its threshold.

    Args:
        policies: that act: folders, or `sft`; `@T` sets a temperature.
        out: folder of the judge.
        bundle: name of a bundled checkpoint, or a folder with the same parts.
        suite: where the truth comes from; that of the bundle when None.
        world_model: in place of the bundle's, a folder.
        judge: `bundled`, or a folder with another learned judge: only its words have thresholds of their own.
        episodes: imagined episodes a policy; half choose, half check.
        start_seed: of the starts; not those of any check.
        at: the threshold that the calibrated judge has.
        horizon: steps of an episode.
        seed: everything random.
        device: `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.
        dtype: precision in which a world model imagines; `auto` leaves it as it was saved.
    """

    policies: tuple[str, ...] = ("sft",)
    out: Path = Path("runs/judge_calibrated")
    bundle: str = DEFAULT
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
        """Validate."""
        if not self.policies:
            raise ConfigError("no policy given; type --policies sft, or folders")
        if self.episodes < 2 or self.horizon < 1 or not 0 < self.at < 1:
            raise ConfigError("episodes must be at least 2, horizon at least 1, at between 0 and 1")
        if self.start_seed < EVALUATION_SEED0:
            raise ConfigError(f"start_seed is {self.start_seed}, expected at least {EVALUATION_SEED0}")


def run(config: CalibrateConfig) -> int:
    """Calibrate, check, write the judge."""
    from experiments.commands.bench_closed_loop import load_world_model_of
    from rewards import LearnedJudge
    from rewards.training.calibration import Looks, best_thresholds, calibrate_words
    from worldgym.evaluation.judge_audit import watch

    tasks = covered_tasks(config.bundle)
    here = placing(config)
    bundle = Bundle.find(config.bundle, here)
    world_model, judge = here(load_world_model_of(config.bundle, config.world_model)), bundle.named_judge(config.judge)
    if not isinstance(judge, LearnedJudge):
        raise ConfigError(
            f"{config.judge} is a {type(judge).__name__}; only a LearnedJudge can have thresholds for each verb. "
            "Calibrate another one with rewards.CalibratedJudge.fit"
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
            said, truth = seen.said["judge"], seen.by_then
            verbs = tuple(start.task for start in starts)
            choosing.append(Looks(said[:half], truth[:half], verbs[:half]))
            checking.append(Looks(said[half:], truth[half:], verbs[half:]))
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
    names: tuple[str, ...], looks: list[Any], thresholds: dict[str, float]
) -> dict[str, dict[str, float]]:
    """Precision and recall of each policy."""
    found = {}
    for name, of_policy in zip(names, looks, strict=True):
        fp, tp, fn = np.sum([of_policy.counts(task, cut) for task, cut in thresholds.items()], 0)
        found[name] = {
            "precision": float(tp / max(1, tp + fp)),
            "recall": float(tp / max(1, tp + fn)),
            "episodes": len(of_policy.said),
        }
    return found


def table(facts: dict[str, Any]) -> str:
    """What is printed."""
    lines = ["thresholds  " + ", ".join(f"{task} {cut:.2f}" for task, cut in facts["thresholds"].items())]
    lines.append(f"  {'precision / recall':<34}{'chosen on':>14}{'checked on':>14}{'one threshold':>16}")
    for name, row in facts["chosen"].items():
        cells = [row, facts["checked"][name], facts["before"][name]]
        said = [f"{c['precision']:.2f} / {c['recall']:.2f}" for c in cells]
        lines.append(f"  {name:<34}{said[0]:>14}{said[1]:>14}{said[2]:>16}")
    return "\n".join(lines)
