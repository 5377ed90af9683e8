"""`worldgym bench env`: the overhead of the Gymnasium interface over the world model that it wraps.

Measures ratios of alternately timed operations in one process: an environment step over the same step of the model
called directly, with arrays and with tensors; and forking an episode into branches over as many resets. `--workers`
adds the speed-up of several Ray workers over one, and `--soak` checks whether memory grows over a number of rounds.

Example::

    worldgym bench env --json runs/env.json
    worldgym bench env --checkpoint runs/world_model/export --batches 1 16
    worldgym bench env --workers 2 --soak 200
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.bundle import Bundle
from experiments.compute import DType, placing
from experiments.pipelines import speed
from experiments.pipelines.run_folder import finite, versions
from experiments.suites import BundleName
from worldgym.errors import ConfigError
from worldgym.pretrained import DEFAULT
from worldgym.utils.files import atomic_write_text

LONG = 1_000_000  # frames: no episode ends while it is timed


@dataclass(frozen=True)
class BenchEnvConfig:
    """Measure the overhead of the environment, forks against resets, and the time of an import.

    Args:
        checkpoint: folder of a world model; the bundle's if None.
        bundle: name of a bundled checkpoint, or a folder with the same parts.
        json: output file for the results.
        batches: batch sizes.
        branches: number of branches forked from one episode.
        chunk: frames per step.
        seconds: minimum duration of each timing.
        rounds: number of alternations between the compared operations.
        threads: number of torch threads.
        workers: number of Ray workers to compare with one worker; 0 skips Ray.
        soak: rounds on Ray workers over which memory is monitored; 0 skips this.
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.
        dtype: precision of world-model inference; `auto` uses the saved precision.
    """

    checkpoint: Path | None = None
    bundle: BundleName = DEFAULT
    json: Path = Path("runs/env.json")
    batches: tuple[int, ...] = (1, 64)
    branches: int = 64
    chunk: int = 5
    seconds: float = 2.0
    rounds: int = 5
    threads: int = 2
    workers: int = 0
    soak: int = 0
    device: str = "auto"
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        """Validate the settings."""
        counts = (*self.batches, self.branches, self.chunk, self.rounds, self.threads)
        if not self.batches or min(counts) < 1 or self.seconds <= 0:
            raise ConfigError(
                "batches, branches, chunk, rounds and threads must be at least 1, and seconds more than 0"
            )
        if min(self.workers, self.soak) < 0 or (self.soak and not self.workers):
            raise ConfigError(
                f"workers={self.workers}, soak={self.soak}; expected at least 0, and --soak needs --workers 2 or more"
            )


def run(config: BenchEnvConfig) -> int:
    """Measure, print the table, and write the JSON file."""
    import torch

    from worldgym.models import load_world_model

    torch.set_num_threads(config.threads)
    here = placing(config)
    bundle = Bundle.find(config.bundle, here)
    model = here(load_world_model(config.checkpoint)) if config.checkpoint else bundle.world_model()
    starts = bundle.starts_file
    facts: dict[str, Any] = {
        "overhead": {str(batch): overhead(model, starts, batch, config) for batch in config.batches},
        "branches": branches(model, starts, config),
        "import_seconds": import_seconds(),
        "chunk": config.chunk,
        "threads": config.threads,
        "versions": versions(),
    }
    if config.workers:
        facts |= on_ray(model, bundle, config)
    atomic_write_text(config.json, json.dumps(finite(facts), indent=1) + "\n")
    sys.stdout.write(table(facts) + f"\nwritten to {config.json}\n")
    return 0


def overhead(model: Any, starts: Path, batch: int, config: BenchEnvConfig) -> dict[str, float]:
    """Relative overhead of an environment step over a model step (ratio minus 1); `direct_ms` is the model's time.

    Both imagine the same chunk and decode its last frame. No judge runs, because it costs the same in both cases.
    """
    import torch

    from worldgym.imagination import WorldModelVectorEnv

    actions = torch.rand(batch, config.chunk, model.action_dim, device="cpu") * 2 - 1

    def environment(tensors: bool) -> Callable[[], int]:
        envs = WorldModelVectorEnv(
            model,
            None,
            starts,
            num_envs=batch,
            horizon=LONG * config.chunk,
            chunk=config.chunk,
            tensors=tensors,
        )
        envs.reset(seed=0)
        inputs = actions if tensors else actions.numpy()

        def work() -> int:
            envs.step(inputs)
            return batch

        return work

    current = {"state": speed.start(model, batch)}

    def direct() -> int:
        current["state"], _ = model.step(current["state"], actions, decode="last")
        return batch

    rates = speed.paired(
        {"direct": direct, "arrays": environment(False), "tensors": environment(True)},
        config.rounds,
        config.seconds,
    )
    return {
        **{name: rates["direct"] / rates[name] - 1 for name in ("arrays", "tensors")},
        "direct_ms": 1000 * batch / rates["direct"],
    }


def branches(model: Any, starts: Path, config: BenchEnvConfig) -> dict[str, float]:
    """Milliseconds to fork an episode into branches, and of as many resets, in one batch and one after the other."""
    from worldgym.imagination import WorldModelEnv, WorldModelVectorEnv

    count, shape = config.branches, {"horizon": 8 * config.chunk, "chunk": config.chunk}
    root = WorldModelVectorEnv(model, None, starts, num_envs=1, **shape)
    root.reset(seed=0)
    root.step(root.action_space.sample())
    batch, one = (
        WorldModelVectorEnv(model, None, starts, num_envs=count, **shape),
        WorldModelEnv(model, None, starts),
    )

    def fork() -> int:
        root.fork([0] * count)
        return 1

    def reset() -> int:
        batch.reset(seed=0)
        return 1

    def each() -> int:
        for seed in range(count):
            one.reset(seed=seed)
        return 1

    rates = speed.paired(
        {"fork": fork, "reset_batch": reset, "reset_each": each}, config.rounds, config.seconds
    )
    return {
        "count": count,
        **{f"{name}_ms": 1000 / rates[name] for name in rates},
        "fork_over_resets": rates["reset_batch"] / rates["fork"],
    }


def on_ray(model: Any, bundle: Bundle, config: BenchEnvConfig) -> dict[str, Any]:
    """Measure scaling over Ray workers, and memory growth if `soak` is set."""
    from experiments.pipelines import ray_scaling

    parts = (model, bundle.judge(), bundle.policy(), bundle.start_bank())
    facts: dict[str, Any] = {
        "ray": ray_scaling.scaling(
            *parts, workers=config.workers, rounds=config.rounds, seconds=config.seconds
        )
    }
    if config.soak:
        facts["soak"] = ray_scaling.soak(*parts, workers=config.workers, rounds=config.soak)
    return facts


def import_seconds(rounds: int = 5) -> float:
    """Minimum time of `import worldgym` in a new interpreter, minus the start-up time of the interpreter."""

    def spent(statement: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True)
        return time.perf_counter() - began

    times = [(spent("import worldgym"), spent("pass")) for _ in range(rounds)]
    return min(a for a, _ in times) - min(b for _, b in times)


def table(facts: dict[str, Any]) -> str:
    """Return the printed table."""
    lines = [
        f"batch {batch:>3}: {row['arrays']:+.1%} with arrays, {row['tensors']:+.1%} with tensors, "
        f"relative to a step of the model alone ({row['direct_ms']:.1f} ms per chunk)"
        for batch, row in facts["overhead"].items()
    ]
    tree = facts["branches"]
    lines.append(
        f"{tree['count']} branches from mid-episode: {tree['fork_ms']:.1f} ms, {tree['fork_over_resets']:.2f} times "
        f"the time of as many resets in one batch ({tree['reset_batch_ms']:.1f} ms; one by one: "
        f"{tree['reset_each_ms']:.0f} ms)"
    )
    lines.append(f"import worldgym: {facts['import_seconds']:.2f} s")
    if ray := facts.get("ray"):
        lines.append(
            f"{ray['workers']:.0f} Ray workers with one thread each: {ray['many']:.0f} imagined steps/s; one worker: "
            f"{ray['one']:.0f}, efficiency {ray['efficiency']:.2f}; without Ray: {ray['here']:.0f}; "
            f"{ray['bytes_per_step']:.0f} bytes transferred per step"
        )
    if soak := facts.get("soak"):
        lines.append(
            f"memory over {soak['rounds']} rounds on Ray: driver {soak['growth_mb']['driver']:+.0f} MB, worker "
            f"{soak['growth_mb']['workers']:+.0f} MB, counted from round {max(1, round(0.1 * soak['rounds']))}"
        )
    return "\n".join(lines)
