"""Measures the gap between two domains of a suite with scripted experts, and fixes the gap that comparisons use.

A gap chosen after policies were compared could be chosen in favour of either side. Therefore a suite's gap is fixed by
its effect on scripted experts, on start states that are used for nothing else, and stored with the measurements.

An expert acts on the current state, so it adapts to the domain it is in. Its actions replayed in the other domain do
not adapt at all. A policy that observes the state every few steps lies between the two.

Example::

    rows = [compare(real, soft_at(gap), starts, gap=gap, horizon=40) for gap in (0.25, 0.5, 0.75, 1.0)]
    freeze(rows, physics_at_gap_1)["gap"]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from worldgym.errors import ConfigError

GAP_SEED0 = 16_000_000
"""First seed of the start states, which are used only for this measurement."""
WANTED_REPLAY = 0.42
"""Wanted success rate of the experts' action sequences when replayed in the other domain: halfway between a small gap
(0.67), which every policy overcomes, and a large one (0.17), which only feedback control overcomes."""
ENOUGH = 0.9
"""Smallest success rate of experts in each task and domain."""
Start = TypeVar("Start", contravariant=True)


def within(name: str, value: Any) -> float:
    """A setting of a domain gap, which lies in [0, 1].

    Args:
        name: name of the setting.
        value: its value.

    Raises:
        ConfigError: it is no number, or outside [0, 1].
    """
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1:
        raise ConfigError(f"{name} must be a number in [0, 1], got {value!r}; 0 is identical to the real domain")
    return float(value)


class ExpertIn(Protocol[Start]):
    """A domain with a scripted expert."""

    def load(self, start: Start) -> None:
        """Set the start state."""
        ...

    def act(self) -> NDArray[Any]:
        """Action `(A,)` of the expert in the current state."""
        ...

    def step(self, action: NDArray[Any]) -> None:
        """Advance one step."""
        ...

    def success(self) -> bool:
        """Whether the task is fulfilled in the current state."""
        ...


def compare(
    real: ExpertIn[Any], soft: ExpertIn[Any], starts: Mapping[str, Sequence[Any]], *, gap: float, horizon: int,
    rest: Sequence[int] = (0, 1, 2),
) -> dict[str, Any]:  # fmt: skip
    """Measure success rates of experts in Real and in Soft, and of the actions from Soft replayed in Real.

    Args:
        real: the domain that stands in for the robot.
        soft: the software simulator.
        starts: start states by task.
        gap: recorded with the result.
        horizon: largest number of steps of an episode.
        rest: dimensions of the action that are zero after the last replayed action; the others keep their value.

    Returns:
        gap, the success rates `real`, `soft` and `replay` of every task, and the number of episodes per task.
    """
    rows: dict[str, dict[str, float]] = {}
    for task, chosen in starts.items():
        successes = np.zeros(3)
        for start in chosen:
            soft_success, actions = _expert(soft, start, horizon)
            replayed = _replay(real, start, actions, horizon, rest)
            successes += (_expert(real, start, horizon)[0], soft_success, replayed)
        rates = (successes / len(chosen)).round(4).tolist()
        rows[task] = dict(zip(("real", "soft", "replay"), rates, strict=True))
    return {"gap": gap, "tasks": rows, "episodes": len(next(iter(starts.values())))}


def _expert(domain: ExpertIn[Any], start: Any, horizon: int) -> tuple[bool, list[NDArray[Any]]]:
    domain.load(start)
    actions = []
    for _ in range(horizon):
        actions.append(domain.act())
        domain.step(actions[-1])
        if domain.success():
            return True, actions
    return False, actions


def _replay(
    domain: ExpertIn[Any], start: Any, actions: list[NDArray[Any]], horizon: int, rest: Sequence[int]
) -> bool:
    """Whether the actions succeed; after the last action the hand stands still with the gripper unchanged."""
    domain.load(start)
    still = np.array(actions[-1], np.float32)
    still[list(rest)] = 0
    for t in range(horizon):
        domain.step(actions[t] if t < len(actions) else still)
        if domain.success():
            return True
    return False


def freeze(rows: Sequence[dict[str, Any]], physics: Mapping[str, Any]) -> dict[str, Any]:
    """Choose the gap whose replay success rate is closest to `WANTED_REPLAY`, among gaps that experts solve.

    Args:
        rows: results of `compare`.
        physics: physics at gap 1, stored with the result.

    Returns:
        content of a suite's `gap.json`: the gap, the wanted replay rate, the measurements and the physics at gap 1.

    Raises:
        ValueError: there is no gap at which experts solve every task in both domains.
    """
    solved = [r for r in rows if min(min(t["real"], t["soft"]) for t in r["tasks"].values()) >= ENOUGH]
    if not solved:
        raise ValueError(
            f"at no gap do experts succeed in {ENOUGH:.0%} of the episodes of every task; measure smaller gaps, or "
            "reduce the changes in Physics.softened"
        )
    mean = lambda r: float(np.mean([t["replay"] for t in r["tasks"].values()]))  # noqa: E731
    best = min(solved, key=lambda r: abs(mean(r) - WANTED_REPLAY))
    return {
        "gap": best["gap"],
        "wanted_replay": WANTED_REPLAY,
        "measured": list(rows),
        "physics_at_gap_1": {k: list(v) if isinstance(v, tuple) else v for k, v in physics.items()},
    }
