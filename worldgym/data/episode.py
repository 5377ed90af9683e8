"""The two things every part exchanges: what an action means, and what happened in one episode.

An action in [-1, 1] says nothing by itself; `ActionSpec` carries names, units, rate, bounds and the gripper's
convention, so that a dataset, a policy and a model disagree loudly instead of silently. `Episode` is one logged
rollout, checked when it is made.

Example::

    from worldgym.data import TABLETOP_ACTION_SPEC as spec
    spec.denormalise(np.array([1.0, 0.0, 0.0, -1.0], np.float32))    # 6 cm to the right, gripper closed
    episode = Episode(frames, actions, state, "push the red cube to the left", success, progress,
                      domain="real", split="seen", task="push", provenance={"behaviour": "expert", "seed": 7})
    episode.length, episode.succeeded
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np

from worldgym.data.splits import SPLITS

DOMAINS: tuple[str, ...] = ("real", "soft", "imagined")
# How many of the base unit one of each is; conversion is allowed only within a group.
_UNITS: dict[str, tuple[str, float]] = {
    "m": ("m", 1.0),
    "cm": ("m", 0.01),
    "mm": ("m", 0.001),
    "rad": ("rad", 1.0),
    "deg": ("rad", float(np.pi / 180)),
}


@dataclass(frozen=True)
class GripperRule:
    """Which action is the gripper, and which values mean open and closed.

    Args:
        index: position in the action vector.
        open: value, in the spec's own units, that opens the gripper.
        closed: value that closes it. Normalised actions are always +1 open, -1 closed.
    """

    index: int
    open: float = 1.0
    closed: float = -1.0


@dataclass(frozen=True)
class ActionSpec:
    """What the numbers of an action mean; it travels with every dataset, policy and model.

    Args:
        names: one name a dimension, e.g. `("dx", "dy", "dz", "gripper")`.
        units: one unit a dimension, per control step, e.g. `"m"`.
        hz: control rate, steps a second.
        low: value at -1, in units, one a dimension.
        high: value at +1, in units, one a dimension.
        gripper: the gripper's convention, or None without a gripper.
        bounds: whether low and high are hard limits or the 1 % and 99 % quantiles of data.

    Raises:
        ValueError: lengths differ, bounds are not finite or not low < high, or the gripper rule doesn't fit.

    Example:
        >>> TABLETOP_ACTION_SPEC.denormalise(np.array([0.5, 0, 0, 1], np.float32)).round(3).tolist()
        [0.029999999329447746, 0.0, 0.0, 1.0]
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
            object.__setattr__(self, name, tuple(str(value) for value in getattr(self, name)))
        for name in ("low", "high"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        object.__setattr__(self, "hz", float(self.hz))
        count = len(self.names)
        for name in ("units", "low", "high"):
            if len(getattr(self, name)) != count:
                raise ValueError(
                    f"got {len(getattr(self, name))} {name} for {count} action names; give one for each"
                )
        if count == 0 or len(set(self.names)) != count:
            raise ValueError(f"action names must be non-empty and differ, got {self.names}")
        if not (np.isfinite(self.hz) and self.hz > 0):
            raise ValueError(f"hz must be a positive number of steps a second, got {self.hz}")
        if self.bounds not in ("limits", "q01/q99"):
            raise ValueError(f"bounds must be 'limits' or 'q01/q99', got {self.bounds!r}")
        for name, low, high in zip(self.names, self.low, self.high, strict=True):
            if not (np.isfinite(low) and np.isfinite(high) and low < high):
                raise ValueError(f"{name}: expected finite low < high, got low {low}, high {high}")
        rule = self.gripper
        if rule is None:
            return
        if not 0 <= rule.index < count:
            raise ValueError(f"gripper index {rule.index} is outside 0..{count - 1}")
        ends = (min(rule.open, rule.closed), max(rule.open, rule.closed))
        if ends != (self.low[rule.index], self.high[rule.index]):
            raise ValueError(
                f"{self.names[rule.index]}: low and high are {self.low[rule.index]} and {self.high[rule.index]}, but "
                f"the gripper rule says open {rule.open}, closed {rule.closed}; make low and high those two values"
            )

    @property
    def dim(self) -> int:
        """Number of action dimensions, A."""
        return len(self.names)

    def _ends(self) -> tuple[np.ndarray, np.ndarray]:
        """Values at -1 and at +1, float64; swapped for a gripper whose open value is the smaller one."""
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
                f"actions hold NaN or infinity, first at index {where}; check what produced them"
            )
        return array

    def normalise(self, actions: Any, *, clip: bool = True) -> np.ndarray:
        """Map `(..., A)` in units to `(..., A)` float32 in [-1, 1].

        Args:
            actions: `(..., A)` in the spec's units.
            clip: cut what lies outside low and high; with False it comes out beyond [-1, 1].

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
        """Say the same motion in another spec: normalised here to normalised there.

        Dimensions are matched by name, lengths and angles are rescaled, the gripper keeps how far open it is.

        Args:
            actions: `(..., A)` in [-1, 1] of this spec.
            to: the spec to convert to.
            clip: cut motions that `to` can't express; with False they are an error.

        Returns:
            `(..., A')` float32 in [-1, 1] of `to`.

        Raises:
            ValueError: the two differ in names, in kind of unit or in rate, or a motion is too large for `to`.
        """
        if set(self.names) != set(to.names):
            raise ValueError(
                f"can't convert actions {self.names} to {to.names}: only in one of them: "
                f"{sorted(set(self.names) ^ set(to.names))}; drop or add those dimensions yourself first"
            )
        if self.hz != to.hz:
            raise ValueError(
                f"can't convert actions at {self.hz:g} Hz to {to.hz:g} Hz: a step lasts differently; resample first"
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
                f"a converted action reaches {largest:.3f}, beyond the target's [-1, 1]; pass clip=True to cut it, "
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
            ValueError: unknown or missing fields.
        """
        known = {item.name for item in fields(cls)}
        if (
            not isinstance(data, dict)
            or set(data) - known
            or not {"names", "units", "hz", "low", "high"} <= set(data)
        ):
            got = sorted(data) if isinstance(data, dict) else data
            raise ValueError(f"not an action spec: got {got}, expected the fields {sorted(known)}")
        values = dict(data)
        if values.get("gripper") is not None:
            values["gripper"] = GripperRule(**values["gripper"])
        return cls(**values)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> ActionSpec:
        """Rebuild from `to_json`.

        Raises:
            ValueError: not JSON, or not an action spec.
        """
        return cls.from_dict(json.loads(text))


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


TABLETOP_ACTION_SPEC = ActionSpec(
    names=("dx", "dy", "dz", "gripper"),
    units=("m", "m", "m", "open=+1/close=-1"),
    hz=5.0,
    low=(-0.06, -0.06, -0.06, -1.0),
    high=(0.06, 0.06, 0.06, 1.0),
    gripper=GripperRule(index=3, open=1.0, closed=-1.0),
)


def _expect(name: str, value: Any, dtype: type, shape: tuple[int | str, ...], hint: str) -> np.ndarray:
    """Check dtype and shape; strings in `shape` stand for any size."""
    wanted = f"({', '.join(str(size) for size in shape)}) {np.dtype(dtype).name}"
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{name}: got {type(value).__name__}, expected a numpy array {wanted}; {hint}")
    sizes_fit = value.ndim == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(shape, value.shape, strict=True)
    )
    if value.dtype != dtype or not sizes_fit:
        raise ValueError(f"{name}: got {value.shape} {value.dtype}, expected {wanted}; {hint}")
    return value


@dataclass(frozen=True, eq=False)
class Episode:
    """One logged rollout: T actions and the T+1 frames around them.

    Args:
        frames: `(T+1, H, W, 3)` uint8, RGB.
        actions: `(T, A)` float32 in [-1, 1], normalised by the dataset's `ActionSpec`; `actions[t]` leads
            from frame t to t+1.
        state: `(T+1, S)` float32, proprioception in the units of the recording; S may be 0.
        instruction: what was asked for, in words.
        success: `(T+1,)` bool, whether the instruction is fulfilled at each frame.
        progress: `(T+1,)` float32 in [0, 1].
        domain: `"real"`, `"soft"` or `"imagined"`.
        split: one of `SPLITS`.
        task: short name of the task, e.g. `"push"`.
        provenance: JSON-able facts about its making: behaviour, seed, collector version...
        views: cameras beside the main one, by name, each `(T+1, H, W, 3)` uint8 of the frames' size.

    Raises:
        ValueError: anything of the wrong type, shape or range, said with what was expected.
    """

    frames: np.ndarray
    actions: np.ndarray
    state: np.ndarray
    instruction: str
    success: np.ndarray
    progress: np.ndarray
    domain: str
    split: str
    task: str
    provenance: dict[str, Any] = field(default_factory=dict)
    views: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        actions = _expect("actions", self.actions, np.float32, ("T", "A"), "use actions.astype(np.float32)")
        steps = len(actions)
        if steps == 0:
            raise ValueError("actions: got 0 steps, expected at least 1; drop empty episodes before saving")
        if not np.isfinite(actions).all():
            bad = np.argwhere(~np.isfinite(actions))[0].tolist()
            raise ValueError(
                f"actions: NaN or infinity at [step, dimension] {bad}, expected finite values in [-1, 1]; "
                "check the policy that produced them"
            )
        if np.abs(actions).max() > 1.0 + 1e-5:
            raise ValueError(
                f"actions: got values up to {np.abs(actions).max():.4f} in size, expected [-1, 1]; "
                "use ActionSpec.normalise, or clip before stepping and log what was executed"
            )
        hint = f"one frame more than the {steps} actions: the first observation and one after each action"
        _expect("frames", self.frames, np.uint8, (steps + 1, "H", "W", 3), hint)
        for name, frames in self.views.items():
            _expect(
                f"views[{name!r}]", frames, np.uint8, self.frames.shape, "as many and as large as the frames"
            )
            if not name or not name.replace("_", "").isalnum() or name == "front":
                raise ValueError(
                    f"views: got the name {name!r}, expected letters, digits and _, and not 'front'"
                )
        state = _expect("state", self.state, np.float32, (steps + 1, "S"), hint)
        _expect("success", self.success, np.bool_, (steps + 1,), hint)
        progress = _expect("progress", self.progress, np.float32, (steps + 1,), hint)
        if not np.isfinite(state).all():
            raise ValueError(
                "state: holds NaN or infinity, expected finite metres; check the simulator or sensor"
            )
        if not (np.isfinite(progress).all() and progress.min() >= -1e-6 and progress.max() <= 1.0 + 1e-6):
            raise ValueError(
                "progress: expected values in [0, 1], got others; clip it with np.clip(progress, 0, 1)"
            )
        if not isinstance(self.instruction, str) or not self.instruction.strip():
            raise ValueError(
                f"instruction: got {self.instruction!r}, expected a sentence that says what to do"
            )
        for name, known in (("domain", DOMAINS), ("split", SPLITS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(known)}")
        if not isinstance(self.task, str) or not self.task:
            raise ValueError(f"task: got {self.task!r}, expected a short name such as 'push'")
        try:
            json.dumps(self.provenance, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"provenance: {error}; keep it plain JSON, numpy numbers as int(x) or float(x)"
            ) from error

    @property
    def length(self) -> int:
        """Number of actions, T."""
        return len(self.actions)

    @property
    def succeeded(self) -> bool:
        """Whether the instruction was fulfilled at any frame (`success_once`)."""
        return bool(self.success.any())

    @property
    def behaviour(self) -> str:
        """Who acted, from the provenance; `"unknown"` if nobody noted it."""
        return str(self.provenance.get("behaviour", "unknown"))
