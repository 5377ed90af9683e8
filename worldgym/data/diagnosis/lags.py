"""Lags between signals by cross-correlation over episodes, with bootstrap intervals over episodes.

At lag k, `x[t]` is compared with `y[t + k]`: a positive lag means that y follows x. Both signals are centred within
each episode, so that differences between episodes do not count.

Example::

    sums = lag_sums([x_of_episode_0, x_of_episode_1], [y_of_episode_0, y_of_episode_1])   # each (T, P)
    found = best_lags(sums)[0]
    found.lag, found.low, found.high, found.r
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

REACH = 5
LAGS = np.arange(-REACH, REACH + 1)
MIN_STEPS = 2 * REACH + 4  # shorter episodes have too few steps that can be shifted by every lag
MIN_EPISODES = 3  # fewer episodes give no interval
RESAMPLES = 200


@dataclass(frozen=True)
class Lag:
    """Result for one pair of signals.

    Args:
        lag: lag of the largest correlation, steps.
        fine: lag with a fraction, from a parabola through the largest correlation and its neighbours.
        low: lower end of the 95 % bootstrap interval of `fine`; None with fewer than `MIN_EPISODES` episodes.
        high: upper end.
        r: correlation at `lag`, -1 to 1.
        slope: change of y per unit of x at `lag`.
        edge: whether the largest correlation is at the end of the search, so that the true lag may be larger.
        curve: correlation at every lag of `LAGS`.
    """

    lag: int
    fine: float
    low: float | None
    high: float | None
    r: float
    slope: float
    edge: bool
    curve: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "lag": self.lag, "fine": self.fine, "interval": None if self.low is None else [self.low, self.high],
            "r": self.r, "slope": self.slope, "at_end_of_search": self.edge, "curve": list(self.curve),
        }  # fmt: skip

    @property
    def off(self) -> float:
        """Distance of the interval from lag 0, signed, steps; 0 if the interval contains 0."""
        low, high = (self.fine, self.fine) if self.low is None or self.high is None else (self.low, self.high)
        return low if low > 0 else high if high < 0 else 0.0


def windows(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centred windows of one episode: x `(n, P)`, and y at every lag `(K, n, Q)`, float64.

    Args:
        x: `(T, P)`.
        y: `(T, Q)`, T at least `MIN_STEPS`.
    """
    count = len(x) - 2 * REACH
    centre = x[REACH : REACH + count].astype(np.float64)
    moved = np.stack([y[REACH + k : REACH + k + count] for k in LAGS]).astype(np.float64)
    return centre - centre.mean(0), moved - moved.mean(1, keepdims=True)


def cross_correlations(xs: Sequence[np.ndarray], ys: Sequence[np.ndarray]) -> np.ndarray:
    """Correlation of every column of x with every column of y at every lag.

    Args:
        xs: by episode, `(T, P)`.
        ys: by episode, `(T, Q)`.

    Returns:
        `(P, Q, K)`; 0 where a signal is constant or all episodes are too short.
    """
    P, Q, K = xs[0].shape[1], ys[0].shape[1], len(LAGS)
    xy, xx, yy = np.zeros((P, Q, K)), np.zeros((P, 1, 1)), np.zeros((1, Q, K))
    for x, y in zip(xs, ys, strict=True):
        if len(x) < MIN_STEPS:
            continue
        centre, moved = windows(x, y)
        xy += np.einsum("np,knq->pqk", centre, moved, optimize=True)
        xx[:, 0, 0] += (centre**2).sum(0)
        yy[0] += (moved**2).sum(1).T
    return _ratio(xy, xx, yy)


def lag_sums(xs: Sequence[np.ndarray], ys: Sequence[np.ndarray]) -> np.ndarray:
    """Sums per episode from which the correlations of pairs of columns follow.

    Args:
        xs: by episode, `(T, P)`.
        ys: by episode, `(T, P)`.

    Returns:
        `(E, 3, P, K)`: sums of xy, xx and yy for each episode that is long enough.
    """
    out = []
    for x, y in zip(xs, ys, strict=True):
        if len(x) < MIN_STEPS:
            continue
        centre, moved = windows(x, y)
        xy, yy = (centre * moved).sum(1).T, (moved**2).sum(1).T
        out.append(np.stack([xy, np.broadcast_to((centre**2).sum(0)[:, None], xy.shape), yy]))
    return np.stack(out) if out else np.zeros((0, 3, xs[0].shape[1] if xs else 0, len(LAGS)))


def resamples(episodes: int) -> np.ndarray:
    """Bootstrap weights `(RESAMPLES, episodes)`: how often each episode is drawn; always the same for a number."""
    generator = np.random.default_rng(0)
    return generator.multinomial(episodes, np.full(episodes, 1.0 / episodes), RESAMPLES).astype(np.float64)


def correlations(sums: np.ndarray) -> np.ndarray:
    """Correlations `(..., P, K)` from sums `(..., 3, P, K)`."""
    return _ratio(sums[..., 0, :, :], sums[..., 1, :, :], sums[..., 2, :, :])


def resampled_correlations(sums: np.ndarray) -> np.ndarray:
    """Correlations `(RESAMPLES, P, K)` over resampled episodes, from `lag_sums`."""
    return correlations(np.tensordot(resamples(len(sums)), sums, axes=1))


def best_lags(sums: np.ndarray) -> list[Lag | None]:
    """The lag of the largest absolute correlation of each pair.

    Args:
        sums: from `lag_sums`.

    Returns:
        One result for each of the P pairs; None where a signal is constant or every episode is too short.
    """
    total = sums.sum(0)
    r = correlations(total)
    index, fine = _peaks(np.abs(r))
    low = high = np.full(len(r), np.nan)
    if len(sums) >= MIN_EPISODES:
        drawn = _peaks(np.abs(resampled_correlations(sums)))[1]
        low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
        low, high = np.minimum(low, fine), np.maximum(high, fine)
    out: list[Lag | None] = []
    for pair, k in enumerate(index):
        if not len(sums) or not total[1:, pair].all():
            out.append(None)
            continue
        known = len(sums) >= MIN_EPISODES
        a, b = (float(low[pair]), float(high[pair])) if known else (None, None)
        slope = float(total[0, pair, k] / total[1, pair, k])
        curve = tuple(round(float(value), 4) for value in r[pair])
        value, edge = float(r[pair, k]), bool(abs(LAGS[k]) == REACH)
        out.append(Lag(int(LAGS[k]), float(fine[pair]), a, b, value, slope, edge, curve))
    return out


def _peaks(r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of the largest value on the last axis, and its lag refined by a parabola."""
    index = r.argmax(-1)
    inner = np.clip(index, 1, len(LAGS) - 2)
    left, middle, right = (np.take_along_axis(r, (inner + d)[..., None], -1)[..., 0] for d in (-1, 0, 1))
    bend = left - 2.0 * middle + right
    shift = np.where(bend < 0, 0.5 * (left - right) / np.where(bend < 0, bend, -1.0), 0.0)
    return index, LAGS[index] + np.where(index == inner, np.clip(shift, -0.5, 0.5), 0.0)


def _ratio(xy: np.ndarray, xx: np.ndarray, yy: np.ndarray) -> np.ndarray:
    norm = np.sqrt(xx * yy)
    return np.divide(xy, norm, out=np.zeros(np.broadcast_shapes(xy.shape, norm.shape)), where=norm > 0)
