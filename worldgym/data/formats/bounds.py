"""Bounds that normalise recorded actions, and the share of values that they clip; one rule for all formats.

Example::

    bounds = action_bounds(actions, "auto")          # actions (N, A)
    bounds.low, bounds.high, bounds.kinds            # (A,), (A,), ["quantiles", "minmax", ...]
    cut(actions, bounds).mean(0)                     # share of clipped values of each dimension
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from worldgym.data.formats.settings import Bounds

WIDE = 10.0  # with "auto", dimensions that span more than this multiple of the quantiles' range use minmax


class ActionBounds(NamedTuple):
    """Values mapped to -1 and 1: `low (A,)`, `high (A,)` float64, and what each is: quantiles, minmax or still."""

    low: np.ndarray
    high: np.ndarray
    kinds: list[str]


def action_bounds(actions: np.ndarray, rule: Bounds) -> ActionBounds:
    """Bounds of each action dimension.

    Args:
        actions: `(N, A)` as recorded or resampled; N is at least 1.
        rule: see `ImportSettings.bounds`.
    """
    values = actions.astype(np.float64)
    least, most = values.min(0), values.max(0)
    low, high = np.quantile(values, (0.01, 0.99), axis=0)
    wide = most - least > WIDE * (high - low)
    if rule == "minmax":
        wide[:] = True
    elif rule == "quantiles":
        wide = _is_empty(low, high)  # a range of zero width cannot be used for normalising
    low, high = np.where(wide, least, low), np.where(wide, most, high)
    still = _is_empty(low, high)  # a constant dimension: any bounds work if they differ
    margin = np.maximum(1.0, np.abs(low))
    return ActionBounds(
        np.where(still, low - margin, low),
        np.where(still, high + margin, high),
        ["still" if s else "minmax" if w else "quantiles" for s, w in zip(still, wide, strict=True)],
    )


def cut(actions: np.ndarray, bounds: ActionBounds) -> np.ndarray:
    """Whether each value of `actions (N, A)` lies outside the bounds, `(N, A)` bool."""
    low, high, _ = bounds
    return np.asarray(np.abs(2.0 * (actions.astype(np.float64) - low) / (high - low) - 1.0) > 1.0 + 1e-6)


def report_dims(names: tuple[str, ...], actions: np.ndarray, bounds: ActionBounds) -> list[dict[str, Any]]:
    """One entry for each action dimension: name, bounds, their kind, and the share of clipped values."""
    shares = cut(actions, bounds).mean(0)
    return [
        {"name": name, "low": float(a), "high": float(b), "bounds": kind, "cut": round(float(share), 6)}
        for name, a, b, kind, share in zip(names, *bounds, shares, strict=True)
    ]


def _is_empty(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Whether each range has zero width up to rounding."""
    return np.asarray(high - low <= np.maximum(1e-6 * np.maximum(np.abs(low), np.abs(high)), 1e-12))
