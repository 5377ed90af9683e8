"""Specs of Meta-World: cameras, proprioception, actions, and the bounds of the state. This module needs no simulator.

Example::

    from envs.metaworld.specs import metaworld_specs
    metaworld_specs(("front", "wrist"), 96).observation.camera_keys    # {"front": "image", "wrist": "image_wrist"}
"""

from __future__ import annotations

from collections.abc import Sequence

from envs.sizes import ImageSize, front_and_wrist
from worldgym.specs import ActionSpec, GripperRule, ObservationSpec, Specs, StateField

CAMERAS = {"front": (64, 64), "wrist": (48, 64)}
"""Default (height, width) of each camera; `front` is fixed, `wrist` moves with the hand."""
HORIZON, CHUNK, REPEAT = 40, 5, 4
STEP = 0.01
"""Largest displacement of the hand's target in one step of Meta-World, metres; an action is held for `REPEAT` steps."""

ACTION_SPEC = ActionSpec(
    names=("dx", "dy", "dz", "gripper"),
    units=("m", "m", "m", "close=+1/open=-1"),
    hz=80.0 / REPEAT,
    low=(*(-STEP * REPEAT,) * 3, -1.0),
    high=(*(STEP * REPEAT,) * 3, 1.0),
    gripper=GripperRule(index=3, open=-1.0, closed=1.0),
)
STATE = (
    StateField("x", "ee_position", "m"),
    StateField("y", "ee_position", "m"),
    StateField("z", "ee_position", "m"),
    StateField("opening", "gripper", "m"),
)
"""Proprioception: position of the hand, and distance between the fingers."""
STATE_LOW, STATE_HIGH = (-0.6, 0.3, -0.1, -0.01), (0.6, 1.1, 0.8, 0.13)
"""Bounds of the state, metres: Meta-World's hand space, with a margin."""


def metaworld_specs(
    cameras: Sequence[str] = ("front",),
    image_size: ImageSize = CAMERAS["front"],
    wrist_size: ImageSize = CAMERAS["wrist"],
) -> Specs:
    """Specs with the given cameras.

    Args:
        cameras: names from `CAMERAS`; the first one is the main camera.
        image_size: size of the front camera, pixels.
        wrist_size: size of the wrist camera, pixels.

    Raises:
        ConfigError: no camera, an unknown camera, or a size out of range.
    """
    return Specs(ObservationSpec(front_and_wrist(cameras, image_size, wrist_size), STATE), ACTION_SPEC)
