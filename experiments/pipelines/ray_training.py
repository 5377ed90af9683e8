"""Training processes started by Ray Train, on this machine or on a cluster.

`torch.multiprocessing` is limited to one machine. Ray Train starts the same function on every worker, creates a process
group, and restarts the function after a worker died. The function then resumes from its own checkpoint. All nodes must
therefore share one run folder.

Example::

    on_ray(train_stages, config, model, data, workers=2, address="local", out=Path("runs/world_model"))
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agents.rollouts.ray_pool import check_resources, connect, disconnect
from worldgym.errors import ConfigError
from worldgym.utils.optional import require

RETRIES = 2
"""How many times the group is restarted after a worker died."""


def on_ray(
    function: Callable[[int, Any, Any, Any], None],
    config: Any,
    model: Any,
    data: Any,
    workers: int,
    address: str,
    out: Path,
    *,
    gpu: bool = False,
) -> None:
    """Call `function(rank, config, model, data)` on `workers` Ray workers.

    Args:
        function: trains one rank; must resume by itself from the content of its run folder.
        config: passed to the function.
        model: passed through the object store; every worker gets its own copy.
        data: passed through the object store.
        workers: number of ranks; each requests its share of this machine's cores as CPUs of the cluster.
        address: `local`, `auto` or `ray://HOST:10001`.
        out: run folder; Ray's own files go to `out/ray`.
        gpu: every rank requests a GPU, and its model is placed there.

    Raises:
        ConfigError: no cluster at `address`, too few resources, or training failed more than `RETRIES` times.
        DependencyError: Ray is not installed.
    """
    ray = require("ray", extra="rllib")
    train = require("ray.train", extra="rllib")
    from ray.train.torch import TorchTrainer

    threads = max(1, (os.cpu_count() or 1) // workers)
    started = connect(ray, address, workers * threads)
    try:
        check_resources(ray, {"CPU": workers * threads, "GPU": float(workers * gpu)})
        trainer = TorchTrainer(
            _worker,
            train_loop_config={
                "function": function, "config": config, "threads": threads, "gpu": gpu,
                "parts": [ray.put(model), ray.put(data)],
            },
            scaling_config=train.ScalingConfig(
                num_workers=workers, use_gpu=gpu,
                resources_per_worker={"CPU": threads, "GPU": 1} if gpu else {"CPU": threads},
            ),
            run_config=train.RunConfig(
                name="train", storage_path=str((out / "ray").resolve()),
                failure_config=train.FailureConfig(max_failures=RETRIES),
            ),
        )  # fmt: skip
        try:
            trainer.fit()
        except train.TrainingFailedError as error:
            raise ConfigError(
                f"training on Ray failed {RETRIES + 1} times; last error: {error}. The last checkpoint is in {out}; "
                "type the same command to continue from it"
            ) from error
    finally:
        if started:
            disconnect(ray)


def _worker(setting: dict[str, Any]) -> None:
    """One rank; Ray Train has created the process group."""
    import ray
    import torch
    from ray import train

    rank = train.get_context().get_world_rank()
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING)
    torch.set_num_threads(setting["threads"])
    model, data = ray.get(setting["parts"])
    if setting["gpu"]:
        from ray.train.torch import get_device

        model = model.to(get_device())
    setting["function"](rank, setting["config"], model, data)
