"""Settings that an imagined environment works out from others: its horizon, and the bounds of its states.

Example::

    horizon_of(None, max_episode_steps=8, chunk=5)      # 40 frames
    low, high = state_bounds(model, starts, None, None)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from worldgym.specs import specs_of

HORIZON = 40
SPREADS = (
    10.0  # standard deviations around the mean that states are bounded by; beyond, a model has lost its way
)
Bound = float | Sequence[float]


def horizon_of(horizon: int | None, max_episode_steps: int | None, chunk: int | None) -> int:
    """Frames until truncation, from frames or from steps of a chunk.

    Raises:
        ValueError: both are given and differ, or a value is less than 1.
    """
    if max_episode_steps is None:
        return HORIZON if horizon is None else horizon
    steps = int(max_episode_steps)
    if steps < 1:
        raise ValueError(f"max_episode_steps={max_episode_steps}; expected at least 1")
    frames = steps * (chunk or 1)
    if horizon is not None and horizon != frames:
        raise ValueError(
            f"horizon={horizon} frames and max_episode_steps={steps} steps ({frames} frames) differ; give one of them"
        )
    return frames


def limited_spec(spec: Any, horizon: int, chunk: int | None) -> Any:
    """An `EnvSpec` that says after how many steps an episode ends, for wrappers such as TimeAwareObservation."""
    if spec is None or spec.max_episode_steps is not None:
        return spec
    limited = copy.copy(spec)
    limited.max_episode_steps = horizon // (chunk or 1)
    return limited


def state_bounds(model: Any, starts: Any, low: Bound | None, high: Bound | None) -> tuple[Any, Any]:
    """Bounds of the state, `(S,)` or a number each: as given, else from what model and starts know of it.

    Ten standard deviations around the training data's mean hold every state that is not a mistake, and what was
    recorded is never cut. A model without statistics is not bounded.
    """
    config = getattr(model, "config", None)
    mean, std = (getattr(config, f"state_{name}", None) for name in ("mean", "std"))
    dim = specs_of(model).observation.state_dim
    least, most = np.full(dim, np.inf), np.full(dim, -np.inf)
    if mean is not None and std is not None and len(mean) == dim:
        spread = SPREADS * np.asarray(std, np.float64)
        least, most = np.asarray(mean) - spread, np.asarray(mean) + spread
        known = getattr(starts, "state_range", None)
        if known is not None and len(known[0]) == dim:
            least, most = np.minimum(least, known[0]), np.maximum(most, known[1])
    found_low = np.where(np.isfinite(least), least, -np.inf).astype(np.float32)
    found_high = np.where(np.isfinite(most), most, np.inf).astype(np.float32)
    return found_low if low is None else low, found_high if high is None else high
