"""Names of inputs on the wire: openpi's servers expect the keys of the robot that their policy was trained on.

A key map gives for each key of a message the part of a worldgym observation that it holds: `image`, `image_<camera>`,
`state`, columns such as `state[0:7]`, or `instruction`. A dot in a key stands for a nested map.

Example::

    keys = KeyMap.named("libero")
    message = keys.to_message(observation, row=0)            # {"observation/image": (H, W, 3), ..., "prompt": "..."}
    keys.from_message(message)                               # {"image": ..., "state": ..., "instruction": "..."}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from worldgym.errors import ConfigError
from worldgym.utils.arrays import host_array

PRESETS: dict[str, dict[str, str]] = {
    # worldgym's own names
    "worldgym": {"image": "image", "state": "state", "instruction": "instruction"},
    # openpi: policies/libero_policy.py, examples/libero/main.py
    "libero": {
        "observation/image": "image",
        "observation/wrist_image": "image_wrist",
        "observation/state": "state",
        "prompt": "instruction",
    },
    # openpi: policies/droid_policy.py, examples/droid/main.py
    "droid": {
        "observation/exterior_image_1_left": "image",
        "observation/wrist_image_left": "image_wrist",
        "observation/joint_position": "state[0:7]",
        "observation/gripper_position": "state[7:8]",
        "prompt": "instruction",
    },
    # openpi: policies/aloha_policy.py; images have channels first
    "aloha": {
        "images.cam_high": "image",
        "images.cam_left_wrist": "image_left_wrist",
        "images.cam_right_wrist": "image_right_wrist",
        "state": "state",
        "prompt": "instruction",
    },
}
CHANNELS_FIRST = ("aloha",)
_COLUMNS = re.compile(r"state(?:\[(\d+):(\d+)\])?")
_PART = re.compile(r"image|image_\w+|state(\[\d+:\d+\])?|instruction")


@dataclass(frozen=True)
class KeyMap:
    """Which key of a message holds which part of an observation.

    Args:
        parts: part of the observation by key.
        channels: whether images have their channels `last` `(H, W, 3)` or `first` `(3, H, W)`.

    Raises:
        ConfigError: a part is unknown, or there is no image or no instruction.
    """

    parts: Mapping[str, str]
    channels: Literal["last", "first"] = "last"

    def __post_init__(self) -> None:
        if self.channels not in ("last", "first"):
            raise ConfigError(f"channels is {self.channels!r}; expected 'last' or 'first'")
        wrong = [part for part in self.parts.values() if not _PART.fullmatch(str(part))]
        if wrong or not {"image", "instruction"} <= set(self.parts.values()):
            raise ConfigError(
                f"keys are {dict(self.parts)}; expected image, image_<camera>, state, state[FIRST:END] or instruction "
                "for each key, and at least image and instruction, e.g. observation/image=image prompt=instruction"
            )

    @classmethod
    def named(cls, name: str) -> KeyMap:
        """A key map of openpi's examples.

        Raises:
            ConfigError: the name is unknown.
        """
        if name not in PRESETS:
            raise ConfigError(f"keys is {name!r}; expected one of {', '.join(PRESETS)}, or KEY=PART pairs")
        return cls(PRESETS[name], "first" if name in CHANNELS_FIRST else "last")

    @classmethod
    def parse(cls, given: str | Mapping[str, str]) -> KeyMap:
        """A key map from a preset's name, `KEY=PART,KEY=PART`, or a dict."""
        if isinstance(given, str) and "=" not in given:
            return cls.named(given)
        if isinstance(given, str):
            pairs = [pair.partition("=") for pair in given.replace(",", " ").split()]
            given = {key: part for key, _, part in pairs}
        return cls(dict(given))

    def to_message(self, observation: Mapping[str, Any], row: int) -> dict[str, Any]:
        """One row of an observation as a message. Cameras that the observation does not have are left out.

        Raises:
            ConfigError: the state has fewer columns than a key asks for.
        """
        message: dict[str, Any] = {}
        for key, part in self.parts.items():
            if part.startswith("image") and part not in observation:
                continue
            value: Any
            if part == "instruction":
                value = str(observation["instruction"][row])
            elif part.startswith("image"):
                value = host_array(observation[part][row])
                value = np.ascontiguousarray(value.transpose(2, 0, 1)) if self.channels == "first" else value
            else:
                value = _columns(host_array(observation["state"][row]).astype(np.float32), part)
            *outer, last = key.split(".") if "." in key else [key]
            inner = message
            for name in outer:
                inner = inner.setdefault(name, {})
            inner[last] = value
        return message

    def from_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Parts of an observation in a message: images `(..., H, W, 3)` uint8, state `(..., S)`, instruction."""
        found: dict[str, Any] = {}
        states: list[tuple[int, np.ndarray]] = []
        for key, part in self.parts.items():
            value = _at(message, key)
            if value is None:
                continue
            if part.startswith("image"):
                found[part] = _picture(value, key)
            elif part == "instruction":
                found[part] = value
            else:
                states.append(_placed(value, part, key))
        if states:
            found["state"] = np.concatenate([value for _, value in sorted(states, key=lambda s: s[0])], -1)
        return found

    def missing(self, message: Mapping[str, Any]) -> list[str]:
        """Keys of the main image, the state and the instruction that a message lacks."""
        return [
            key
            for key, part in self.parts.items()
            if not part.startswith("image_") and _at(message, key) is None
        ]


def fitting(message: Mapping[str, Any]) -> KeyMap | None:
    """The key map of a preset that fits a message; None if none does."""
    return next((KeyMap.named(name) for name in PRESETS if not KeyMap.named(name).missing(message)), None)


def _at(message: Mapping[str, Any], key: str) -> Any:
    if key in message:
        return message[key]
    value: Any = message
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _columns(state: np.ndarray, part: str) -> np.ndarray:
    match = _COLUMNS.fullmatch(part)
    if match is None or match[1] is None:
        return state
    first, end = int(match[1]), int(match[2])
    if end > state.shape[-1] or first >= end:
        raise ConfigError(f"{part}: the state has {state.shape[-1]} numbers; give other keys")
    return state[..., first:end]


def _placed(value: Any, part: str, key: str) -> tuple[int, np.ndarray]:
    """First column, and the numbers `(..., S)`, of a part of the state."""
    match = _COLUMNS.fullmatch(part)
    try:
        numbers = np.atleast_1d(np.asarray(value, np.float32))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key} is {type(value).__name__}; expected numbers") from error
    return int(match[1] or 0) if match else 0, numbers


def _picture(value: Any, key: str) -> np.ndarray:
    """Images `(..., H, W, 3)` uint8 from uint8, or floats in [0, 1]; channels first or last."""
    image = np.asarray(value)
    if image.ndim not in (3, 4) or 3 not in (image.shape[-1], image.shape[-3]):
        raise ConfigError(
            f"{key} has the shape {image.shape}; expected (H, W, 3), (3, H, W), or a batch of them"
        )
    if image.shape[-1] != 3:
        image = np.moveaxis(image, -3, -1)
    if image.dtype.kind == "f":
        if image.size and (not np.isfinite(image).all() or image.min() < 0 or image.max() > 1):
            raise ConfigError(
                f"{key} holds numbers from {image.min():.3g} to {image.max():.3g}; expected uint8, or floats in [0, 1]"
            )
        image = np.rint(255 * image).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ConfigError(f"{key} has the type {image.dtype}; expected uint8, or floats in [0, 1]")
    return np.ascontiguousarray(image)
