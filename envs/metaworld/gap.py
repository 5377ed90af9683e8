"""The gap between Real and Soft in Meta-World, measured with its scripted experts; see `envs.gap`.

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

import numpy as np
from numpy.typing import NDArray

from envs import gap as gaps
from envs.gap import GAP_SEED0
from envs.metaworld.collect import expert_in
from envs.metaworld.physics import Physics
from envs.metaworld.specs import HORIZON
from envs.metaworld.tasks import DEFAULT_TASKS
from envs.metaworld.world import Turn, shared_world


class Expert:
    """Meta-World's expert of each task.

    Args:
        physics: dynamics.
    """

    def __init__(self, physics: Physics) -> None:
        self.physics = physics
        self.task, self.turn = "", Turn()

    def load(self, start: tuple[str, int]) -> None:
        """Begin the episode of a task and a seed."""
        self.task, seed = start
        self.turn = Turn(shared_world(self.task, self.physics))
        with self.turn.take(fresh=True) as world:
            world.start(seed)

    def act(self) -> NDArray[Any]:
        """The expert's action (4,)."""
        with self.turn.take() as world:
            return expert_in(world, self.task)

    def step(self, action: NDArray[Any]) -> None:
        """Advance 50 ms."""
        with self.turn.take() as world:
            world.step(np.asarray(action))

    def success(self) -> bool:
        """Whether the task is fulfilled."""
        with self.turn.take() as world:
            return world.success


def measure_gap(
    gap: float, *, tasks: Sequence[str] = DEFAULT_TASKS, episodes: int = 60, horizon: int = HORIZON
) -> dict[str, Any]:
    """Measure success rates of experts in Real and in Soft, and of the actions from Soft replayed in Real.

    Args:
        gap: misspecification of the dynamics of Soft, in [0, 1].
        tasks: names of the tasks.
        episodes: number of episodes per task.
        horizon: largest number of steps of an episode.

    Returns:
        see `envs.gap.compare`.
    """
    starts = {
        task: [(task, GAP_SEED0 + i * len(tasks) + k) for i in range(episodes)] for k, task in enumerate(tasks)
    }
    return gaps.compare(Expert(Physics()), Expert(Physics().softened(gap)), starts, gap=gap, horizon=horizon)


def freeze(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Content of `gap.json`; see `envs.gap.freeze`."""
    return gaps.freeze(rows, dataclasses.asdict(Physics().softened(1.0)))


def frozen() -> dict[str, Any]:
    """Read `gap.json`: the fixed `gap`, the measurements it is based on, and the physics at gap 1."""
    return dict(json.loads((resources.files("envs.metaworld") / "gap.json").read_text()))
