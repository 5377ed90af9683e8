"""Alignment of actions with states, and of pictures with states.

By convention, action t leads from frame t to t+1. So a relative action t agrees with the state delta `s[t+1] - s[t]`,
and an absolute target t with the state `s[t+1]`; both have lag 0. At lag k, action t agrees with the motion k steps
later.

Example::

    for found in align_actions(recorder.rows, ("dx", "gripper"), ("x", "opening"), fps=10.0):
        found.name, found.kind, found.delta.lag
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from worldgym.data.diagnosis.lags import (
    MIN_EPISODES,
    Lag,
    best_lags,
    correlations,
    cross_correlations,
    lag_sums,
    resampled_correlations,
)
from worldgym.data.diagnosis.recorder import Rows

Kind = Literal["delta", "absolute", "unknown", "constant"]
CLIP = 0.95  # quantile of the non-zero sizes of a signal at which it is clipped, so that single jumps don't decide
DELTA_R, ABSOLUTE_R, CHANGE_R = 0.3, 0.7, 0.15  # least correlations for a verdict, see `align_actions`
MARGIN = 0.1  # least difference of the correlations of the two kinds when there are too few episodes for an interval
SAME_NAME = (
    0.5  # preference for the state field that has the name of the action dimension, in units of correlation
)
GAIN = 0.25  # relative tolerance of the slope of a motion in units of the state, or of a rate


@dataclass(frozen=True)
class Alignment:
    """How one action dimension agrees with the state.

    Args:
        name: the action dimension.
        partner: the state field that it agrees with best, or None.
        kind: `delta`, `absolute`, `unknown`, or `constant`.
        rule: the rule of `worldgym import --actions` that fits, or None: `rate` for a delta whose slope is the duration
            of a row, i.e. a velocity.
        delta: lag against the deltas of the partner, or None.
        absolute: lag against the partner itself, or None.
    """

    name: str
    partner: str | None
    kind: Kind
    rule: str | None
    delta: Lag | None
    absolute: Lag | None

    @property
    def best(self) -> Lag | None:
        """The lag that belongs to the kind; None if the kind is unknown."""
        return {"delta": self.delta, "absolute": self.absolute}.get(self.kind)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "name": self.name, "state": self.partner, "kind": self.kind, "rule": self.rule,
            "delta": None if self.delta is None else self.delta.to_dict(),
            "absolute": None if self.absolute is None else self.absolute.to_dict(),
        }  # fmt: skip


def clip_limits(values: Sequence[np.ndarray]) -> np.ndarray:
    """Size at which each column is clipped, `(P,)`: the `CLIP` quantile of its non-zero sizes; 0 for a constant 0.

    Args:
        values: by episode, `(T, P)`.
    """
    sizes = np.abs(np.concatenate(values))
    return np.array([np.quantile(c[c > 0], CLIP) if (c > 0).any() else 0.0 for c in sizes.T])


def clipped(values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The signals with each column clipped at `clip_limits`, float64."""
    limits = clip_limits(values)
    return [np.clip(item, -limits, limits).astype(np.float64) for item in values]


def align_actions(
    rows: Sequence[Rows], names: Sequence[str], fields: Sequence[str], fps: float
) -> list[Alignment]:
    """Find the kind and the lag of each action dimension.

    The partner of a dimension is the state field whose deltas agree best with the action or with its changes; a field
    of the same name is preferred. The kind is

    - `delta` if the correlation with the deltas is at least `DELTA_R`, surely larger than that with the state, and has
      its peak within the search;
    - `absolute` if the correlation with the state is at least `ABSOLUTE_R` and surely larger, and the changes of the
      action agree with the deltas by at least `CHANGE_R` (two slow signals are correlated anyway).

    Surely: the 95 % interval of the difference, over resampled episodes, excludes 0.

    Args:
        rows: episodes with actions and states.
        names: names of the A action dimensions.
        fields: names of the S state fields.
        fps: rows per second.
    """
    acted = [item for item in rows if item.actions is not None and item.state.shape[1]]
    if not acted:
        return [Alignment(name, None, "unknown", None, None, None) for name in names]
    actions = [item.actions.astype(np.float64) for item in acted if item.actions is not None]
    deltas = clipped([np.diff(item.state, axis=0) for item in acted])
    after = [item.state[1:] for item in acted]
    changes = clipped([np.diff(a, axis=0, prepend=a[:1]) for a in actions])
    by_delta = np.abs(cross_correlations(actions, deltas)).max(-1)  # (A, S)
    by_change = np.abs(cross_correlations(changes, deltas)).max(-1)
    score = np.maximum(by_delta, by_change) + SAME_NAME * np.array(
        [[_same(name, field) for field in fields] for name in names], float
    )
    partner = score.argmax(1)
    delta_sums = lag_sums(actions, [d[:, partner] for d in deltas])
    state_sums = lag_sums(actions, [s[:, partner] for s in after])
    moved, placed = best_lags(delta_sums), best_lags(state_sums)
    more = _more(delta_sums, state_sums)
    out = []
    constant = [all((a[:, i] == actions[0][0, i]).all() for a in actions) for i in range(len(names))]
    for i, name in enumerate(names):
        delta, absolute = moved[i], placed[i]
        if constant[i] or delta is None or absolute is None:
            kind: Kind = "constant" if constant[i] else "unknown"
            out.append(Alignment(name, None, kind, None, None, None))
            continue
        kind = "unknown"
        if more[i] > 0 and abs(delta.r) >= DELTA_R and not delta.edge:
            kind = "delta"
        elif more[i] < 0 and abs(absolute.r) >= ABSOLUTE_R and by_change[i, partner[i]] >= CHANGE_R:
            kind = "absolute"
        rule = {"delta": _relative(delta, fps), "absolute": "absolute"}.get(kind)
        out.append(Alignment(name, fields[partner[i]], kind, rule, delta, absolute))
    return out


def _more(delta_sums: np.ndarray, state_sums: np.ndarray) -> np.ndarray:
    """1 where the correlation with deltas is surely the larger one, -1 where it is surely the smaller one, else 0."""
    if len(delta_sums) < MIN_EPISODES:
        gap = _largest(correlations(delta_sums.sum(0))) - _largest(correlations(state_sums.sum(0)))
        return np.where(np.abs(gap) >= MARGIN, np.sign(gap), 0.0)
    gap = _largest(resampled_correlations(delta_sums)) - _largest(resampled_correlations(state_sums))
    low, high = np.quantile(gap, (0.025, 0.975), axis=0)
    return np.where(low > 0, 1.0, np.where(high < 0, -1.0, 0.0))


def _largest(r: np.ndarray) -> np.ndarray:
    return np.abs(r).max(-1)


def _relative(lag: Lag, fps: float) -> str | None:
    """`delta` for a motion in units of the state, `rate` for a velocity, None for another slope."""
    for rule, slope in (("delta", 1.0), ("rate", 1.0 / fps)):
        if abs(abs(lag.slope) / slope - 1.0) <= GAIN:
            return rule
    return None


def _same(name: str, field: str) -> bool:
    """Whether an action dimension is named after a state field, e.g. `dx` after `x`, `joint_0_vel` after `joint_0`."""
    return name in (field, f"d{field}", f"d_{field}", f"target_{field}") or name.startswith(f"{field}_")


# ---- pictures ----------------------------------------------------------------------------------------------------


def state_motion(rows: Sequence[Rows]) -> list[np.ndarray]:
    """Size of the state motion at each step, by episode `(T,)` float64, without unit.

    Every field is divided by its typical motion and weighted by the smoothness of its deltas, so that the noise of a
    resting sensor, whose successive deltas are opposite, does not count.
    """
    deltas = clipped([np.diff(item.state, axis=0) for item in rows])
    pooled = np.concatenate(deltas)
    scale = np.sqrt((pooled**2).mean(0))
    products = sum((d[1:] * d[:-1]).sum(0) for d in deltas)
    smooth = products / np.maximum(sum((d[1:] ** 2).sum(0) for d in deltas), 1e-300)
    weight = np.where(scale > 0, np.clip(0.5 + smooth, 0.02, 1.0), 0.0)
    factor = weight / np.where(scale > 0, scale, 1.0)
    return [np.sqrt(((d * factor) ** 2).sum(1) / max(float((weight**2).sum()), 1e-300)) for d in deltas]


def action_size(rows: Sequence[Rows]) -> list[np.ndarray]:
    """Size of the actions at each step, by episode `(T,)` float64: distance from the median of each dimension."""
    actions = [item.actions for item in rows if item.actions is not None]
    middle = np.median(np.concatenate(actions), axis=0)
    moved = clipped([a - middle for a in actions])
    scale = np.sqrt((np.concatenate(moved) ** 2).mean(0))
    factor = np.where(scale > 0, 1.0 / np.where(scale > 0, scale, 1.0), 0.0)
    return [np.sqrt(((a * factor) ** 2).mean(1)) for a in moved]


def picture_lag(changes: Sequence[np.ndarray], sizes: Sequence[np.ndarray], smooth: int = 1) -> Lag | None:
    """Lag between the changes of the pictures and the size of a motion; positive if the pictures lead.

    Args:
        changes: by episode, `(P,)`, see `Rows.change`.
        sizes: by episode, `(T,)`, T at least P: size of the state motion or of the actions.
        smooth: both signals are averaged over this many steps; more than 1 if pictures are repeated.
    """
    box = np.ones(smooth) / smooth
    pairs = [(c, m[: len(c)]) for c, m in zip(changes, sizes, strict=True) if len(c) >= smooth]
    changes = [np.convolve(c, box, "valid") for c, _ in pairs]
    sizes = [np.convolve(m, box, "valid") for _, m in pairs]
    if not pairs:
        return None
    pictures = [np.sqrt(c) for c in clipped([c[:, None] for c in changes])]
    motions = [np.sqrt(m)[:, None] for m in sizes]
    found = best_lags(lag_sums(pictures, motions))
    return found[0] if found else None
