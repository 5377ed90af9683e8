"""Evaluation shared by the library examples: success in Real before and after training, and the file of results.

A policy of any library is a function from a batch of observations to a batch of actions. It is evaluated with its mean
action, from the same held-out starts each time.

Example::

    before = success_in_real(lambda observation: model.predict(observation, deterministic=True)[0], args)
    text = write_results(args.out, args, before, after, curve, seconds)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from experiments.pipelines.run_folder import versions
from worldgym.evaluation import paired_bootstrap, wilson
from worldgym.imagination.adapters.action_repeat import ActionRepeat
from worldgym.pretrained import DEFAULT
from worldgym.suite import load_suite
from worldgym.utils.files import atomic_write_text

EVAL_SEED0 = 18_000_000


def imagined_settings(world_model: Path | None) -> dict[str, Any]:
    """Settings of `worldgym/Imagined-v0` for a world model other than the bundled one; empty if it is None."""
    return {} if world_model is None else {"checkpoint": DEFAULT, "world_model": str(world_model)}


def success_in_real(act: Callable[[dict[str, np.ndarray]], np.ndarray], args: Any, slots: int = 25) -> np.ndarray:
    """Return success at any time of the episode, `(N,)` bool. Every call uses the same starts.

    Args:
        act: function from a batch of observations to actions `(B,4)` in [-1, 1], each repeated for a chunk.
        args: object with `task`, `horizon`, `chunk` and `eval_episodes`.
        slots: number of parallel environments.
    """
    envs = ActionRepeat(load_suite().make(
        slots, task=args.task, horizon=args.horizon, chunk=args.chunk,
        instruction="embedding", autoreset_mode="Disabled", terminate_on_success=False,
    ))  # fmt: skip
    found = []
    for first in range(0, args.eval_episodes, slots):
        observation, info = envs.reset(seed=EVAL_SEED0 + first)
        for _ in range(args.horizon // args.chunk):
            observation, *_, info = envs.step(act(observation))
        found.append(info["success_once"])
    envs.close()
    return np.concatenate(found)[: args.eval_episodes]


def write_results(
    out: Path, args: Any, before: np.ndarray, after: np.ndarray, curve: Sequence[dict[str, float]], seconds: float
) -> str:
    """Write `results.json` and return a one-sentence summary.

    Args:
        out: run folder.
        args: dataclass of the command-line arguments.
        before: `(N,)` bool, success of the untrained policy on each start.
        after: `(N,)` bool, success of the trained policy on each start.
        curve: rows with `frames`, imagined `success` and `seconds`.
        seconds: training time.
    """
    difference = paired_bootstrap(after, before)
    results = {
        "args": asdict(args), "before": wilson(int(before.sum()), len(before)).to_dict(),
        "after": wilson(int(after.sum()), len(before)).to_dict(), "difference": difference.to_dict(),
        "seconds": seconds, "curve": list(curve), "versions": versions(),
    }  # fmt: skip
    atomic_write_text(out / "results.json", json.dumps(results, indent=1, default=str) + "\n")
    return (
        f"success in Real: {before.mean():.2f} before, {after.mean():.2f} after; difference "
        f"{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}], {len(before)} paired starts\n"
    )
