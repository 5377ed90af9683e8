"""Measures the gap between Real and Soft with scripted experts, and fixes the gap that comparisons use.

A gap chosen after policies were compared could be chosen in favour of either side. Therefore the gap is fixed by its
effect on scripted experts, on start states that are used for nothing else. It is written to `gap.json` together with
the physics at gap 1, and a test checks that these agree with the code.

An expert acts on the current state, so it adapts to the domain it is in. Its actions replayed in the other domain do
not adapt at all. A policy that observes the state every few steps lies between the two.

Example::

    rows = [measure_gap(g) for g in (0.25, 0.5, 0.75, 1.0)]
    freeze(rows)["gap"]
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np

from envs.tabletop.experts import expert_action
from envs.tabletop.scene import Physics
from envs.tabletop.simulation import Simulation
from envs.tabletop.tasks import Scene, draw_scene

GAP_SEED0 = 16_000_000
"""First seed of the start states, which are used only for this measurement."""
WANTED_REPLAY = 0.42
"""Wanted success rate of the experts' action sequences when replayed in the other domain: halfway between a small gap
(0.67), which every policy overcomes, and a large one (0.17), which only feedback control overcomes."""
ENOUGH = 0.9
"""Smallest success rate of experts in each task and domain."""
TASKS = ("reach", "push", "pick_place")


def measure_gap(
    gap: float,
    *,
    looks: float | None = None,
    tasks: Sequence[str] = TASKS,
    episodes: int = 60,
    horizon: int = 40,
) -> dict[str, Any]:
    """Measure success rates of experts in Real and in Soft, and of the actions from Soft replayed in Real.

    Args:
        gap: misspecification of the dynamics of Soft, in [0, 1].
        looks: misspecification of the appearance of Soft; experts act on the state, so it does not affect them.
        tasks: names of the tasks.
        episodes: number of episodes per task.
        horizon: largest number of steps of an episode.

    Returns:
        gap, the success rates `real`, `soft` and `replay` of every task, and the number of episodes.
    """
    real, soft = Simulation(Physics()), Simulation(Physics().softened(gap, looks))
    rows: dict[str, dict[str, float]] = {}
    for k, task in enumerate(tasks):
        successes = np.zeros(3)
        for i in range(episodes):
            scene = draw_scene(GAP_SEED0 + i * len(tasks) + k, task)
            soft_success, actions = _act(soft, scene, horizon)
            successes += (_act(real, scene, horizon)[0], soft_success, _replay(real, scene, actions, horizon))
        rows[task] = dict(zip(("real", "soft", "replay"), (successes / episodes).round(4).tolist(), strict=True))
    return {"gap": gap, "tasks": rows, "episodes": episodes}


def _act(simulation: Simulation, scene: Scene, horizon: int) -> tuple[bool, list[np.ndarray]]:
    simulation.load(scene)
    actions = []
    for _ in range(horizon):
        actions.append(expert_action(scene, simulation.privileged()))
        simulation.step(actions[-1])
        if simulation.truth()[0]:
            return True, actions
    return False, actions


def _replay(simulation: Simulation, scene: Scene, actions: list[np.ndarray], horizon: int) -> bool:
    """Whether the actions succeed; after the last action the hand stands still with the gripper unchanged."""
    simulation.load(scene)
    rest = np.array([0, 0, 0, actions[-1][-1]], np.float32)
    for t in range(horizon):
        simulation.step(actions[t] if t < len(actions) else rest)
        if simulation.truth()[0]:
            return True
    return False


def freeze(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Choose the gap whose replay success rate is closest to `WANTED_REPLAY`, among gaps that experts solve.

    Args:
        rows: results of `measure_gap`.

    Returns:
        the content of `gap.json`: the gap, the wanted replay rate, the measurements and the physics at gap 1.

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
    physics = {
        k: list(v) if isinstance(v, tuple) else v
        for k, v in dataclasses.asdict(Physics().softened(1.0)).items()
    }
    return {
        "gap": best["gap"],
        "wanted_replay": WANTED_REPLAY,
        "measured": list(rows),
        "physics_at_gap_1": physics,
    }


def frozen() -> dict[str, Any]:
    """Read `gap.json`: the fixed `gap`, the measurements it is based on, and the physics at gap 1."""
    return dict(json.loads((resources.files("envs.tabletop") / "gap.json").read_text()))
