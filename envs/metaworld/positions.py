"""True pixel positions of the hand and the object of a Meta-World task; see `envs.watched`.

Example::

    env = WatchedMetaWorld(terminate_on_success=False)
    episode = rollout(env, "drawer_open", seed=3, behaviour="noisy", rng=np.random.default_rng(3))
    env.positions     # (T+1, 9, 2) pixels to the right and down, nan for objects of other tasks
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.metaworld.vector import MetaWorldEnv
from envs.metaworld.world import AZIMUTH, DISTANCE, ELEVATION, LOOKAT, World
from envs.watched import RecordsPositions, project

OBJECTS = {
    "reach": "puck", "push": "puck", "pick_place": "puck", "drawer_open": "drawer", "drawer_close": "drawer",
    "button_press": "button", "button_press_topdown": "button", "door_open": "door", "window_open": "window",
    "window_close": "window", "faucet_open": "faucet", "faucet_close": "faucet", "plate_slide": "plate",
}  # fmt: skip
"""The object of each task, at its handle where it has one."""
PARTS = ("hand", "goal", *dict.fromkeys(OBJECTS.values()))


def pixel_positions(world: World, task: str, size: tuple[int, int]) -> NDArray[np.float32]:
    """Pixel coordinates (right, down) `(len(PARTS), 2)` in the front camera; nan for parts that are not in the image.

    The goal is a part where it is drawn.
    """
    points = np.full((len(PARTS), 3), np.nan)
    points[0] = world.env.tcp_center
    if world.task.marker:
        points[1] = world.env._target_pos
    points[PARTS.index(OBJECTS[task])] = world.observation[4:7]
    turn, rise = np.deg2rad(AZIMUTH + world.physics.azimuth), np.deg2rad(ELEVATION)
    forward = np.array([np.cos(rise) * np.cos(turn), np.cos(rise) * np.sin(turn), np.sin(rise)])
    right = np.cross(forward, (0, 0, 1))
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(right, forward), -forward], 1)
    place = np.array(LOOKAT) - DISTANCE * forward
    found = project(points, place, axes, float(world.model.vis.global_.fovy), size)
    outside = ~((found >= 0) & (found < size[::-1])).all(1)
    found[outside] = np.nan
    return found


class WatchedMetaWorld(RecordsPositions, MetaWorldEnv):
    """An environment that records pixel positions at reset and after each step; arguments of `MetaWorldEnv`."""

    def measure(self) -> NDArray[np.float32]:
        """See `pixel_positions`."""
        batch = self.batch
        with batch.turn().take() as world:
            return pixel_positions(world, batch.status_slot(0).task, batch.front_size)
