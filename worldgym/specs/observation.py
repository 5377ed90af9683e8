"""`ObservationSpec`: cameras and their sizes, proprioception fields and their roles, alphabet of instructions.

Example::

    state = state_fields(["x", "y", "z"], dict.fromkeys("xyz", "ee_position"))
    spec = ObservationSpec((Camera("front", 96, 128),), state)
    spec.columns("ee_position")     # (0, 1, 2)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from worldgym.errors import ConfigError
from worldgym.specs.action import ActionSpec

ROLES = (
    "ee_position", "ee_rotation", "gripper", "joint", "joint_velocity", "base", "force", "other",
)  # fmt: skip
"""Roles of state fields: end-effector position (x, y, z in this order) and rotation, gripper opening (larger is wider
open), joint position or velocity, pose of the base, force or torque, or any other quantity."""
ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,'-?!"
MAX_INSTRUCTION = 128
CAMERA_NAME = re.compile(r"[A-Za-z0-9_]+")
"""Names of cameras; they are part of column names, file paths and observation keys."""


@dataclass(frozen=True)
class Camera:
    """One camera of a robot.

    Args:
        name: letters, digits and underscores, e.g. `front` or `wrist`.
        height: pixels.
        width: pixels.
        static: the camera does not move, so its background is the same in every frame.

    Raises:
        ConfigError: invalid name or size.
    """

    name: str
    height: int
    width: int
    static: bool = True

    def __post_init__(self) -> None:
        if not CAMERA_NAME.fullmatch(self.name):
            raise ConfigError(
                f"camera name {self.name!r}; expected letters, digits and underscores, e.g. 'wrist'"
            )
        if self.height < 1 or self.width < 1:
            raise ConfigError(
                f"camera {self.name}: {self.height} x {self.width} pixels; expected at least 1 x 1"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return self.height, self.width

    def __str__(self) -> str:
        return f"{self.name} {self.height}x{self.width}"


@dataclass(frozen=True)
class StateField:
    """One dimension of proprioception.

    Args:
        name: unique within the spec, e.g. `x` or `joint_3`.
        role: one of `ROLES`.
        unit: e.g. `m`, `rad`; empty if unknown.

    Raises:
        ConfigError: no name, or an unknown role.
    """

    name: str
    role: str = "other"
    unit: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("a state field has no name; give one, e.g. StateField('x', 'ee_position', 'm')")
        if self.role not in ROLES:
            raise ConfigError(
                f"state field {self.name!r}: unknown role {self.role!r}; the roles are {', '.join(ROLES)}"
            )

    def __str__(self) -> str:
        unit = f" [{self.unit}]" if self.unit else ""
        return (f"{self.name}:{self.role}" if self.role != "other" else self.name) + unit


@dataclass(frozen=True)
class ObservationSpec:
    """Observations that a policy gets, a world model predicts and a dataset stores: images, proprioception, text.

    Args:
        cameras: the first one is the main camera, with frames under the key `image`; the others have the keys
            `image_<name>`. May be empty for models of proprioception only.
        state: one field for each of the S dimensions of proprioception, in order.
        alphabet: characters that instructions may contain.
        max_instruction: maximum length of an instruction, characters.

    Raises:
        ConfigError: a name occurs twice, the alphabet is empty, or `max_instruction` is below 1.
    """

    cameras: tuple[Camera, ...] = (Camera("front", 64, 64),)
    state: tuple[StateField, ...] = ()
    alphabet: str = ALPHABET
    max_instruction: int = MAX_INSTRUCTION

    def __post_init__(self) -> None:
        object.__setattr__(self, "cameras", tuple(self.cameras))
        object.__setattr__(self, "state", tuple(self.state))
        for kind, items in (("camera", self.cameras), ("state field", self.state)):
            names = [item.name for item in items]
            if len(set(names)) != len(names):
                raise ConfigError(f"a {kind} name occurs twice in {names}; give every {kind} its own name")
        if not self.alphabet or self.max_instruction < 1:
            raise ConfigError("the alphabet of instructions is empty, or max_instruction is below 1")

    # -- reading ---------------------------------------------------------------------------------------------------
    @property
    def state_dim(self) -> int:
        """Dimension of proprioception, S."""
        return len(self.state)

    @property
    def main(self) -> Camera:
        """The main camera, which is the first one.

        Raises:
            ConfigError: the spec has no camera.
        """
        if not self.cameras:
            raise ConfigError("this spec has no camera; a model that reads images needs at least one")
        return self.cameras[0]

    @property
    def views(self) -> tuple[Camera, ...]:
        """All cameras except the main one."""
        return self.cameras[1:]

    @property
    def camera_keys(self) -> dict[str, str]:
        """Observation key of the frames of each camera, by camera name."""
        return {
            camera.name: "image" if i == 0 else f"image_{camera.name}"
            for i, camera in enumerate(self.cameras)
        }

    def columns(self, role: str) -> tuple[int, ...]:
        """Columns of the state with this role, in order; empty if no field has it.

        Raises:
            ConfigError: `role` is not in `ROLES`.
        """
        if role not in ROLES:
            raise ConfigError(f"unknown role {role!r}; the roles are {', '.join(ROLES)}")
        return tuple(i for i, item in enumerate(self.state) if item.role == role)

    @property
    def has_hand(self) -> bool:
        """Whether the state holds the position (x, y, z) and the gripper opening of exactly one end effector."""
        return len(self.columns("ee_position")) == 3 and len(self.columns("gripper")) == 1

    def select(self, cameras: Sequence[str]) -> ObservationSpec:
        """Copy of this spec with the named cameras only, in the given order.

        Raises:
            ConfigError: the spec has no camera of that name.
        """
        known = {camera.name: camera for camera in self.cameras}
        missing = [name for name in cameras if name not in known]
        if missing:
            raise ConfigError(f"no camera {', '.join(missing)}; there are {', '.join(known) or 'none'}")
        return ObservationSpec(
            tuple(known[name] for name in cameras), self.state, self.alphabet, self.max_instruction
        )

    def __str__(self) -> str:
        cameras = ", ".join(map(str, self.cameras)) or "no camera"
        state = ", ".join(map(str, self.state)) or "no state"
        return f"cameras [{cameras}]; state [{state}]"

    # -- disk ------------------------------------------------------------------------------------------------------
    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, data: Any) -> ObservationSpec:
        """Rebuild from `to_dict`.

        Raises:
            ConfigError: unknown or missing fields, or values of another type.
        """
        from worldgym.utils.typed import from_values

        return from_values(cls, data, "observation_spec")


def state_fields(
    names: Sequence[str], roles: Mapping[str, str] | None = None, unit: str = ""
) -> tuple[StateField, ...]:
    """One state field per name, with its role from `roles` or else `other`."""
    return tuple(StateField(str(name), (roles or {}).get(name, "other"), unit) for name in names)


def check_observations(given: ObservationSpec, wanted: ObservationSpec, giver: str, reader: str) -> None:
    """Check that observations of spec `given` have the cameras, image sizes and state that spec `wanted` requires.

    Args:
        given: spec of the available observations; additional cameras are allowed.
        wanted: spec that the reader requires.
        giver: description of the source for the message, e.g. "the dataset data/real".
        reader: description of the reader for the message, e.g. "the policy runs/policy".

    Raises:
        ConfigError: the specs are incompatible; the message shows both and what to type.
    """
    sizes = {camera.name: camera.size for camera in given.cameras}
    remedies = []
    if len(given.cameras) == len(wanted.cameras) == 1:  # names are ignored if each spec has a single camera
        sizes = {wanted.main.name: given.main.size}
    missing = [camera for camera in wanted.cameras if camera.name not in sizes]
    resized = [camera for camera in wanted.cameras if sizes.get(camera.name, camera.size) != camera.size]
    if missing:
        remedies.append(f"record the camera {missing[0].name}, or train {reader} without it")
    if resized:
        h, w = resized[0].size
        size = f"{h}" if h == w else f"{h}x{w}"
        remedies.append(f"type `worldgym import --source DATA --out NEW --image-size {size}` and use NEW")
    if wanted.state_dim and not _same_state(given, wanted):
        remedies.append(
            f"train {reader} on this data, or import the data with the state fields that it needs "
            "(`worldgym import --state-key ...`)"
        )
    if remedies:
        raise ConfigError(
            f"{giver} and {reader} do not fit.\n  {giver} has {given}\n  {reader} needs {wanted}\n"
            + "; ".join(remedies)
        )


def _same_state(given: ObservationSpec, wanted: ObservationSpec) -> bool:
    """Whether both states have the same fields in the same order.

    The role `other`, an empty unit and a name made by number (`state_3`) are unknown, and match everything.
    """
    return given.state_dim == wanted.state_dim and all(
        ("other" in (a.role, b.role) or a.role == b.role)
        and (not a.unit or not b.unit or a.unit == b.unit)
        and (a.name == b.name or any(re.fullmatch(r"state_\d+", item.name) for item in (a, b)))
        for a, b in zip(given.state, wanted.state, strict=False)
    )


def check_actions_of(given: ActionSpec, wanted: ActionSpec, giver: str, reader: str) -> None:
    """Check that two action specs are equal in names, units, rate, bounds and gripper convention.

    Raises:
        ConfigError: the specs differ; the message shows both and what to type.
    """
    if given == wanted:
        return
    raise ConfigError(
        f"{giver} and {reader} have different action specs.\n  {giver} has {given.to_json()}\n  {reader} has "
        f"{wanted.to_json()}\nConvert the data with ActionSpec.convert (or `worldgym import --source DATA --out NEW` "
        f"with the same bounds), or train {reader} on this data"
    )


@dataclass(frozen=True)
class Specs:
    """Observation spec and action spec of a component, stored under `specs` in its `config.json`.

    Args:
        observation: observations that the component reads or produces.
        action: actions that it outputs or is conditioned on; None for a component without actions, e.g. a judge.

    Raises:
        ConfigError: a value has another type.
    """

    observation: ObservationSpec
    action: ActionSpec | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.observation, ObservationSpec):
            raise ConfigError(f"specs: observation is {self.observation!r}, expected an ObservationSpec")
        if not (self.action is None or isinstance(self.action, ActionSpec)):
            raise ConfigError(
                f"specs: action is {self.action!r}, expected an ActionSpec, or None without actions"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        action = None if self.action is None else self.action.to_dict()
        return {"observation": self.observation.to_dict(), "action": action}

    @classmethod
    def from_dict(cls, data: Any) -> Specs:
        """Rebuild from `to_dict`.

        Raises:
            ConfigError: `data` does not have the format of `to_dict`.
        """
        if (
            not isinstance(data, Mapping)
            or set(data) - {"observation", "action"}
            or "observation" not in data
        ):
            raise ConfigError(f"specs: got {data!r}, expected an object with observation and action")
        action = data.get("action")
        return cls(
            ObservationSpec.from_dict(data["observation"]),
            None if action is None else ActionSpec.from_dict(action),
        )

    def check(self, reader: Specs | None, giver: str, name: str) -> None:
        """Check that a component with the specs `reader` can read data with these specs.

        `reader` is None for a component saved by an earlier version, without specs; it passes the check.

        Raises:
            ConfigError: the specs are incompatible.
        """
        if reader is None:
            return
        check_observations(self.observation, reader.observation, giver, name)
        if self.action is not None and reader.action is not None:
            check_actions_of(self.action, reader.action, giver, name)


def check_fit(source: Any, part: Any, giver: str, reader: str) -> None:
    """Check that `part` can read what `source` gives; components without specs pass.

    Args:
        source: world model or environment whose observations are read; has `specs`.
        part: policy or judge; its `specs` may be None (saved by an earlier version) or missing.
        giver: description of the source for the message.
        reader: description of the component for the message. Actions are compared if it has a method `act`.

    Raises:
        ConfigError: the specs are incompatible; the message shows both and what to type.
    """
    given, wanted = getattr(source, "specs", None), getattr(part, "specs", None)
    if isinstance(given, Specs) and isinstance(wanted, Specs):
        given.check(wanted if hasattr(part, "act") else Specs(wanted.observation), giver, reader)


def specs_of(part: Any) -> Specs:
    """The specs of a world model, policy or judge: its `specs`, or else specs made from its sizes.

    Args:
        part: has an attribute `specs`, or `image_size` (one number, or height and width) and `state_dim`.
    """
    specs = getattr(part, "specs", None)
    if isinstance(specs, Specs):
        return specs
    size = getattr(part, "image_size", 0)
    height, width = (size, size) if isinstance(size, int) else size
    cameras = (Camera("front", int(height), int(width)),) if height else ()
    names = [f"state_{i}" for i in range(getattr(part, "state_dim", 0))]
    return Specs(ObservationSpec(cameras, state_fields(names)))
