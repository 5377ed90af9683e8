"""`worldgym bench closed-loop`: the closed-loop gate, which checks imagined success in Real before RL in imagination.

A policy acts on imagined frames until the judge reports success; then the same actions are executed in Real from the
same start. The gate requires precision and recall of imagined success of at least 0.8 for every policy.

Besides trained policies there are `random`, `gaussian`, `weak` (SFT with noise on its weights) and `scripted` (the
experts' actions in Real). They show which rewards imagination gives to a policy that learns from scratch.

Example::

    worldgym bench closed-loop --policies sft sft@1.0 runs/demo/policy --episodes 102   # a quick check
    worldgym bench closed-loop --policies sft --world-model runs/wm --out runs/gate.json
    worldgym bench closed-loop --policies random gaussian weak sft scripted --out runs/trust.json
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
from experiments.pipelines.settings import CHECK_SEED0
from experiments.pipelines.simple_policies import NAMES, simple_policy
from experiments.suites import BundleName, chosen_suite, known_split, known_tasks, real_env
from worldgym.errors import CheckpointError, ConfigError
from worldgym.evaluation import ClosedLoopResult, Start, make_starts, run_closed_loop
from worldgym.evaluation.outcomes import EVALUATION_SEED0
from worldgym.evaluation.statistics import Confusion, wilson
from worldgym.pretrained import DEFAULT
from worldgym.utils.files import atomic_write_text
from worldgym.utils.progress import Progress


@dataclass(frozen=True)
class BenchClosedLoopConfig:
    """Check imagined success in Real: confusion matrix, precision and recall with intervals.

    Args:
        policies: folders written by save_pretrained, `sft` for the bundled one, `random`, `gaussian`, `weak` or
            `scripted`; `@T` sets a temperature.
        episodes: imagined episodes per policy, spread over the tasks; the gate requires at least 100.
        tasks: tasks to check; those that the bundle covers if empty.
        split: split of starts and instructions.
        start_seed: first seed of the starts; a value other than the default gives starts that were used for no
            selection.
        gate: precision and recall that are required to pass.
        bundle: name of a bundled checkpoint, or a folder with the same parts.
        suite: suite whose real domain gives the ground truth; that of the bundle if None.
        world_model: folder of another world model; the bundle's if None.
        judge: `bundled`, `latent`, `open_clip`, or a folder written by a judge's `save_pretrained`.
        cache: folder that caches the answers of judges behind an endpoint.
        judge_keys: `URL=VARIABLE`: environment variable with the API key for a judge's endpoint at exactly this URL;
            without it, no key is sent.
        threshold: probability of the judge that counts as success; the judge's own threshold if None.
        confirm: number of consecutive checks that must be judged successful.
        max_uncertainty: drop episodes whose world-model uncertainty exceeds this, as `worldgym demo --max-uncertainty`
            does in training; no limit if None.
        futures: further futures of each episode, from shifted start frames, whose verdicts are compared: their
            disagreement is then the uncertainty (`worldgym.models.FutureEnsemble`).
        temperature: temperature of policies without `@T`; 0 is greedy.
        horizon: steps of 0.2 s per episode.
        seed: seed of action sampling.
        clips: number of side-by-side videos per policy, false positives first.
        out: output file for the results as JSON: `policies`, and pooled over them `all` and `by_task`; videos are
            written beside it.
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.
        dtype: precision of world-model inference; `auto` uses the saved precision.
    """

    policies: Annotated[tuple[str, ...], tyro.conf.arg(aliases=("--policy",))] = ("sft", "sft@0.5", "sft@1.0")
    episodes: int = 300
    tasks: tuple[str, ...] = ()
    split: str = "seen"
    start_seed: int = CHECK_SEED0
    gate: float = 0.8
    bundle: BundleName = DEFAULT
    suite: str | None = None
    world_model: Path | None = None
    judge: str = "bundled"
    cache: Path | None = None
    judge_keys: tuple[str, ...] = ()
    threshold: float | None = None
    confirm: int = 1
    max_uncertainty: float | None = None
    futures: int = 0
    temperature: float = 0.0
    horizon: int = 40
    seed: int = 0
    clips: int = 0
    out: Annotated[Path, tyro.conf.arg(aliases=("--json",))] = Path("runs/closed_loop.json")
    device: str = "auto"
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        """Validate the settings."""
        if not self.policies:
            raise ConfigError("no policy given; type --policies sft, or folders")
        if self.episodes < 1 or self.horizon < 1 or self.confirm < 1 or self.clips < 0:
            raise ConfigError("episodes, horizon and confirm must be at least 1, clips at least 0")
        if self.start_seed < EVALUATION_SEED0:
            raise ConfigError(
                f"start_seed is {self.start_seed}, expected at least {EVALUATION_SEED0}: lower seeds may be in the "
                "training data"
            )
        if not 0 < self.gate <= 1:
            raise ConfigError(f"gate is {self.gate}, expected more than 0 and at most 1")


def run(config: BenchClosedLoopConfig) -> int:
    """Print the confusion matrix of every policy and write the JSON file; return 0 if all pass the gate, else 1."""
    from worldgym.models.futures import with_futures

    suite = chosen_suite(config.suite, config.bundle)
    tasks = known_tasks(suite, config.tasks or covered_tasks(config.bundle))
    split = known_split(suite, config.split)
    here = placing(config)
    choices = [choose(text, config) for text in config.policies]
    world_model = with_futures(here(load_world_model_of(config.bundle, config.world_model)), config.futures)
    bundle, tokenizer = Bundle.find(config.bundle, here), getattr(world_model, "tokenizer", None)
    judge = bundle.named_judge(config.judge, tokenizer, config.cache, config.judge_keys)
    starts = make_starts(tasks, max(1, round(config.episodes / len(tasks))), config.start_seed, split)
    env = real_env(suite, horizon=config.horizon)
    rows: dict[str, Any] = {}
    counts: list[dict[str, Confusion]] = []
    passed = True
    for choice in choices:
        result = check_policy(
            choice,
            world_model,
            judge,
            env,
            starts,
            seed=config.seed,
            horizon=config.horizon,
            threshold=config.threshold,
            confirm=config.confirm,
            max_uncertainty=config.max_uncertainty,
            clips=min(4 * config.clips, len(starts)),
        )
        good = result.passes(config.gate)
        passed = passed and good
        counts.append(result.by_task())
        rates = {
            task: {name: rate.to_dict() for name, rate in pair.items()}
            for task, pair in result.rates_by_task().items()
        }
        rows[choice.name] = {
            **result.to_dict(), "rates_by_task": rates, "temperature": choice.temperature, "passes": good,
        }  # fmt: skip
        if config.clips:
            rows[choice.name]["clips"] = _videos(result, config, choice.name)
        sys.stdout.write(matrix(choice.name, result, config.gate) + "\n")
    facts = {"gate": config.gate, "passes": passed, "tasks": list(tasks), "split": config.split}
    facts |= {"start_seed": config.start_seed, "max_uncertainty": config.max_uncertainty}
    by_task = {task: sum((count[task] for count in counts), Confusion()) for task in tasks}
    facts |= {"all": pooled(sum(by_task.values(), Confusion()))}
    facts |= {"by_task": {task: pooled(count) for task, count in by_task.items()}}
    data = {"policies": rows, **facts, "seed": config.seed, "versions": versions()}
    atomic_write_text(config.out, json.dumps(data, indent=1) + "\n")
    sys.stdout.write(f"gate {'passed' if passed else 'FAILED'}; written to {config.out}\n")
    return 0 if passed else 1


def pooled(count: Confusion) -> dict[str, Any]:
    """Precision, recall (None where undefined), their 95 % intervals, and the number of valid episodes."""
    facts: dict[str, Any] = {"episodes": count.n}
    for name, rate in (("precision", count.precision), ("recall", count.recall)):
        facts |= {name: None, f"{name}_interval": None}
        if rate is not None:
            facts |= {name: rate.mean, f"{name}_interval": [rate.low, rate.high]}
    return facts


@dataclass(frozen=True)
class SimpleChoice:
    """An untrained policy, with the interface of `PolicyChoice`."""

    name: str
    config: BenchClosedLoopConfig
    temperature: float = 1.0

    def load(self) -> Any:
        """Create the policy."""
        suite, kwargs = chosen_suite(self.config.suite, self.config.bundle), {"horizon": self.config.horizon}
        return simple_policy(self.name, Bundle.find(self.config.bundle, placing(self.config)), kwargs, suite)

    @property
    def ref(self) -> SimpleChoice:
        """The choice itself: the policy is created, not read from a folder."""
        return self


def choose(text: str, config: BenchClosedLoopConfig) -> PolicyChoice | SimpleChoice:
    """Parse the name of a policy; an existing folder of that name takes precedence."""
    if text in NAMES and not Path(text).exists():
        return SimpleChoice(text, config, temperature=0.0 if text == "weak" else 1.0)
    return PolicyChoice.parse(text, config.bundle, config.temperature, placing(config).name)


def check_policy(
    choice: PolicyChoice | SimpleChoice,
    world_model: Any,
    judge: Any,
    env: Any,
    starts: list[Start],
    **settings: Any,
) -> ClosedLoopResult:
    """Run one policy in closed loop with a progress bar; `settings` are passed to `run_closed_loop`."""
    with Progress(len(starts), f"closed loop, {choice.name}") as bar:
        return run_closed_loop(
            choice.ref.load(),
            world_model,
            judge,
            env,
            starts,
            temperature=choice.temperature,
            progress=lambda done, _: bar.update(done - bar.count),
            **settings,
        )


def load_world_model_of(bundle: str, folder: Path | None) -> Any:
    """Load the world model in `folder`, or the bundle's if None.

    Raises:
        CheckpointError: the folder does not exist.
    """
    from worldgym.models import load_world_model

    if folder is None:
        return Bundle.find(bundle).world_model()
    if not folder.is_dir():
        raise CheckpointError(f"no folder {folder}; give one written by save_pretrained")
    return load_world_model(folder)


def matrix(name: str, result: ClosedLoopResult, gate: float) -> str:
    """Return the table of one policy: confusion counts, false positives first, and rates with intervals, by task."""

    def row(label: str, table: Any) -> str:
        imagined = wilson(table.tp + table.fp, table.n) if table.n else None
        true = wilson(table.tp + table.fn, table.n) if table.n else None
        rates = [
            f"{r.mean:.2f} [{r.low:.2f}, {r.high:.2f}]" if r is not None else "undefined"
            for r in (table.precision, table.recall, imagined, true)
        ]
        counts = "".join(f"{count:>5}" for count in (table.fp, table.tp, table.fn, table.tn))
        return f"  {label:<14}{counts}" + "".join(f"{rate:>20}" for rate in rates)

    imagined, real = result.imagined_rate(), result.real_rate()
    success = f", imagined success {imagined.mean:.2f}, real {real.mean:.2f}" if imagined and real else ""
    verdict = "passes" if result.passes(gate) else "FAILS"
    head = f"{name}: {verdict} the gate of {gate}{success}, judge {result.judge}"
    counts = "".join(f"{name:>5}" for name in ("FP", "TP", "FN", "TN"))
    columns = f"  {'':<14}{counts}" + "".join(f"{n:>20}" for n in ("precision", "recall", "imagined", "real"))
    tasks = [row(task, table) for task, table in result.by_task().items()]
    count = int(result.invalid.sum())
    dropped = f"\n  {count} episodes dropped: the judge failed, or the world model was too uncertain" if count else ""
    if count and result.uncertainty is not None and np.isfinite(result.uncertainty).any():
        low, high = np.nanmin(result.uncertainty), np.nanmax(result.uncertainty)
        dropped += f" (uncertainty of all episodes: {low:.3g} to {high:.3g})"
    auroc = result.wrong_verdict_auroc()
    if auroc is not None:
        dropped += f"\n  uncertainty ({result.uncertainty_kind}) predicts a wrong verdict with AUROC {auroc:.2f}"
    return "\n".join([head, columns, *tasks, row("all", result.confusion)]) + dropped


def _videos(result: ClosedLoopResult, config: BenchClosedLoopConfig, name: str) -> list[dict[str, Any]]:
    from experiments.reports.clips import imagined_clips

    folder = config.out.with_suffix("") / "".join(c if c.isalnum() or c in "@.-" else "_" for c in name)
    return imagined_clips(result.clips, folder, config.clips)
