"""Idle steps, repeated pictures and jumps of the state.

Example::

    still = idle_steps(changes, motions)          # by episode, (T,) bool
    repeats = repeated_pictures(change, motion)   # (T,) bool
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from worldgym.data.diagnosis.alignment import clip_limits
from worldgym.data.diagnosis.recorder import Rows

STILL_STATE = 0.05  # a step is still if its motion is below this share of the 95 % quantile
STILL_PICTURE = (
    0.1  # the same for the change of the pictures, which contains the noise of camera and encoding
)
CLEAR_PICTURE = 0.3  # pictures change clearly above this share of the 95 % quantile
VALLEY = 0.25  # a picture is repeated if it changes less than this share of the pictures around it
AROUND = 3  # steps before and after that count as around
ALIKE = 0.5  # while the state moves at least this share of the motion around
JUMP, JUMP_RANGE = 10.0, 0.1  # a jump exceeds this multiple of fast deltas, and this share of the range


def threshold(values: Sequence[np.ndarray], share: float) -> float:
    """Value below which a step counts as still: `share` of the 95 % quantile over all episodes."""
    return share * float(np.quantile(np.concatenate(values), 0.95))


def idle_steps(
    changes: Sequence[np.ndarray] | None, motions: Sequence[np.ndarray] | None
) -> list[np.ndarray]:
    """Steps with neither state motion nor picture change.

    Args:
        changes: by episode, `(P,)`: change of the pictures, the largest of all cameras; None to ignore the pictures.
        motions: by episode, `(T,)`: size of the state motion; None without states.

    Returns:
        By episode, `(P,)` bool.
    """
    out: list[np.ndarray] = []
    if changes is not None:
        limit = threshold(changes, STILL_PICTURE)
        out = [c <= limit for c in changes]
    if motions is not None:
        limit = threshold(motions, STILL_STATE)
        rest = [m <= limit for m in motions]
        out = [a & b[: len(a)] for a, b in zip(out, rest, strict=True)] if out else rest
    return out


def idle_facts(still: Sequence[np.ndarray], numbers: Sequence[int], fps: float) -> dict[str, Any]:
    """Shares of idle steps at the start, at the end and inside of episodes, as plain JSON.

    Args:
        still: by episode, `(T,)` bool.
        numbers: numbers of the episodes.
        fps: rows per second.
    """
    start = [len(s) if s.all() else int(s.argmin()) for s in still]
    end = [0 if s.all() else int(s[::-1].argmin()) for s in still]
    total = sum(map(len, still))
    idle = sum(int(s.sum()) for s in still)
    whole = [number for number, s in zip(numbers, still, strict=True) if s.all()]
    return {
        "share": idle / total, "start": sum(start) / total, "end": sum(end) / total,
        "inside": (idle - sum(start) - sum(end)) / total,
        "median_start_s": float(np.median(start)) / fps, "median_end_s": float(np.median(end)) / fps,
        "wholly_idle_episodes": whole,
    }  # fmt: skip


def repeated_pictures(change: np.ndarray, motion: np.ndarray | None) -> np.ndarray:
    """Steps whose second picture repeats the first one while the state moves as before and after.

    An encoded repeat is not identical to the first picture, so a picture counts as repeated if it changes by less than
    `VALLEY` of the changes both before and after it.

    Args:
        change: `(P,)`, change of the pictures.
        motion: `(T,)`, size of the state motion, T at least P; None without states.

    Returns:
        `(P,)` bool.
    """
    valley = change < VALLEY * _around(change)
    if motion is None:
        return valley
    moves = motion[: len(change)]
    return valley & (moves > ALIKE * _around(moves)) & (moves > 0)


def _around(values: np.ndarray) -> np.ndarray:
    """The smaller one of the largest value of the `AROUND` steps before and that of the steps after; 0 at the ends."""
    padded = np.pad(values.astype(np.float64), AROUND)
    shifted = [padded[AROUND + d : AROUND + d + len(values)] for d in range(-AROUND, AROUND + 1) if d]
    return np.minimum(np.max(shifted[:AROUND], axis=0), np.max(shifted[AROUND:], axis=0))


def repeat_facts(
    changes: Sequence[np.ndarray], motions: Sequence[np.ndarray] | None, fps: float
) -> dict[str, Any]:
    """Share of repeated pictures among the steps with motion, and the rate of new pictures, as plain JSON.

    A repeat shows only where the pictures around it change clearly, so only these steps count.

    Args:
        changes: by episode, `(P,)`.
        motions: by episode, `(T,)`, or None.
        fps: rows per second.
    """
    limit = threshold(changes, CLEAR_PICTURE)
    moving = [np.maximum(c, _around(c)) > limit for c in changes]
    beside = [None] * len(changes) if motions is None else motions
    repeats = [repeated_pictures(c, m) for c, m in zip(changes, beside, strict=True)]
    if motions is not None:
        least = threshold(motions, STILL_STATE)
        moving = [w & (m[: len(w)] > least) for w, m in zip(moving, motions, strict=True)]
    repeats = [r & w for r, w in zip(repeats, moving, strict=True)]
    count, steps = sum(int(r.sum()) for r in repeats), sum(int(m.sum()) for m in moving)
    share = count / steps if steps else 0.0
    pooled = np.concatenate(changes)
    return {
        "repeats": share, "effective_fps": fps * (1.0 - share), "moving_steps": steps,
        "identical": float((pooled == 0).mean()),
        "change": {f"q{q:02d}": float(np.quantile(pooled, q / 100)) for q in (1, 50, 99)},
    }  # fmt: skip


def state_jumps(rows: Sequence[Rows], fields: Sequence[str]) -> list[dict[str, Any]]:
    """State fields with single deltas far larger than their other deltas: stale values, or angles that wrap around.

    Returns:
        By field with a jump: name, count, count in the first step of an episode, and `[episode, step, delta]` of the
        largest one.
    """
    deltas = [np.diff(item.state, axis=0).astype(np.float64) for item in rows]
    limits = clip_limits(deltas)
    low, high = np.quantile(np.concatenate([item.state for item in rows]), (0.01, 0.99), axis=0)
    span = high - low
    found: dict[int, list[tuple[int, int, float]]] = {}
    for item, delta in zip(rows, deltas, strict=True):
        size = np.abs(delta)
        padded = np.pad(size, ((1, 1), (0, 0)))
        beside = np.maximum(padded[:-2], padded[2:])
        jumps = (
            (size > JUMP * limits) & (size > JUMP_RANGE * span) & (size > 0.5 * JUMP * beside) & (limits > 0)
        )
        for step, column in np.argwhere(jumps).tolist():
            found.setdefault(column, []).append((item.number, step, float(delta[step, column])))
    return [
        {
            "name": fields[column], "count": len(jumps), "first_step": sum(step == 0 for _, step, _ in jumps),
            "largest": [*max(jumps, key=_size)],
        }
        for column, jumps in sorted(found.items())
    ]  # fmt: skip


def _size(jump: tuple[int, int, float]) -> float:
    return abs(jump[2])
