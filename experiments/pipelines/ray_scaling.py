"""Benchmarks of Ray workers: steps per second by number of workers, bytes transferred, memory over many rounds.

Example::

    scaling(world_model, judge, policy, bank, workers=2)     # efficiency, bytes per step
    soak(world_model, judge, policy, bank, rounds=200)       # resident memory of driver and workers
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from agents.rollouts.ray_pool import RolloutPool, collect_in_pieces, connect, disconnect, pieces_of
from experiments.pipelines import speed
from worldgym.utils.memory import resident_mb
from worldgym.utils.optional import require
from worldgym.utils.progress import Progress

GROUP, HORIZON = 6, 25


def scaling(
    world_model: Any,
    judge: Any,
    policy: Any,
    bank: Any,
    *,
    workers: int,
    piece: int = 8,
    rounds: int = 3,
    seconds: float = 5.0,
) -> dict[str, float]:
    """Imagined steps per second of one worker and of `workers` workers with one thread each, measured in turns.

    Args:
        world_model: any `WorldModel`.
        judge: any `RewardModel`.
        policy: any `Policy`.
        bank: a `StartBank`.
        workers: size of the larger pool; there are enough pieces to keep every worker of both pools busy.
        piece: starts per piece.
        rounds: number of turns.
        seconds: minimum duration of each turn.

    Returns:
        `one`, `many`: steps per second; `here`: steps per second in this process without Ray, one thread; `efficiency`:
        many / (workers x one); `bytes_per_step`: bytes that Ray serialises per step, namely policy weights, starts and
        rollouts. World model and judge are not counted, since they are sent only once.
    """
    import torch

    starts = bank.sample(2 * workers * piece, np.random.default_rng(0))
    settings: dict[str, Any] = {
        "group_size": GROUP,
        "horizon": HORIZON,
        "temperature": 2.0,
        "seed": 0,
        "piece": piece,
    }
    ray = require("ray", extra="rllib")
    with ExitStack() as stack:
        if connect(ray, None, workers + 1):  # CPUs for both pools; only one of them works at a time
            stack.callback(disconnect, ray)
        many = stack.enter_context(RolloutPool(world_model, judge, workers))
        one = stack.enter_context(RolloutPool(world_model, judge, 1))
        torch.set_num_threads(1)
        rollouts = one.collect(policy, starts, **settings)

        def work(collect: Callable[..., Any]) -> Callable[[], int]:
            return lambda: int(collect(policy, starts, **settings).frames_used)

        here = lambda *a, **k: collect_in_pieces(world_model, judge, *a, **k)  # noqa: E731
        rates = speed.paired(
            {"one": work(one.collect), "many": work(many.collect), "here": work(here)}, rounds, seconds
        )
    moved = [policy, *pieces_of(starts, piece), rollouts]
    return {
        **rates,
        "workers": workers,
        "efficiency": rates["many"] / (workers * rates["one"]),
        "bytes_per_step": sum(len(ray.cloudpickle.dumps(part)) for part in moved) / rollouts.frames_used,
    }


def soak(
    world_model: Any, judge: Any, policy: Any, bank: Any, *, workers: int, rounds: int = 200
) -> dict[str, Any]:
    """Resident memory of driver and workers, in megabytes, over many small rounds; each round sends new weights.

    Returns:
        `rounds`; `driver_mb`, `workers_mb`: five readings between a tenth of the rounds and the end; `growth_mb`: last
        minus first reading, of the driver and of the workers' mean.
    """
    rng = np.random.default_rng(0)
    marks = sorted({max(1, round(rounds * share)) for share in (0.1, 0.325, 0.55, 0.775, 1.0)})
    driver: list[float] = []
    theirs: list[float] = []
    with (
        RolloutPool(world_model, judge, workers) as pool,
        Progress(rounds, "soak") as progress,
    ):
        for number in range(1, rounds + 1):
            starts = bank.sample(2 * workers, rng)
            pool.collect(policy, starts, seed=number, piece=2, group_size=2, horizon=10)
            progress.update(1)
            if number in marks:
                driver.append(resident_mb())
                theirs.append(float(np.mean(pool.memory_mb())))
    return {
        "rounds": rounds,
        "driver_mb": driver,
        "workers_mb": theirs,
        "growth_mb": {"driver": driver[-1] - driver[0], "workers": theirs[-1] - theirs[0]},
    }
