"""`ActionSpec`: names, units, rate and bounds of the action dimensions, and the gripper convention.

Example::

    spec.denormalise(np.array([1.0, 0.0, 0.0, -1.0], np.float32))    # e.g. 6 cm to the right, gripper closed
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal

import numpy as np

from worldgym.errors import ConfigError

# Unit -> (base unit, size in base units); units convert only to units with the same base.
_UNITS: dict[str, tuple[str, float]] = {
    "m": ("m", 1.0),
    "cm": ("m", 0.01),
    "mm": ("m", 0.001),
    "rad": ("rad", 1.0),
    "deg": ("rad", float(np.pi / 180)),
}


@dataclass(frozen=True)
class GripperRule:
    """Gripper convention: the gripper dimension of the action, and its values for open and closed.

    Args:
        index: position in the action vector.
        open: value, in the units of the spec, that opens the gripper.
        closed: value that closes it. In normalised actions, +1 is always open and -1 closed.

    Raises:
        ConfigError: the index is not a whole number, or a value is not a finite number.
    """

    index: int
    open: float = 1.0
    closed: float = -1.0

    def __post_init__(self) -> None:
        if isinstance(self.index, bool) or not isinstance(self.index, (int, np.integer)):
            raise ConfigError(f"gripper.index: got {self.index!r}, expected a whole number, e.g. 3")
        for name in ("open", "closed"):
            _number(f"gripper.{name}", getattr(self, name))


@dataclass(frozen=True)
class ActionSpec:
    """Meaning of the action dimensions; stored with every dataset, policy and world model.

    Args:
        names: one name per dimension, e.g. `("dx", "dy", "dz", "gripper")`.
        units: one unit per dimension, per control step, e.g. `"m"`.
        hz: control rate, steps per second.
        low: physical value at normalised -1, one per dimension.
        high: physical value at normalised +1, one per dimension.
        gripper: the gripper convention, or None without a gripper.
        bounds: whether `low` and `high` are hard limits or the 1 % and 99 % quantiles of the data.

    Raises:
        ConfigError: a field has a value of another type, lengths differ, bounds are not finite or not low < high, or
            the gripper rule contradicts the bounds.

    Example:
        >>> spec = ActionSpec(("dx", "grip"), ("m", "1"), 5.0, (-0.06, -1.0), (0.06, 1.0))
        >>> spec.denormalise(np.array([0.5, 1], np.float32)).tolist()
        [0.029999999329447746, 1.0]
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    hz: float
    low: tuple[float, ...]
    high: tuple[float, ...]
    gripper: GripperRule | None = None
    bounds: Literal["limits", "q01/q99"] = "limits"

    def __post_init__(self) -> None:
        for name in ("names", "units"):
            values = _items(name, getattr(self, name), "of text, e.g. ['dx', 'dy']")
            if wrong := [value for value in values if not isinstance(value, str)]:
                raise ConfigError(
                    f"{name}: got {wrong[0]!r} in {values}, expected only text, e.g. ['dx', 'dy']"
                )
            object.__setattr__(self, name, tuple(str(value) for value in values))
        for name in ("low", "high"):
            values = _items(name, getattr(self, name), "of numbers, e.g. [-0.06, -0.06]")
            numbers = tuple(_number(f"{name}[{i}]", value) for i, value in enumerate(values))
            object.__setattr__(self, name, numbers)
        object.__setattr__(self, "hz", _number("hz", self.hz))
        if not (self.gripper is None or isinstance(self.gripper, GripperRule)):
            raise ConfigError(
                f"gripper: got {self.gripper!r}, expected a GripperRule, or None without a gripper"
            )
        count = len(self.names)
        for name in ("units", "low", "high"):
            if len(getattr(self, name)) != count:
                raise ConfigError(
                    f"got {len(getattr(self, name))} {name} for {count} action names; give one for each"
                )
        if count == 0 or len(set(self.names)) != count:
            raise ConfigError(f"action names must be non-empty and differ, got {self.names}")
        if self.hz <= 0:
            raise ConfigError(f"hz must be a positive number of steps per second, got {self.hz}")
        if self.bounds not in ("limits", "q01/q99"):
            raise ConfigError(f"bounds must be 'limits' or 'q01/q99', got {self.bounds!r}")
        for name, low, high in zip(self.names, self.low, self.high, strict=True):
            if not low < high:
                raise ConfigError(f"{name}: expected low < high, got low {low}, high {high}")
        rule = self.gripper
        if rule is None:
            return
        if not 0 <= rule.index < count:
            raise ConfigError(f"gripper index {rule.index} is outside 0..{count - 1}")
        ends = (min(rule.open, rule.closed), max(rule.open, rule.closed))
        if ends != (self.low[rule.index], self.high[rule.index]):
            raise ConfigError(
                f"{self.names[rule.index]}: low and high are {self.low[rule.index]} and {self.high[rule.index]}, but "
                f"the gripper rule has open {rule.open}, closed {rule.closed}; make low and high those two values"
            )

    @property
    def dim(self) -> int:
        """Number of action dimensions, A."""
        return len(self.names)

    def _ends(self) -> tuple[np.ndarray, np.ndarray]:
        """Values at -1 and at +1, float64; swapped for the gripper dimension if its open value is the smaller one."""
        low, high = np.array(self.low), np.array(self.high)
        if self.gripper is not None:
            low[self.gripper.index], high[self.gripper.index] = self.gripper.closed, self.gripper.open
        return low, high

    def _checked(self, actions: Any) -> np.ndarray:
        array = np.asarray(actions, np.float64)
        if array.ndim == 0 or array.shape[-1] != self.dim:
            raise ValueError(
                f"got actions of shape {array.shape}, expected (..., {self.dim}) for {self.names}"
            )
        if not np.isfinite(array).all():
            where = np.argwhere(~np.isfinite(array))[0].tolist()
            raise ValueError(
                f"actions hold NaN or infinity, first at index {where}; check the code that produced them"
            )
        return array

    def normalise(self, actions: Any, *, clip: bool = True) -> np.ndarray:
        """Map `(..., A)` in units to `(..., A)` float32 in [-1, 1].

        Args:
            actions: `(..., A)` in the spec's units.
            clip: clip to [-1, 1]; if False, values outside `low` and `high` map to values outside [-1, 1].

        Raises:
            ValueError: wrong shape, NaN or infinity.
        """
        low, high = self._ends()
        out = 2.0 * (self._checked(actions) - low) / (high - low) - 1.0
        return (np.clip(out, -1.0, 1.0) if clip else out).astype(np.float32)

    def denormalise(self, actions: Any) -> np.ndarray:
        """Map `(..., A)` in [-1, 1] to `(..., A)` float32 in units.

        Raises:
            ValueError: wrong shape, NaN or infinity.
        """
        low, high = self._ends()
        return (low + 0.5 * (self._checked(actions) + 1.0) * (high - low)).astype(np.float32)

    def convert(self, actions: Any, to: ActionSpec, *, clip: bool = False) -> np.ndarray:
        """Convert normalised actions of this spec to normalised actions of another spec.

        Dimensions are matched by name, lengths and angles are rescaled, and the gripper opening is kept.

        Args:
            actions: `(..., A)` in [-1, 1] of this spec.
            to: the spec to convert to.
            clip: clip motions that exceed the bounds of `to`; if False, they raise an error.

        Returns:
            `(..., A')` float32 in [-1, 1] of `to`.

        Raises:
            ValueError: the specs differ in names, in kind of unit or in rate, or a motion is too large for `to`.
        """
        if set(self.names) != set(to.names):
            raise ValueError(
                f"can't convert actions {self.names} to {to.names}: only one of the specs has "
                f"{sorted(set(self.names) ^ set(to.names))}; drop or add these dimensions first"
            )
        if self.hz != to.hz:
            raise ValueError(
                f"can't convert actions at {self.hz:g} Hz to {to.hz:g} Hz: the steps differ in length; resample first"
            )
        source, grip = self._checked(actions), self.gripper
        if (grip and self.names[grip.index]) != (to.gripper and to.names[to.gripper.index]):
            raise ValueError(
                "can't convert: the two specs name different gripper dimensions; set gripper in both"
            )
        low, high = self._ends()
        values = low + 0.5 * (source + 1.0) * (high - low)
        out = np.empty_like(values)
        to_low, to_high = to._ends()
        for index, name in enumerate(to.names):
            origin = self.names.index(name)
            if grip is not None and origin == grip.index:
                out[..., index] = source[..., origin]  # normalised, +1 is open in every spec
                continue
            scale = _unit_scale(name, self.units[origin], to.units[index])
            out[..., index] = (
                2.0 * (values[..., origin] * scale - to_low[index]) / (to_high - to_low)[index] - 1.0
            )
        largest = float(np.abs(out).max(initial=0.0))
        if not clip and largest > 1.0 + 1e-6:
            raise ValueError(
                f"a converted action reaches {largest:.3f}, beyond the target's [-1, 1]; pass clip=True to clip it, "
                "or widen the target's low and high"
            )
        return np.clip(out, -1.0, 1.0).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        data = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ActionSpec:
        """Rebuild from `to_dict`.

        Raises:
            ConfigError: unknown or missing fields, or an invalid value.
        """
        values = _fields(cls, data, "an action spec")
        if values.get("gripper") is not None:
            values["gripper"] = GripperRule(**_fields(GripperRule, values["gripper"], "a gripper rule"))
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"action spec: {error}") from error

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> ActionSpec:
        """Rebuild from `to_json`.

        Raises:
            ConfigError: not JSON, or not an action spec.
        """
        try:
            return cls.from_dict(json.loads(text))
        except (json.JSONDecodeError, TypeError) as error:
            raise ConfigError(
                f"not an action spec: {error}; expected the text of ActionSpec.to_json"
            ) from error


def _fields(kind: type[Any], data: Any, what: str) -> dict[str, Any]:
    """The fields of a dataclass in `data`; a ConfigError if a field is unknown, or one without default is missing."""
    known = [item.name for item in fields(kind)]
    needed = {item.name for item in fields(kind) if item.default is MISSING}
    if not isinstance(data, Mapping) or set(data) - set(known) or not needed <= set(data):
        got = sorted(map(str, data)) if isinstance(data, Mapping) else repr(data)
        raise ConfigError(f"not {what}: got {got}, expected the fields {sorted(known)}")
    return dict(data)


def _items(name: str, values: Any, what: str) -> list[Any]:
    """The items of a sequence or array; a ConfigError for anything else, also for a single text."""
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__iter__"):
        raise ConfigError(f"{name}: got {values!r}, expected a list {what}")
    return list(values)


def _number(name: str, value: Any) -> float:
    """`value` as a finite float; a ConfigError for null, text, a truth value, NaN and infinity."""
    try:
        if value is None or isinstance(value, (str, bytes, bool, np.bool_)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{name}: got {value!r}, expected a finite number, e.g. 0.5") from error
    if not np.isfinite(number):
        raise ConfigError(f"{name}: got {value!r}, expected a finite number, e.g. 0.5")
    return number


def _unit_scale(name: str, source: str, target: str) -> float:
    if source == target:
        return 1.0
    base_a, scale_a = _UNITS.get(source, (source, 1.0))
    base_b, scale_b = _UNITS.get(target, (target, 1.0))
    if base_a != base_b:
        raise ValueError(
            f"{name}: can't convert {source!r} to {target!r}; known units are {', '.join(_UNITS)}"
        )
    return scale_a / scale_b
