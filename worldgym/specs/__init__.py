"""What the numbers mean that a robot sends and receives: `ActionSpec` and `ObservationSpec`.

An action in [-1, 1] says nothing by itself, and neither does column 2 of a state vector. Both specs travel with every
dataset, world model, policy, judge and bundle, in their `config.json` or `info.json`, so that two parts that do not fit
say so instead of computing nonsense. A part that needs to know where the gripper is asks the spec for the role
`gripper`; where no field has that role, the part leaves that feature out.

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
    "check_observations",
    "specs_of",
    "state_fields",
]
