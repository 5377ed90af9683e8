"""The gap between Real and Soft on the tabletop, measured with its scripted experts; see `envs.gap`.

The frozen gap is in `gap.json` with the physics at gap 1, and a test checks that these agree with the code.

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

from numpy.typing import NDArray

from envs import gap as gaps
from envs.gap import GAP_SEED0
from envs.tabletop.experts import expert_action
from envs.tabletop.scene import Physics
from envs.tabletop.simulation import Simulation
from envs.tabletop.tasks import Scene, draw_scene

TASKS = ("reach", "push", "pick_place")


class Expert:
    """The scripted expert on a tabletop.

    Args:
        physics: dynamics.
    """

    def __init__(self, physics: Physics) -> None:
        self.simulation = Simulation(physics)

    def load(self, start: Scene) -> None:
        """Set the scene."""
        self.simulation.load(start)

    def act(self) -> NDArray[Any]:
        """The expert's action (4,)."""
        return expert_action(self.simulation.scene, self.simulation.privileged())

    def step(self, action: NDArray[Any]) -> None:
        """Advance 0.2 s."""
        self.simulation.step(action)

    def success(self) -> bool:
        """Whether the scene's task is fulfilled."""
        return self.simulation.truth()[0]


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
        see `envs.gap.compare`.
    """
    starts = {
        task: [draw_scene(GAP_SEED0 + i * len(tasks) + k, task) for i in range(episodes)]
        for k, task in enumerate(tasks)
    }
    soft = Expert(Physics().softened(gap, looks))
    return gaps.compare(Expert(Physics()), soft, starts, gap=gap, horizon=horizon)


def freeze(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Content of `gap.json`; see `envs.gap.freeze`."""
    return gaps.freeze(rows, dataclasses.asdict(Physics().softened(1.0)))


def frozen() -> dict[str, Any]:
    """Read `gap.json`: the fixed `gap`, the measurements it is based on, and the physics at gap 1."""
    return dict(json.loads((resources.files("envs.tabletop") / "gap.json").read_text()))
