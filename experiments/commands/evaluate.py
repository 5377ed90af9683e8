"""`worldgym eval`: measures the success of policies from the same starts, with intervals and paired differences.

Example::

    worldgym eval --policy runs/demo/policy sft --split seen --episodes 210
    worldgym eval --policy runs/demo/policy@1.0 --split unseen_instruction --out runs/unseen.json
    worldgym eval --policy runs/wam/export sft --latency-ms 220 --execution blocking
    worldgym eval --world imagined --policy sft "ws://127.0.0.1:8000?keys=libero&chunk=5" --max-uncertainty 2
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.bundle import Bundle
from experiments.compute import DType, placing
from experiments.pipelines.imagined_evaluation import ImaginedSettings, differences, evaluate_in_imagination
from experiments.pipelines.imagined_evaluation import table as imagined_table
from experiments.pipelines.policies import DecodedRef, PolicyChoice
from experiments.pipelines.run_folder import versions
from experiments.suites import (
    BundleName,
    chosen_suite,
    domain_settings,
    evaluation_pool,
    known_split,
    known_tasks,
)
from worldgym import pretrained
from worldgym.errors import ConfigError
from worldgym.evaluation import EvalResult, EvaluationPool, ImaginedResult, make_starts, paired_bootstrap
from worldgym.evaluation.latency import Execution, Latency
from worldgym.evaluation.outcomes import EVALUATION_SEED0, Start, shuffle_instructions
from worldgym.pretrained import DEFAULT
from worldgym.suite import Suite, load_suite
from worldgym.utils.files import atomic_write_text
from worldgym.utils.progress import Progress

BUNDLED, IMAGINED = DEFAULT, "imagined"
WRONG = ", wrong instruction"
"""What is added to the name of a policy that was given the instructions of other starts."""
ONLY_IMAGINED = ("world_model", "starts", "threshold", "max_uncertainty")


@dataclass(frozen=True)
class EvalConfig:
    """Measure the success of policies on paired starts, with intervals.

    Args:
        policy: folders written by save_pretrained, `sft` for the bundled one, addresses of servers
            (`ws://HOST:PORT`), or `lerobot:FOLDER`; `@T` sets a temperature.
        split: split of starts and instructions: seen, unseen_combination, unseen_object, unseen_instruction,
            unseen_scene, unseen_task.
        tasks: tasks to evaluate; those that the bundle covers if empty.
        episodes: episodes per policy, spread over the tasks.
        temperature: temperature of policies without `@T`; 0 is greedy.
        seed: seed of action sampling; it does not change the starts.
        start_seed: first seed of the starts; a value other than the default gives starts that were used for no
            selection.
        domain: domain of the suite, such as `real` or `soft`; the one that stands in for the robot if None.
        gap: domain gap from 0 to 1 of the misspecified simulator, if the suite has one.
        horizon: steps of 0.2 s per episode.
        bundle: bundle of the policy `sft`: name of a bundled checkpoint, or a folder. `--world imagined` is short for
            `--imagined`.
        imagined: evaluate in the bundle's imagination, as judged by its judge, not in the suite.
        suite: suite in which policies are evaluated; that of the bundle if None.
        workers: number of processes; 0 uses the current process.
        world_model: with `--imagined`: folder of another world model than the bundle's, or the address of a server.
        judge: with `--imagined`: judge of the success: `bundled`, `latent`, `open_clip`, or a folder.
        cache: folder that caches the answers of judges behind an endpoint.
        judge_keys: `URL=VARIABLE`: environment variable with the API key for a judge's endpoint at exactly this URL.
        decoded_by: in Real: folder of a world model whose tokenizer encodes and decodes every frame before a policy
            sees it, to compare with the same policy on frames as they are.
        wrong_instructions: in Real: also measure every policy with the instruction of another start (language-blind
            control): what it still achieves owes nothing to the words.
        latency_ms: in Real: time from an observation to its actions, in milliseconds, rounded up to whole control
            steps; 0 is none.
        execution: with a latency: `blocking`, the robot holds still meanwhile, or `asynchronous` (the default), it
            executes what is left of the last chunk and drops as many actions of the new one.
        starts: with `--imagined`: `bundle` starts from logged frames of the bundle, a dataset's folder or an `.npz`
            file from frames of recordings; if None, from first frames of the suite, the same as without `--imagined`.
        threshold: with `--imagined`: probability of the judge that counts as success; the judge's own if None.
        confirm: with `--imagined`: number of consecutive checks that must be judged successful.
        max_uncertainty: with `--imagined`: episodes with a higher uncertainty of the world model are stopped and not
            counted; no limit if None.
        out: output file for the results as JSON.
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.
        dtype: precision of world-model inference; `auto` uses the saved precision.
    """

    policy: Annotated[tuple[str, ...], tyro.conf.arg(aliases=("--policies",))] = ("sft",)
    split: str = "seen"
    tasks: tuple[str, ...] = ()
    episodes: int = 210
    temperature: float = 0.0
    seed: int = 0
    start_seed: int = EVALUATION_SEED0
    domain: str | None = None
    gap: float = 0.0
    horizon: int = 40
    bundle: BundleName = BUNDLED
    suite: str | None = None
    workers: int = 2
    imagined: bool = False
    world_model: str | None = None
    judge: str = "bundled"
    cache: Path | None = None
    judge_keys: tuple[str, ...] = ()
    decoded_by: Path | None = None
    wrong_instructions: bool = False
    latency_ms: float = 0.0
    execution: Execution | None = None
    starts: str | None = None
    threshold: float | None = None
    confirm: int = 1
    max_uncertainty: float | None = None
    out: Path = Path("runs/eval.json")
    device: str = "auto"
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        """Validate the settings."""
        if self.bundle == IMAGINED and not Path(IMAGINED).exists():
            object.__setattr__(self, "bundle", BUNDLED)
            object.__setattr__(self, "imagined", True)
        if not self.policy:
            raise ConfigError("no policy given; type --policy FOLDER, or --policy sft")
        given = [f"--{name.replace('_', '-')}" for name in ONLY_IMAGINED if getattr(self, name) is not None]
        if given and not self.imagined:
            raise ConfigError(f"{given[0]} is for an evaluation in imagination; type --imagined too")
        real = (self.domain is not None, self.gap, self.decoded_by, self.wrong_instructions, self.latency_ms)
        if self.imagined and any(real):
            raise ConfigError(
                "an imagined evaluation has no --domain, --gap, --decoded-by, --wrong-instructions and --latency-ms; "
                "leave them out"
            )
        if not 0 <= self.latency_ms < float("inf"):
            raise ConfigError(f"latency_ms is {self.latency_ms}, expected 0 or more; try --latency-ms 100")
        if self.execution is not None and not self.latency_ms:
            raise ConfigError(
                f"--execution {self.execution} is for a latency; give --latency-ms 200 too, or leave it out"
            )
        if self.confirm < 1:
            raise ConfigError(f"confirm is {self.confirm}; expected at least 1")
        if self.episodes < 1 or self.horizon < 1 or self.workers < 0:
            raise ConfigError("episodes and horizon must be at least 1, workers at least 0")
        if self.start_seed < EVALUATION_SEED0:
            raise ConfigError(
                f"start_seed is {self.start_seed}, expected at least {EVALUATION_SEED0}: lower seeds may be in the "
                "training data"
            )
        if self.temperature < 0:
            raise ConfigError(f"temperature is {self.temperature}, expected 0 (greedy) or more")


def run(config: EvalConfig) -> int:
    """Evaluate the policies, print the table, and write the JSON file."""
    device = placing(config).name
    if config.imagined:
        return run_imagined(config, device)
    suite = chosen_suite(config.suite, config.bundle)
    tasks = known_tasks(suite, config.tasks or covered_tasks(config.bundle))
    choices = [PolicyChoice.parse(text, config.bundle, config.temperature, device) for text in config.policy]
    if config.decoded_by is not None:
        shown = str(config.decoded_by)
        choices = [replace(c, ref=DecodedRef(c.ref.path, c.ref.loader, c.ref.device, shown)) for c in choices]
    per_task = max(1, round(config.episodes / len(tasks)))
    starts = make_starts(tasks, per_task, config.start_seed, known_split(suite, config.split))
    where = domain_settings(suite, config.domain, config.gap)
    latency = delay_of(config.latency_ms, suite, config.execution or "asynchronous")
    for choice in choices if latency is not None else ():  # before anything is evaluated
        chunk = int(choice.ref.load().chunk)
        if latency is not None and not latency.leaves(chunk):
            raise ConfigError(
                f"{config.latency_ms:g} ms are {latency.steps} steps, and {choice.name} has chunks of {chunk} actions: "
                "none is left when a chunk arrives; give --execution blocking"
            )
    results: dict[str, EvalResult] = {}
    # by chunk length: one environment step executes one chunk of the policy, or a single action with a latency
    pools: dict[int | None, EvaluationPool] = {}
    with ExitStack() as stack:
        for choice in choices:
            length = None if latency is not None else int(choice.ref.load().chunk)
            if length not in pools:
                pool = evaluation_pool(
                    suite, workers=config.workers, horizon=config.horizon, chunk=length, **where
                )
                pools[length] = stack.enter_context(pool)
            results[choice.name] = _measured(pools[length], choice, starts, config.seed, latency)
            if config.wrong_instructions:
                blind = shuffle_instructions(results[choice.name], seed=config.seed)
                results[f"{choice.name}{WRONG}"] = _measured(pools[length], choice, blind, config.seed, latency)
            # after every policy, so that these results are kept if the server of a later one ends
            data = summary(results, config)
            atomic_write_text(config.out, json.dumps(data, indent=1) + "\n")
    sys.stdout.write(table(results, data["differences"]) + f"\nwritten to {config.out}\n")
    return 0


def delay_of(ms: float, suite: Suite, execution: Execution, hz: float | None = None) -> Latency | None:
    """Latency of an inference of `ms` milliseconds at the control rate of a suite, or at `hz`; None for no time."""
    if not ms:
        return None
    action = suite.specs.action
    if hz is None and action is None:
        raise ConfigError(
            f"the suite {suite.name} has no action spec, so its control rate is unknown; evaluate without a latency"
        )
    return Latency.of(ms / 1000, action.hz if hz is None else hz, execution)


def _measured(
    pool: EvaluationPool, choice: PolicyChoice, starts: list[Start], seed: int, latency: Latency | None
) -> EvalResult:
    """Evaluate a policy in Real, with a progress bar."""
    with Progress(len(starts), choice.name) as bar:
        return pool.evaluate(
            choice.ref, starts, temperature=choice.temperature, seed=seed, latency=latency,
            progress=lambda done, _: bar.update(done - bar.count),
        )  # fmt: skip


def run_imagined(config: EvalConfig, device: str) -> int:
    """Evaluate the policies in imagination, print the table, and write the JSON file."""
    bundle = Bundle.find(config.bundle, placing(config))
    choices = [PolicyChoice.parse(text, config.bundle, config.temperature, device) for text in config.policy]
    names = {field.name for field in fields(ImaginedSettings)}
    settings = ImaginedSettings(**{name: getattr(config, name) for name in names})
    facts = {"world": IMAGINED, "bundle": config.bundle, "world_model": config.world_model, "starts": config.starts}
    facts |= {"split": config.split, "seed": config.seed, "max_uncertainty": config.max_uncertainty}

    def write(results: dict[str, ImaginedResult]) -> None:
        policies = {name: result.to_dict() for name, result in results.items()}
        data = {"policies": policies, "differences": differences(results), **facts, "versions": versions()}
        atomic_write_text(config.out, json.dumps(data, indent=1) + "\n")

    results = evaluate_in_imagination(choices, bundle, settings, write)
    sys.stdout.write(imagined_table(results) + f"\nwritten to {config.out}\n")
    return 0


def covered_tasks(bundle: str) -> tuple[str, ...]:
    """Tasks that a bundle covers; the demo's tasks if the bundle's card does not name any or no bundle is installed.

    Raises:
        CheckpointError: the bundle does not exist, or its card is damaged.
    """
    if bundle == BUNDLED and bundle not in pretrained.names() and not Path(bundle).is_dir():
        return load_suite().default_tasks  # an installation without weights can evaluate its own policies
    return Bundle.find(bundle).tasks


def summary(results: dict[str, EvalResult], config: EvalConfig) -> dict[str, Any]:
    """Return the content of the JSON file: the outcomes of every policy, and each policy minus the first one."""
    first, *others = results
    differences = [
        {"a": name, "b": first, **paired_bootstrap(results[name].success, results[first].success).to_dict()}
        for name in others
    ]
    policies = {name: result.to_dict() for name, result in results.items()}
    domain = config.domain or chosen_suite(config.suite, config.bundle).domains[0]
    facts = {"split": config.split, "domain": domain, "gap": config.gap, "seed": config.seed}
    facts |= {} if config.decoded_by is None else {"decoded_by": str(config.decoded_by)}
    if config.latency_ms:
        facts |= {"latency_ms": config.latency_ms, "execution": config.execution or "asynchronous"}
    return {"policies": policies, "differences": differences, **facts, "versions": versions()}


def table(results: dict[str, EvalResult], differences: list[dict[str, Any]]) -> str:
    """Return the printed table: success rates with intervals, in percent."""
    width = max(12, *(len(name) for name in results)) + 2
    tasks = next(iter(results.values())).tasks()
    lines = [f"{'success, %':<{width}}{'T':>5}{'all':>20}" + "".join(f"{task:>20}" for task in tasks)]
    for name, result in results.items():
        rates = [result.rate(), *result.by_task().values()]
        cells = [f"{100 * r.mean:5.1f} [{100 * r.low:4.1f}, {100 * r.high:4.1f}]" for r in rates]
        lines.append(f"{name:<{width}}{result.temperature:>5g}" + "".join(f"{cell:>20}" for cell in cells))
    for d in differences:
        numbers = f"{100 * d['mean']:+.1f} [{100 * d['low']:+.1f}, {100 * d['high']:+.1f}]"
        lines.append(f"{d['a']} - {d['b']}: {numbers} points, paired over {d['episodes']} starts")
    return "\n".join(lines)
