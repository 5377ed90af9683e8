"""True pixel positions of the hand and the objects on the tabletop; see `envs.watched`.

Objects are identified by their colour; each colour occurs at most once in a scene.

Example::

    env = WatchedTabletop(terminate_on_success=False)
    episode = rollout(env, "push", seed=3, behaviour="noisy", rng=np.random.default_rng(3))
    env.positions     # (T+1, 7, 2) pixels to the right and down, nan for colours that are not on the table
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.sizes import ImageSize, height_width
from envs.tabletop.env import TabletopEnv
from envs.tabletop.scene import COLOURS
from envs.tabletop.simulation import Simulation
from envs.watched import RecordsPositions, project

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
    data = simulation.data
    axes = data.cam_xmat[FRONT].reshape(3, 3)  # columns: right, up, backwards
    fovy = float(simulation.model.cam_fovy[FRONT])
    return project(world, data.cam_xpos[FRONT], axes, fovy, height_width(size))


class WatchedTabletop(RecordsPositions, TabletopEnv):
    """A tabletop environment that records pixel positions at reset and after each step; arguments of `TabletopEnv`."""

    def measure(self) -> NDArray[np.float32]:
        """See `pixel_positions`."""
        return pixel_positions(self.batch.simulation(), self.batch.image_size)
