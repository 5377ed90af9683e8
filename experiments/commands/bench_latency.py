"""`worldgym bench latency`: time of one chunk of actions and success, for policies and for samplers of joint models.

All are timed in turns in one process at batch 1, and evaluated in Real from the same starts. A joint world-action
model (`worldgym train wam`) is measured with a slow sampler (16 steps, guidance, no cache, float32) and with each of
DreamZero's shortcuts added to it (arXiv 2602.15922, table of speed-ups). Differences are to the slow sampler of the
same model, or for other policies to the first one.

With `--execution` each row is also evaluated with its own time of inference (`worldgym.evaluation.latency`): in whole
control steps, while the robot holds still (`blocking`) or executes the rest of its last chunk (`asynchronous`). A row
whose chunks arrive too late for `asynchronous` has no success there, and no row is compared with it.

Example::

    worldgym bench latency --policies sft runs/wam/export --episodes 200 --json runs/latency.json
    worldgym bench latency --policies runs/wam/export --execution blocking asynchronous --hz 10
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import tyro

from experiments.bundle import Bundle
from experiments.commands.evaluate import covered_tasks, delay_of
from experiments.compute import DType, placing
from experiments.pipelines.run_folder import versions
from experiments.suites import BundleName, chosen_suite, evaluation_pool, known_split, known_tasks, real_env
from worldgym.errors import ConfigError
from worldgym.evaluation import EvalResult, make_starts, paired_bootstrap
from worldgym.evaluation.latency import EXECUTIONS, Execution
from worldgym.evaluation.outcomes import EVALUATION_SEED0
from worldgym.pretrained import DEFAULT
from worldgym.utils.compiling import has_compiler
from worldgym.utils.files import atomic_write_text

logger = logging.getLogger(__name__)
AS_SAVED = "as saved"
INT8 = "as with 2 steps, int8 weights, not compiled"
HELD = 16
"""At least so many observations are shown to the timed policies, one after the other."""


@dataclass(frozen=True)
class BenchLatencyConfig:
    """Measure the time of a chunk and the success of policies and samplers.

    Args:
        policies: folders written by save_pretrained, or `sft` for the bundled policy.
        episodes: episodes per row, spread over the tasks; 0 only measures times.
        repeats: chunks per row whose times are taken.
        guidance: guidance weight of the slow sampler of joint models.
        execution: also evaluate each row with its own latency, under these executions.
        hz: control steps per second for this latency; that of the suite if None.
        stack: measure joint models with the slow sampler and its shortcuts; otherwise only as they were saved.
        split: split of starts and instructions.
        tasks: tasks; those that the bundle covers if empty.
        start_seed: first seed of the starts.
        horizon: steps per episode.
        bundle: bundle of the policy `sft` and of the tasks.
        suite: suite of the episodes; that of the bundle if None.
        workers: number of processes of the evaluation; 0 uses the current process.
        json: output file for the results.
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.
        dtype: not used; joint models are measured in both precisions.
    """

    MAY_BE_ZERO: ClassVar[tuple[str, ...]] = ("episodes",)

    policies: tuple[str, ...] = ("sft",)
    episodes: int = 201
    repeats: int = 50
    guidance: float = 5.0
    execution: tuple[Execution, ...] = ()
    hz: float | None = None
    stack: bool = True
    split: str = "seen"
    tasks: tuple[str, ...] = ()
    start_seed: int = EVALUATION_SEED0
    horizon: int = 40
    bundle: BundleName = DEFAULT
    suite: str | None = None
    workers: int = 2
    json: Annotated[Path, tyro.conf.arg(aliases=("--out",))] = Path("runs/latency.json")
    device: str = "auto"
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        """Validate the settings."""
        if not self.policies:
            raise ConfigError("no policies given; try --policies sft runs/wam/export")
        if self.episodes < 0 or self.repeats < 1 or self.horizon < 1:
            raise ConfigError("episodes must be at least 0, repeats and horizon at least 1")
        if self.hz is not None and not 0 < self.hz < float("inf"):
            raise ConfigError(f"hz is {self.hz}, expected a positive number of steps per second; try --hz 10")
        if self.execution and not self.episodes:
            raise ConfigError("--execution measures success, and episodes is 0; give --episodes 201")


def samplers(guidance: float) -> list[tuple[str, dict[str, Any]]]:
    """The slow sampler and the shortcuts, each with all settings; a row that begins with + adds to the row before.

    Args:
        guidance: weight of the slow sampler; 1 for models that do not sample video, which guidance would not change.
    """
    from worldgym.nn import Reuse

    rows: list[tuple[str, dict[str, Any]]] = [
        (
            f"16 steps{f', guidance {guidance:g}' * (guidance > 1)}, no cache, float32",
            {
                "steps": 16, "guidance": guidance, "cache": False, "reuse": Reuse(), "video_end": 0.0,
                "dtype": "float32", "compile": False,
            },
        ),
    ]  # fmt: skip
    for label, change in (
        ("+ keys and values of given tokens kept", {"cache": True}),
        ("+ velocities reused, 6 of 16 passes", {"reuse": Reuse("static", 6)}),
        ("+ 4 steps, each computed", {"steps": 4, "reuse": Reuse()}),
        *([("+ compiled, nothing kept", {"compile": True})] if has_compiler() else []),
        ("+ 2 steps", {"steps": 2}),
        ("+ 1 step", {"steps": 1}),
    ):
        rows.append((label, {**rows[-1][1], **change}))
    two = rows[-2][1]
    rows.append(("as with 2 steps, in bfloat16, not compiled", {**two, "dtype": "bfloat16", "compile": False}))
    if guidance > 1:
        rows.append(("as with 2 steps, no guidance", {**two, "guidance": 1.0}))
    return rows


def run(config: BenchLatencyConfig) -> int:
    """Time and evaluate every row, print the table and write the JSON file."""
    suite, here = chosen_suite(config.suite, config.bundle), placing(config)
    tasks = known_tasks(suite, config.tasks or covered_tasks(config.bundle))
    split = known_split(suite, config.split)
    rows = loaded_rows(config, here)
    chunks = {policy.chunk for _, _, policy in rows}
    if len(chunks) > 1:
        raise ConfigError(
            f"the policies have chunks of {sorted(chunks)} actions; give policies with equal chunks"
        )
    per_task = max(1, round(config.episodes / len(tasks)))
    starts = make_starts(tasks, per_task, config.start_seed, split)
    env = real_env(suite)
    from worldgym.evaluation.rollouts import first_observations

    seen = first_observations(env, make_starts(tasks, -(-HELD // len(tasks)), config.start_seed, split))
    env.close()
    found = times(rows, seen, config.repeats)
    facts: list[dict[str, Any]] = []
    bases: dict[tuple[str, str], EvalResult | None] = {}
    names = [name for name, *_ in rows]
    with ExitStack() as stack:
        pools = [
            stack.enter_context(evaluation_pool(suite, workers=config.workers, horizon=config.horizon, chunk=size))
            for size in (chunks.pop(), *([None] if config.execution else []))
        ]
        for (name, label, policy), seconds in zip(rows, found, strict=True):
            median, high = (float(np.percentile(1000 * seconds, q)) for q in (50, 95))
            row: dict[str, Any] = {
                "policy": name,
                "sampler": label,
                "ms": round(median, 3),
                "ms_p95": round(high, 3),
            }
            base = name if names.count(name) > 1 else config.policies[0]
            if config.episodes:
                row |= compared(pools[0].evaluate(policy, starts), bases, (base, ""))
            for execution in config.execution:
                latency = delay_of(median, suite, execution, config.hz)
                late = latency is not None and not latency.leaves(policy.chunk)
                result = None if late else pools[-1].evaluate(policy, starts, latency=latency)
                steps = 0 if latency is None else latency.steps
                row[execution] = {"steps": steps, **compared(result, bases, (base, execution))}
            facts.append(row)
    written = {
        "rows": facts, "episodes": len(starts) if config.episodes else 0, "tasks": list(tasks), "split": split,
        **({"hz": config.hz or suite.specs.action.hz} if config.execution else {}), "repeats": config.repeats,
        "versions": versions(),
    }  # fmt: skip
    atomic_write_text(config.json, json.dumps(written, indent=1) + "\n")
    sys.stdout.write(f"{table(facts)}\nwritten to {config.json}\n")
    return 0


def compared(
    result: EvalResult | None, bases: dict[tuple[str, str], EvalResult | None], base: tuple[str, str]
) -> dict[str, Any]:
    """Success, and its difference to the first row of `base`; nothing for a row without a result."""
    first = bases.setdefault(base, result)
    if result is None:
        return {}
    found = {"success": result.rate().to_dict()}
    if first is not None:
        found["difference"] = paired_bootstrap(result.success, first.success).to_dict()
    return found


def loaded_rows(config: BenchLatencyConfig, here: Any) -> list[tuple[str, str, Any]]:
    """Name, sampler and policy of each row."""
    from agents.loading import load_policy
    from agents.policies.joint import JointPolicy

    rows: list[tuple[str, str, Any]] = []
    for name in config.policies:
        folder = Bundle.find(config.bundle).policy_folder if name == "sft" else Path(name)
        policy = here(load_policy(folder))
        if not isinstance(policy, JointPolicy) or not config.stack:
            rows.append((name, AS_SAVED, policy))
            continue
        if not has_compiler():
            logger.warning("no C++ compiler (g++, or $CXX) was found: there is no compiled row")
        guidance = config.guidance if policy.config.samples_video else 1.0
        for label, settings in samplers(guidance):
            rows.append((name, label, here(load_policy(folder)).with_sampling(**settings)))
        plain = {**dict(samplers(guidance))["+ 2 steps"], "compile": False}
        if here.device.type == "cpu" and (int8 := quantised(load_policy(folder).with_sampling(**plain))) is not None:
            rows.append((name, INT8, int8))
        rows.append((name, AS_SAVED, policy))
    return rows


def quantised(policy: Any) -> Any:
    """The policy with linear layers whose weights are int8 (dynamic quantisation); None if this torch has none."""
    try:
        from torch.ao.quantization import quantize_dynamic
    except ImportError:
        logger.warning("this version of torch has no dynamic quantisation: there is no int8 row")
        return None
    from torch import nn, qint8

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torchao is to replace it, and needs a package more
        policy.network = quantize_dynamic(policy.network, {nn.Linear}, dtype=qint8)
    return policy


def times(rows: list[tuple[str, str, Any]], seen: dict[str, Any], repeats: int) -> list[np.ndarray]:
    """Seconds of each greedy chunk, by row; the rows take turns, so that a slow moment of the machine meets all."""
    found: list[list[float]] = [[] for _ in rows]
    count = len(seen["image"])
    for i in range(repeats + 1):
        one = {key: value[i % count : i % count + 1] for key, value in seen.items()}
        for (_, _, policy), taken in zip(rows, found, strict=True):
            began = time.perf_counter()
            policy.act(one, temperature=0.0).actions.cpu()
            taken.append(time.perf_counter() - began)
    return [np.array(taken[1:]) for taken in found]  # the first one warms up


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a markdown table; times are also given as a multiple of the speed of the model's slow sampler."""
    late = [name for name in EXECUTIONS if name in rows[0]]
    head = ["policy", "sampler", "ms a chunk, median (p95)", "speed", "success", "difference"]
    for name in late:
        head += [f"{name}: steps", "success", "difference"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    slow: dict[str, float] = {}
    for row in rows:
        base = slow.setdefault(row["policy"], row["ms"])
        cells = [
            row["policy"], row["sampler"], f"{row['ms']:.1f} ({row['ms_p95']:.1f})", f"{base / row['ms']:.1f} x",
            *_cells(row),
        ]  # fmt: skip
        for name in late:
            cells += [str(row[name]["steps"]), *_cells(row[name])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(found: dict[str, Any]) -> list[str]:
    rate, change = found.get("success"), found.get("difference")
    return ["-" if rate is None else _share(rate), "-" if change is None else _points(change)]


def _share(rate: dict[str, float]) -> str:
    return f"{rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"


def _points(change: dict[str, float]) -> str:
    return f"{100 * change['mean']:+.1f} [{100 * change['low']:+.1f}, {100 * change['high']:+.1f}]"
