"""`Episode`: one recorded rollout, validated at construction.

Example::

    episode = Episode(frames, actions, state, "push the red cube to the left", success, progress,
                      domain="real", split="seen", task="push", provenance={"behaviour": "expert", "seed": 7})
    episode.length, episode.succeeded
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worldgym.data.splits import SPLITS
from worldgym.specs.observation import CAMERA_NAME

DOMAINS: tuple[str, ...] = ("real", "soft", "imagined")


def _expect(name: str, value: Any, dtype: type, shape: tuple[int | str, ...], hint: str) -> np.ndarray:
    """Check dtype and shape; a string in `shape` stands for any size."""
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
    """One recorded rollout: T actions and T+1 frames.

    A quantity that was not recorded is None, not a placeholder value: internet video has no actions and no success.

    Args:
        frames: `(T+1, H, W, 3)` uint8, RGB, of the main camera.
        actions: `(T, A)` float32 in [-1, 1], normalised by the dataset's `ActionSpec`; `actions[t]` leads
            from frame t to t+1. None if no actions were recorded.
        state: `(T+1, S)` float32, proprioception in the units of the recording; S may be 0.
        instruction: natural-language instruction.
        success: `(T+1,)` bool, whether the instruction is fulfilled at each frame; None if it was not labelled.
        progress: `(T+1,)` float32 in [0, 1], or None.
        domain: `"real"`, `"soft"` or `"imagined"`.
        split: one of `SPLITS`.
        task: short name of the task, e.g. `"push"`.
        provenance: JSON-serialisable origin of the episode: behaviour, seed, version of the collector, ...
        views: frames of the other cameras, by the name of the camera in the `ObservationSpec`, each
            `(T+1, H', W', 3)` uint8 with its own size.

    Raises:
        ValueError: a value has the wrong type, shape or range; the message says what was expected.
    """

    frames: np.ndarray
    actions: np.ndarray | None
    state: np.ndarray
    instruction: str
    success: np.ndarray | None
    progress: np.ndarray | None
    domain: str
    split: str
    task: str
    provenance: dict[str, Any] = field(default_factory=dict)
    views: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        steps = self._check_actions()
        hint = f"one frame more than the {steps} actions: the first observation and one after each action"
        _expect("frames", self.frames, np.uint8, (steps + 1, "H", "W", 3), hint)
        for name, frames in self.views.items():
            _expect(
                f"views[{name!r}]", frames, np.uint8, (steps + 1, "H", "W", 3), "as many as the main frames"
            )
            if not isinstance(name, str) or not CAMERA_NAME.fullmatch(name):
                raise ValueError(
                    f"views: got the name {name!r}, expected letters, digits and _, e.g. 'wrist'"
                )
        state = _expect("state", self.state, np.float32, (steps + 1, "S"), hint)
        if self.success is not None:
            _expect("success", self.success, np.bool_, (steps + 1,), hint)
        if self.progress is not None:
            progress = _expect("progress", self.progress, np.float32, (steps + 1,), hint)
            if not (np.isfinite(progress).all() and progress.min() >= -1e-6 and progress.max() <= 1.0 + 1e-6):
                raise ValueError(
                    "progress: expected values in [0, 1], got others; clip it with np.clip(progress, 0, 1)"
                )
        if not np.isfinite(state).all():
            raise ValueError(
                "state: holds NaN or infinity, expected finite values; check the simulator or sensor"
            )
        if not isinstance(self.instruction, str) or not self.instruction.strip():
            raise ValueError(
                f"instruction: got {self.instruction!r}, expected a sentence that states the task"
            )
        for name, known in (("domain", DOMAINS), ("split", SPLITS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(known)}")
        if not isinstance(self.task, str) or not self.task:
            raise ValueError(f"task: got {self.task!r}, expected a short name such as 'push'")
        if not isinstance(self.provenance, dict):
            raise ValueError(
                f"provenance: got {type(self.provenance).__name__}, expected a dict of plain JSON"
            )
        for name, text in (
            ("instruction", self.instruction),
            ("task", self.task),
            ("behaviour", self.behaviour),
        ):
            if not text.isascii() and (half := re.search("[\ud800-\udfff]", text)):
                raise ValueError(
                    f"{name}: got half of a surrogate pair, {half.group()!r}, which no file can hold; expected text "
                    "that was decoded as UTF-8"
                )
        try:
            json.dumps(self.provenance, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"provenance: {error}; expected plain JSON: convert numpy numbers with int(x) or float(x)"
            ) from error

    def _check_actions(self) -> int:
        """Validate the actions and return T."""
        if self.actions is None:
            frames = _expect("frames", self.frames, np.uint8, ("T+1", "H", "W", 3), "RGB frames")
            if len(frames) < 2:
                raise ValueError(
                    f"frames: got {len(frames)}, expected at least 2; drop episodes of a single frame"
                )
            return len(frames) - 1
        actions = _expect("actions", self.actions, np.float32, ("T", "A"), "use actions.astype(np.float32)")
        if len(actions) == 0:
            raise ValueError("actions: got 0 steps, expected at least 1; drop empty episodes before saving")
        if not np.isfinite(actions).all():
            bad = np.argwhere(~np.isfinite(actions))[0].tolist()
            raise ValueError(
                f"actions: NaN or infinity at [step, dimension] {bad}, expected finite values in [-1, 1]; "
                "check the policy that produced them"
            )
        if np.abs(actions).max(initial=0.0) > 1.0 + 1e-5:
            raise ValueError(
                f"actions: got values up to {np.abs(actions).max():.4f} in magnitude, expected [-1, 1]; "
                "use ActionSpec.normalise, or clip before stepping and log the executed actions"
            )
        return len(actions)

    @property
    def length(self) -> int:
        """Number of steps, T."""
        return len(self.frames) - 1

    @property
    def succeeded(self) -> bool | None:
        """Whether the instruction was fulfilled at any frame (`success_once`); None if it was not labelled."""
        return None if self.success is None else bool(self.success.any())

    @property
    def behaviour(self) -> str:
        """Name of the behaviour that acted, from the provenance; `"unknown"` if it was not recorded."""
        return str(self.provenance.get("behaviour", "unknown"))


def __getattr__(name: str) -> Any:
    """Resolve names of earlier versions, with a DeprecationWarning."""
    from worldgym.moved import earlier

    return earlier(__name__, name)
