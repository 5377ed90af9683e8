"""Evaluation of policies in imagination: what `worldgym eval --world imagined` does after the policies are chosen.

Example::

    results = evaluate_in_imagination(choices, bundle, settings)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.bundle import Bundle
from experiments.pipelines.policies import PolicyChoice
from experiments.suites import chosen_suite, known_split, known_tasks, other_instructions, real_env
from worldgym.errors import CheckpointError
from worldgym.evaluation import ImaginedResult, evaluate_imagined, make_starts, paired_bootstrap
from worldgym.evaluation.rollouts import first_observations
from worldgym.serving.address import is_address
from worldgym.utils.progress import Progress

BUNDLED_STARTS = "bundle"


@dataclass(frozen=True)
class ImaginedSettings:
    """Settings of an evaluation in imagination; those of `EvalConfig` with the same names."""

    bundle: str
    suite: str | None = None
    world_model: str | None = None
    judge: str = "bundled"
    cache: Path | None = None
    judge_keys: tuple[str, ...] = ()
    starts: str | None = None
    tasks: tuple[str, ...] = ()
    split: str = "seen"
    episodes: int = 210
    start_seed: int = 0
    seed: int = 0
    horizon: int = 40
    threshold: float | None = None
    confirm: int = 1
    max_uncertainty: float | None = None


def evaluate_in_imagination(
    choices: Sequence[PolicyChoice],
    bundle: Bundle,
    settings: ImaginedSettings,
    finished: Callable[[dict[str, ImaginedResult]], None],
) -> dict[str, ImaginedResult]:
    """Run every policy from the same starts.

    Args:
        choices: the policies.
        bundle: provides the parts that the settings do not name.
        settings: see the class.
        finished: called after each policy with the results so far, so that they are kept if a server ends.

    Raises:
        CheckpointError: a part or a file does not exist.
        ConfigError: the parts do not fit each other.
        ServerUnavailableError: a server does not answer.
    """
    from worldgym.models import load_world_model

    named = settings.world_model
    if named is not None and not is_address(named) and not Path(named).expanduser().is_dir():
        raise CheckpointError(
            f"there is no folder {named}; give one written by a world model's save_pretrained, or an address such as "
            "ws://127.0.0.1:8000"
        )
    world_model = (
        bundle.world_model()
        if named is None
        else bundle.placing(load_world_model(named if is_address(named) else Path(named).expanduser()))
    )
    judge = bundle.named_judge(
        settings.judge, getattr(world_model, "tokenizer", None), settings.cache, settings.judge_keys
    )
    observation, tasks = starts_of(bundle, settings)
    results: dict[str, ImaginedResult] = {}
    for choice in choices:
        with Progress(len(tasks), f"imagined, {choice.name}") as bar:
            results[choice.name] = evaluate_imagined(
                choice.ref.load(),
                world_model,
                judge,
                observation,
                tasks,
                temperature=choice.temperature,
                seed=settings.seed,
                horizon=settings.horizon,
                threshold=settings.threshold,
                confirm=settings.confirm,
                max_uncertainty=settings.max_uncertainty,
                progress=lambda done, _, bar=bar: bar.update(done - bar.count),
            )
        finished(results)
    return results


def starts_of(bundle: Bundle, settings: ImaginedSettings) -> tuple[dict[str, Any], list[str]]:
    """First observations of the episodes, and their tasks.

    Without `starts`, these are first frames of the suite that belong to no training data, the same as those of an
    evaluation in Real. `bundle` takes the logged frames of the bundle, and a file or folder those of anybody's
    recordings.
    """
    if settings.starts is None:
        suite = chosen_suite(settings.suite, bundle.folder)
        tasks = known_tasks(suite, settings.tasks or bundle.tasks)
        per_task = max(1, round(settings.episodes / len(tasks)))
        starts = make_starts(tasks, per_task, settings.start_seed, known_split(suite, settings.split))
        env = real_env(suite, horizon=settings.horizon)
        try:
            return first_observations(env, starts), [start.task for start in starts]
        finally:
            env.close()
    bank = bank_of(bundle, settings.starts, settings.tasks or None)
    first = np.flatnonzero(bank.steps.numpy() == 0)
    if not len(first):
        raise CheckpointError(f"{settings.starts} has no first frames of episodes; give other starts")
    rng = np.random.default_rng(settings.start_seed)
    rows = rng.choice(first, size=min(settings.episodes, len(first)), replace=False)
    chosen = bank.select(np.sort(rows))
    seen: dict[str, Any] = {
        key: value if isinstance(value, list) else torch.as_tensor(value)
        for key, value in chosen.observation().items()
    }
    return seen, list(chosen.tasks)


def bank_of(bundle: Bundle, named: str, tasks: Sequence[str] | None) -> Any:
    """Starts of the bundle (`bundle`), of an `.npz` file, or of a dataset's folder, as `agents.Starts`.

    Raises:
        CheckpointError: there is no such file or folder.
    """
    from agents import StartBank, Starts
    from worldgym.data import EpisodeDataset
    from worldgym.imagination.starts import ArrayStarts

    place = Path(named).expanduser()
    if named == BUNDLED_STARTS and not place.exists():
        return bundle.start_bank(tasks).starts
    if place.suffix == ".npz":
        return Starts.of(ArrayStarts.load(place), tasks)
    if not place.is_dir():
        raise CheckpointError(
            f"there is no {named}; give {BUNDLED_STARTS}, the folder of a dataset, or an .npz file of starts"
        )
    dataset = EpisodeDataset(place)
    arrays = dataset.load_arrays()
    return StartBank.from_arrays(arrays, tasks=tasks, other_instructions=other_instructions(dataset, arrays)).starts


def differences(results: dict[str, ImaginedResult]) -> list[dict[str, Any]]:
    """Each policy minus the first one, paired over the episodes that are valid for both."""
    (first, base), *others = results.items()
    rows = []
    for name, result in others:
        both = base.valid & result.valid
        if both.any():
            found = paired_bootstrap(result.success[both], base.success[both])
            rows.append({"a": name, "b": first, **found.to_dict(), "episodes": int(both.sum())})
    return rows


def table(results: dict[str, ImaginedResult]) -> str:
    """The printed table: success and progress in percent with intervals, and what was not counted."""
    width = max(12, *(len(name) for name in results)) + 2
    tasks = list(dict.fromkeys(task for result in results.values() for task in result.tasks))
    head = f"{'imagined success, %':<{width}}{'T':>5}{'all':>20}{'progress':>20}{'uncertain':>11}{'no verdict':>12}"
    head += f"{'lost':>6}"
    lines = [head + "".join(f"{task:>20}" for task in tasks)]
    for name, result in results.items():
        rates = result.by_task()
        counts = [int(flags.sum()) for flags in (result.hallucinated, result.judge_failed, result.lost)]
        lines.append(
            f"{name:<{width}}{result.temperature:>5g}{_cell(result.rate()):>20}{_cell(result.progress_interval()):>20}"
            f"{counts[0]:>11}{counts[1]:>12}{counts[2]:>6}" + "".join(f"{_cell(rates.get(task)):>20}" for task in tasks)
        )
    for row in differences(results):
        numbers = f"{100 * row['mean']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
        lines.append(f"{row['a']} - {row['b']}: {numbers} points, paired over {row['episodes']} starts")
    judge = next(iter(results.values())).judge
    lines.append(
        f"success as judged by {judge} on imagined frames; `worldgym bench closed-loop` measures how often it is true"
    )
    return "\n".join(lines)


def _cell(rate: Any) -> str:
    return "-" if rate is None else f"{100 * rate.mean:5.1f} [{100 * rate.low:4.1f}, {100 * rate.high:4.1f}]"
