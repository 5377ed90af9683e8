"""Counterfactual action sequences: a demonstration's actions, perturbed in graded ways so that most of them fail.

A world model that was trained on successes can show success whatever the actions are. Perturbed sequences that are
executed from the same start state, and labelled there, measure that optimism and are training data against it. The
families follow the idea of CureWM (arXiv 2610.09134); the definitions are ours.

| family | severity | change |
|---|---|---|
| `missed_grasp` | centimetres | the hand is displaced sideways on its way, by this distance |
| `early_release` | steps | the gripper opens this many steps earlier |
| `late_close` | steps | the gripper closes this many steps later |
| `frozen` | share of the steps not taken | the hand stops before success and keeps its place |
| `reversed` | share of the steps not taken | the hand turns before success and goes back the way it came |
| `wrong_object` | 1 | the demonstration of another instruction in the same scene |

Example::

    perturbed(actions, spec, "missed_grasp", 5.0, end=18, rng=np.random.default_rng(0))     # (T,A), or None
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldgym.errors import ConfigError
from worldgym.specs import ActionSpec

WRONG_OBJECT = "wrong_object"
FAMILIES: dict[str, tuple[float, ...]] = {
    WRONG_OBJECT: (1.0,),
    "missed_grasp": (3.0, 5.0, 8.0),
    "early_release": (2.0, 4.0, 6.0),
    "late_close": (1.0, 2.0, 4.0),
    "frozen": (0.1, 0.3, 0.6),
    "reversed": (0.1, 0.3, 0.6),
}
"""Severities of each family, the mildest first."""
UNPERTURBED = "none"
"""Family of the demonstration itself."""
METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001}


@dataclass(frozen=True)
class Counterfactual:
    """An action sequence from one start state.

    Args:
        family: one of `FAMILIES`, or `none` for the demonstration itself.
        severity: severity in the unit of the family.
        actions: `(T,A)` float32 in [-1, 1].
        end: steps after which the demonstration had succeeded; None if it failed.
    """

    family: str
    severity: float
    actions: NDArray[np.float32]
    end: int | None


def perturbed(
    actions: Any, spec: ActionSpec, family: str, severity: float, *, end: int, rng: np.random.Generator
) -> NDArray[np.float32] | None:
    """Perturb the actions of a successful demonstration.

    Args:
        actions: `(T,A)` in [-1, 1], displacements of the hand per step and the position of the gripper.
        spec: names, units and gripper of the actions.
        family: one of `FAMILIES`, except `wrong_object`, which is another demonstration.
        severity: severity, in the unit of the family.
        end: number of actions after which the demonstration has succeeded.
        rng: draws the direction of a displacement.

    Returns:
        `(T,A)` float32, or None if the family does not apply: the actions have no such event, or do not change.

    Raises:
        ConfigError: unknown family, or a severity that it does not allow.
        ValueError: `actions` has another shape, or `end` is outside 1 to T.
    """
    actions = np.array(actions, np.float32)
    if actions.ndim != 2 or actions.shape[1] != spec.dim:
        raise ValueError(f"got actions of shape {actions.shape}, expected (T, {spec.dim}) for {spec.names}")
    if not 1 <= end <= len(actions):
        raise ValueError(f"end is {end}, expected 1 to {len(actions)}, the number of actions")
    if family not in FAMILIES or family == WRONG_OBJECT:
        known = ", ".join(name for name in FAMILIES if name != WRONG_OBJECT)
        raise ConfigError(f"there is no perturbation {family!r}; there are {known}")
    _check_severity(family, severity)
    out = _CHANGES[family](actions.copy(), spec, severity, end, rng)
    return None if out is None or np.array_equal(out, actions) else out


def _check_severity(family: str, severity: float) -> None:
    if family in ("frozen", "reversed"):
        if not 0 < severity <= 1:
            raise ConfigError(f"{family} has severity {severity}, expected a share above 0 and at most 1")
    elif family == "missed_grasp":
        if not 0 < severity <= 100:
            raise ConfigError(f"{family} has severity {severity}, expected centimetres above 0 and at most 100")
    elif severity < 1 or severity != int(severity):
        raise ConfigError(f"{family} has severity {severity}, expected a whole number of steps, at least 1")


def _moves(spec: ActionSpec) -> list[int]:
    """Dimensions that move the hand: all but the gripper."""
    return [i for i in range(spec.dim) if spec.gripper is None or i != spec.gripper.index]


def _open(actions: NDArray[np.float32], spec: ActionSpec) -> NDArray[np.bool_] | None:
    """Whether the gripper is told to be open, `(T,)`; None without a gripper."""
    rule = spec.gripper
    if rule is None:
        return None
    return np.asarray(actions[:, rule.index] * np.sign(rule.open - rule.closed) > 0)


def _grasp(actions: NDArray[np.float32], spec: ActionSpec, end: int) -> tuple[int, int] | None:
    """Steps at which the gripper first closes and is next opened; None unless it does both before the success."""
    is_open = _open(actions[:end], spec)
    if is_open is None or not is_open[0]:
        return None
    closes = np.flatnonzero(~is_open)
    if not len(closes):
        return None
    opens = closes[0] + np.flatnonzero(is_open[closes[0] :])
    return (int(closes[0]), int(opens[0])) if len(opens) else (int(closes[0]), end)


def _missed(
    actions: NDArray[np.float32], spec: ActionSpec, severity: float, end: int, rng: np.random.Generator
) -> NDArray[np.float32] | None:
    lateral = [i for i in _moves(spec) if spec.units[i] in METRES][:2]
    if len(lateral) < 2:
        return None
    angle = rng.uniform(0, 2 * np.pi)
    grasp = _grasp(actions, spec, end)
    for i, direction in zip(lateral, (np.cos(angle), np.sin(angle)), strict=True):
        per_unit = (spec.high[i] - spec.low[i]) / 2 * METRES[spec.units[i]]
        left = direction * severity / 100 / per_unit
        for t in range(grasp[0] if grasp else end):  # as early as the bounds of the actions allow
            moved = np.clip(actions[t, i] + left, -1, 1)
            left -= moved - actions[t, i]
            actions[t, i] = moved
    return actions


def _released(
    actions: NDArray[np.float32], spec: ActionSpec, severity: float, end: int, rng: np.random.Generator
) -> NDArray[np.float32] | None:
    grasp = _grasp(actions, spec, end)
    if grasp is None or spec.gripper is None or grasp[1] >= end:
        return None
    begin = max(grasp[0] + 1, grasp[1] - int(severity))
    actions[begin : grasp[1], spec.gripper.index] = np.sign(spec.gripper.open - spec.gripper.closed)
    return actions


def _late(
    actions: NDArray[np.float32], spec: ActionSpec, severity: float, end: int, rng: np.random.Generator
) -> NDArray[np.float32] | None:
    grasp = _grasp(actions, spec, end)
    if grasp is None or spec.gripper is None:
        return None
    until = min(grasp[0] + int(severity), grasp[1])
    actions[grasp[0] : until, spec.gripper.index] = np.sign(spec.gripper.open - spec.gripper.closed)
    return actions


def _frozen(
    actions: NDArray[np.float32], spec: ActionSpec, severity: float, end: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    stop = max(1, end - int(np.ceil(severity * end)))
    actions[stop:] = actions[stop - 1]
    actions[stop:, _moves(spec)] = 0.0
    return actions


def _reversed(
    actions: NDArray[np.float32], spec: ActionSpec, severity: float, end: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    turn = max(1, end - int(np.ceil(severity * end)))
    back = actions[:turn][::-1].copy()
    back[:, _moves(spec)] *= -1
    still = back[-1:].copy()
    still[:, _moves(spec)] = 0.0
    rest = np.concatenate([back, np.repeat(still, len(actions), 0)])
    return np.concatenate([actions[:turn], rest])[: len(actions)]


_CHANGES = {
    "missed_grasp": _missed, "early_release": _released, "late_close": _late, "frozen": _frozen, "reversed": _reversed,
}  # fmt: skip
