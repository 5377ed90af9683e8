"""Derived settings of an imagined environment: its horizon, and the bounds of its states.

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
    10.0  # bounds of the state, in standard deviations around the mean; a prediction beyond them is a model error
)
Bound = float | Sequence[float]


def whole(name: str, value: Any, also: str = "") -> int:
    """A setting that is a whole number of at least 1.

    Args:
        name: name of the setting.
        value: its value; NumPy's integers count, True and False do not.
        also: other allowed values, for the message.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name}={value!r}; expected {also}whole numbers >= 1")
    return int(value)


def horizon_of(horizon: int | None, max_episode_steps: int | None, chunk: int | None) -> int:
    """Number of frames until truncation, given in frames or in steps of one chunk.

    Raises:
        ValueError: both are given and differ, or a value is no whole number of at least 1.
    """
    if chunk is not None:
        chunk = whole("chunk", chunk, "None or ")
    if max_episode_steps is None:
        return HORIZON if horizon is None else whole("horizon", horizon, "None or ")
    steps = whole("max_episode_steps", max_episode_steps, "None or ")
    frames = steps * (chunk or 1)
    if horizon is not None and horizon != frames:
        raise ValueError(
            f"horizon={horizon} frames and max_episode_steps={steps} steps ({frames} frames) differ; give one of them"
        )
    return frames


def limited_spec(spec: Any, horizon: int, chunk: int | None) -> Any:
    """A copy of an `EnvSpec` with the step limit set, for wrappers such as TimeAwareObservation."""
    if spec is None or spec.max_episode_steps is not None:
        return spec
    limited = copy.copy(spec)
    limited.max_episode_steps = horizon // (chunk or 1)
    return limited


def state_bounds(model: Any, starts: Any, low: Bound | None, high: Bound | None) -> tuple[Any, Any]:
    """Bounds of the state, `(S,)` or one number each: as given, else from the statistics of model and starts.

    The derived bounds are ten standard deviations around the mean of the training data, widened to include every
    recorded state. A model without statistics has no bounds.
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
