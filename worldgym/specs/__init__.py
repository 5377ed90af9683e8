"""Specs of the observations and actions of a robot: `ObservationSpec` and `ActionSpec`.

The specs give the meaning of each number of an action and of a state vector. They are stored with every dataset, world
model, policy, judge and bundle, in `config.json` or `info.json`, so that two incompatible components raise an error
instead of computing wrong results. A component finds the gripper opening by the role `gripper` in the spec; if no
field has this role, the component omits the features that depend on it.

Example::

    spec = ObservationSpec(
        cameras=(Camera("front", 96, 128), Camera("wrist", 64, 64, static=False)),
        state=(StateField("x", "ee_position", "m"), StateField("q", "joint", "rad")),
    )
    spec.columns("ee_position")     # (0,)
    spec.columns("gripper")         # (): no such field
    spec.camera_keys                # {"front": "image", "wrist": "image_wrist"}
"""

from worldgym.specs.action import ActionSpec, GripperRule
from worldgym.specs.observation import (
    ALPHABET,
    MAX_INSTRUCTION,
    ROLES,
    Camera,
    ObservationSpec,
    Specs,
    StateField,
    check_actions_of,
    check_fit,
    check_observations,
    specs_of,
    state_fields,
)

__all__ = [
    "ALPHABET",
    "MAX_INSTRUCTION",
    "ROLES",
    "ActionSpec",
    "Camera",
    "GripperRule",
    "ObservationSpec",
    "Specs",
    "StateField",
    "check_actions_of",
    "check_fit",
    "check_observations",
    "specs_of",
    "state_fields",
]
