"""How wrong the software simulator is, measured by experts, and the gap at which comparisons are decided.

Why: a gap that is chosen after policies were compared can be chosen so that either side wins. So it is fixed by what it
does to scripted experts, on starts that nothing else uses, and written to `gap.json` beside the physics it stands for;
a test keeps both from drifting apart.

An expert acts on the state, so it adapts to whatever domain it is in; its actions replayed in the other domain do not
adapt at all. A policy that looks every few steps lies between the two.

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
"""Starts of this measurement and of nothing else."""
WANTED_REPLAY = 0.42
"""Share of experts' action sequences that still succeed when replayed in the other domain: halfway between a mild gap
(0.67), which every policy crosses, and one (0.17) that only feedback crosses."""
ENOUGH = 0.9
TASKS = ("reach", "push", "pick_place")


def measure_gap(
    gap: float,
    *,
    looks: float | None = None,
    tasks: Sequence[str] = TASKS,
    episodes: int = 60,
    horizon: int = 40,
) -> dict[str, Any]:
    """Experts in Real, in Soft, and Soft's actions replayed in Real.

    Args:
        gap: of Soft.
        looks: of its looks; experts see the state, so it makes no difference to them.
        tasks: verbs.
        episodes: of each.
        horizon: steps.

    Returns:
        gap, and of every task the success rates `real`, `soft` and `replay`.
    """
    real, soft = Simulation(Physics()), Simulation(Physics().softened(gap, looks))
    rows: dict[str, dict[str, float]] = {}
    for k, task in enumerate(tasks):
        won = np.zeros(3)
        for i in range(episodes):
            scene = draw_scene(GAP_SEED0 + i * len(tasks) + k, task)
            there, actions = _act(soft, scene, horizon)
            won += (_act(real, scene, horizon)[0], there, _replay(real, scene, actions, horizon))
        rows[task] = dict(zip(("real", "soft", "replay"), (won / episodes).round(4).tolist(), strict=True))
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
    """Whether the actions succeed, standing still (gripper as it was) when they are over."""
    simulation.load(scene)
    rest = np.array([0, 0, 0, actions[-1][-1]], np.float32)
    for t in range(horizon):
        simulation.step(actions[t] if t < len(actions) else rest)
        if simulation.truth()[0]:
            return True
    return False


def freeze(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The gap whose replays succeed most nearly as often as wanted, of those that experts solve in both domains.

    Raises:
        ValueError: experts fail at all of them.
    """
    solved = [r for r in rows if min(min(t["real"], t["soft"]) for t in r["tasks"].values()) >= ENOUGH]
    if not solved:
        raise ValueError(
            f"at no gap do experts succeed in {ENOUGH:.0%} of every task; soften Physics.softened"
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
    """What was fixed: `gap`, the measurements behind it, and the physics at gap 1."""
    return dict(json.loads((resources.files("envs.tabletop") / "gap.json").read_text()))
