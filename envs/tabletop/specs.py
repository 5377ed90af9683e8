"""Specs of the tabletop: cameras, proprioception, actions, and the bounds of the state.

This module does not import MuJoCo, so that imagined environments can use it without a simulator.

Example::

    from envs.tabletop.specs import tabletop_specs
    tabletop_specs(("front", "wrist")).observation.camera_keys     # {"front": "image", "wrist": "image_wrist"}
"""

from __future__ import annotations

from collections.abc import Sequence

from envs.sizes import ImageSize, front_and_wrist
from worldgym.specs import ActionSpec, GripperRule, ObservationSpec, Specs, StateField

CAMERAS = {"front": (64, 64), "wrist": (48, 64)}
"""Default (height, width) of each camera; `front` is fixed, `wrist` moves with the hand."""
HORIZON, CHUNK = 40, 5

TABLETOP_ACTION_SPEC = ActionSpec(
    names=("dx", "dy", "dz", "gripper"),
    units=("m", "m", "m", "open=+1/close=-1"),
    hz=5.0,
    low=(-0.06, -0.06, -0.06, -1.0),
    high=(0.06, 0.06, 0.06, 1.0),
    gripper=GripperRule(index=3, open=1.0, closed=-1.0),
)
STATE = (
    StateField("x", "ee_position", "m"),
    StateField("y", "ee_position", "m"),
    StateField("z", "ee_position", "m"),
    StateField("opening", "gripper", "m"),
)
"""Proprioception: position of the point between the finger tips, and opening of the fingers."""
STATE_LOW, STATE_HIGH = (-0.3, -0.3, -0.05, -0.01), (0.3, 0.3, 0.3, 0.15)
"""Bounds of the state, metres: the workspace and the finger travel, with a margin of at least 2 cm."""


def tabletop_specs(
    cameras: Sequence[str] = ("front",),
    image_size: ImageSize = CAMERAS["front"],
    wrist_size: ImageSize = CAMERAS["wrist"],
) -> Specs:
    """Specs of a tabletop with the given cameras.

    Args:
        cameras: names from `CAMERAS`; the first one is the main camera.
        image_size: size of the front camera, pixels.
        wrist_size: size of the wrist camera, pixels.

    Raises:
        ConfigError: no camera, an unknown camera, or a size out of range.
    """
    return Specs(ObservationSpec(front_and_wrist(cameras, image_size, wrist_size), STATE), TABLETOP_ACTION_SPEC)
