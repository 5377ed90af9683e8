"""Where the hand and the objects are in the picture, in pixels: truth for measuring what a world model drew.

Why: the position of a six-pixel object decides success and hardly moves a PSNR. Objects are named by their colour, of
which a scene has one each.

Example::

    env = WatchedTabletop(terminate_on_success=False)
    episode = rollout(env, "push", seed=3, behaviour="noisy", rng=np.random.default_rng(3))
    env.positions     # (T+1, 7, 2) pixels right and down, nan where a colour is not on the table
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.tabletop.env import TabletopEnv
from envs.tabletop.scene import COLOURS
from envs.tabletop.simulation import Simulation
from envs.tabletop.specs import ImageSize, height_width

PARTS = ("hand", *COLOURS)
FRONT = 0  # number of the front camera in the model


def pixel_positions(simulation: Simulation, size: ImageSize = 64) -> NDArray[np.float32]:
    """Pixels right and down `(len(PARTS), 2)` of the finger tips and the objects' centres; nan for absent colours."""
    truth, scene = simulation.privileged(), simulation.scene
    world = np.full((len(PARTS), 3), np.nan)
    world[0] = truth.hand
    for slot, (colour, place) in enumerate(zip(scene.colours, scene.positions, strict=True)):
        if colour is not None and place is not None:
            world[PARTS.index(colour)] = truth.objects[slot]
    axes = simulation.data.cam_xmat[FRONT].reshape(3, 3)  # columns: right, up, backwards
    eye = (world - simulation.data.cam_xpos[FRONT]) @ axes
    height, width = height_width(size)
    scale = height / 2 / np.tan(np.deg2rad(simulation.model.cam_fovy[FRONT]) / 2)
    right, up = scale * eye[:, 0] / -eye[:, 2], scale * eye[:, 1] / -eye[:, 2]
    return np.stack([width / 2 + right, height / 2 - up], 1).astype(np.float32)


class WatchedTabletop(TabletopEnv):
    """A tabletop that notes where everything is at reset and after each step; arguments as `TabletopEnv`'s."""

    def reset(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """As ever; forgets the last episode."""
        result = super().reset(**kwargs)
        self._noted = [self._look()]
        return result

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """As ever."""
        result = super().step(action)
        self._noted.append(self._look())
        return result

    def _look(self) -> NDArray[np.float32]:
        return pixel_positions(self.batch.simulation(), self.batch.image_size)

    @property
    def positions(self) -> NDArray[np.float32]:
        """`(T+1, len(PARTS), 2)` of the episode so far."""
        return np.stack(self._noted)
