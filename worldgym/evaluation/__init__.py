"""Evaluation in the real domain: paired start states, confidence intervals, and the closed-loop test of a world model.

An imagined success is only valid if the same actions succeed in the real domain. Attributes are imported on first use,
so that importing the package does not import torch.

Example::

    from worldgym.evaluation import EvaluationPool, PolicyRef, make_starts
    starts = make_starts(["reach", "push"], per_task=100)
    with EvaluationPool("worldgym.suite:make_env", workers=2) as pool:
        print(pool.evaluate(PolicyRef("policy/"), starts).rate())
"""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "Confusion": "statistics",
    "Interval": "statistics",
    "mean_interval": "statistics",
    "paired_bootstrap": "statistics",
    "resampled_means": "statistics",
    "seeds_bootstrap": "statistics",
    "seeds_ratio": "statistics",
    "wilson": "statistics",
    "EvalResult": "outcomes",
    "EvaluationPool": "rollouts",
    "Latency": "latency",
    "PolicyRef": "rollouts",
    "Start": "outcomes",
    "evaluate_policy": "rollouts",
    "make_starts": "outcomes",
    "shuffle_instructions": "outcomes",
    "ClosedLoopResult": "closed_loop",
    "replay_actions": "closed_loop",
    "run_closed_loop": "closed_loop",
    "ImaginedResult": "imagined",
    "evaluate_imagined": "imagined",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return __all__
