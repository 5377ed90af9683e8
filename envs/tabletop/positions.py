"""True pixel positions of the hand and the objects, to measure the accuracy of a world model's predicted frames.

The position of a six-pixel object determines success but hardly affects the PSNR. Objects are identified by their
colour; each colour occurs at most once in a scene.

Example::

    env = WatchedTabletop(terminate_on_success=False)
    episode = rollout(env, "push", seed=3, behaviour="noisy", rng=np.random.default_rng(3))
    env.positions     # (T+1, 7, 2) pixels to the right and down, nan for colours that are not on the table
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.sizes import ImageSize, height_width
from envs.tabletop.env import TabletopEnv
from envs.tabletop.scene import COLOURS
from envs.tabletop.simulation import Simulation

PARTS = ("hand", *COLOURS)
FRONT = 0  # index of the front camera in the model


def pixel_positions(simulation: Simulation, size: ImageSize = 64) -> NDArray[np.float32]:
    """Pixel coordinates (right, down) `(len(PARTS), 2)` of finger tips and object centres; nan for absent colours."""
    truth, scene = simulation.privileged(), simulation.scene
    world = np.full((len(PARTS), 3), np.nan)
    world[0] = truth.hand
    for slot, (colour, pose) in enumerate(zip(scene.colours, scene.positions, strict=True)):
        if colour is not None and pose is not None:
            world[PARTS.index(colour)] = truth.objects[slot]
    axes = simulation.data.cam_xmat[FRONT].reshape(3, 3)  # columns: right, up, backwards
    in_camera = (world - simulation.data.cam_xpos[FRONT]) @ axes
    height, width = height_width(size)
    scale = height / 2 / np.tan(np.deg2rad(simulation.model.cam_fovy[FRONT]) / 2)
    right, up = scale * in_camera[:, 0] / -in_camera[:, 2], scale * in_camera[:, 1] / -in_camera[:, 2]
    return np.stack([width / 2 + right, height / 2 - up], 1).astype(np.float32)


class WatchedTabletop(TabletopEnv):
    """A tabletop environment that records pixel positions at reset and after each step; arguments of `TabletopEnv`."""

    def reset(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reset the environment and start a new record of positions."""
        result = super().reset(**kwargs)
        self._recorded = [self._measure()]
        return result

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Step the environment and record the positions."""
        result = super().step(action)
        self._recorded.append(self._measure())
        return result

    def _measure(self) -> NDArray[np.float32]:
        return pixel_positions(self.batch.simulation(), self.batch.image_size)

    @property
    def positions(self) -> NDArray[np.float32]:
        """Positions `(T+1, len(PARTS), 2)` of the episode so far."""
        return np.stack(self._recorded)
