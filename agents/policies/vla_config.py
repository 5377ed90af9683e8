"""Sizes of a `VLAPolicy`, as a frozen dataclass that is saved to `config.json`.

Example::

    VLAPolicyConfig.preset("small", chunk=8)
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from worldgym.errors import ConfigError
from worldgym.registry import HEADS
from worldgym.specs import Camera, Specs
from worldgym.text import EMBEDDING_DIM
from worldgym.utils.sizes import short, size_of


@dataclass(frozen=True)
class VLAPolicyConfig:
    """Shape of a `VLAPolicy`.

    Args:
        image_size: side length of the main camera's frames in pixels, or (height, width).
        state_dim: length of the proprioception vector; 0 if there is none.
        action_dim: length of one action.
        chunk: actions per call.
        n_bins: bins per continuous dimension; odd, so that one bin is zero. Bin centres span [-1, 1].
        binary_dims: action dimensions with only two bins, -1 and +1 (the gripper).
        width: transformer width.
        layers: transformer layers.
        heads: attention heads; divides `width`.
        stem: channels of the convolutional stem at 1/2, 1/4 and 1/8 resolution.
        keypoints: number of soft-argmax maps; the same number of maps is added that are queried by the instruction.
        goal_dims: number of end-effector coordinates of the next keyframe that are predicted: 3, or 0 for robots
            without such a position in proprioception (then no goal is predicted).
        text_dim: length of the instruction embedding.
        dropout: dropout rate in the transformer, in training mode.
        bf16: run matmuls and convolutions in bfloat16 where that is faster than float32; probabilities stay float32.
        head: distribution over actions: `bins`, `autoregressive`, `l1` or `flow`, see `agents.policies.heads`.
        head_settings: further settings of the head: `scale` and `learn_scale` of `l1`, `steps` and `noise` of `flow`.
        specs: specs of the training data. They define the columns of proprioception that hold the end effector's
            position, and the cameras beside the main one; None means one camera, and position first.
        future_tokens: learned tokens behind the action queries, for auxiliary losses (`agents.auxiliary`). They attend
            and are attended to like the others; the actions are read from the action queries alone.
        future_view: the policy also reads the frame `image_future`, or the current frame in its place if the
            observation has none. Only for the control arm of `agents.auxiliary.vla_jepa` that leaks the future.

    Raises:
        ConfigError: an invalid value; the message says what to set instead.
    """

    image_size: int | tuple[int, int] = 64
    state_dim: int = 4
    action_dim: int = 4
    chunk: int = 5
    n_bins: int = 21
    binary_dims: tuple[int, ...] = (3,)
    width: int = 192
    layers: int = 3
    heads: int = 4
    stem: tuple[int, int, int] = (32, 64, 128)
    keypoints: int = 32
    goal_dims: int = 3
    text_dim: int = EMBEDDING_DIM
    dropout: float = 0.1
    bf16: bool = False
    head: str = "bins"
    head_settings: Mapping[str, float] = field(default_factory=dict)
    specs: Specs | None = None
    future_tokens: int = 0
    future_view: bool = False

    LATER: ClassVar[Mapping[str, Any]] = {"future_tokens": 0, "future_view": False}
    """Settings that `config.json` holds only if they differ from these values: earlier versions do not know them."""

    def __post_init__(self) -> None:
        """Validate, and convert JSON lists to tuples."""
        object.__setattr__(self, "binary_dims", tuple(self.binary_dims))
        object.__setattr__(self, "stem", tuple(self.stem))
        object.__setattr__(self, "image_size", short(size_of(self.image_size)))
        if min(self.size) < 16:
            raise ConfigError(f"image_size must be at least 16 pixels a side; got {self.image_size}. Try 64")
        if self.n_bins < 3 or self.n_bins % 2 == 0:
            raise ConfigError(
                f"n_bins must be odd and at least 3, so that one bin is zero; got {self.n_bins}. Try 21"
            )
        bad = [d for d in self.binary_dims if not 0 <= d < self.action_dim]
        if bad:
            raise ConfigError(f"binary_dims must lie in [0, {self.action_dim}); got {bad}")
        if len(self.stem) != 3 or any(c % 8 for c in self.stem):
            raise ConfigError(f"stem must be three multiples of 8; got {self.stem}. Try (32, 64, 128)")
        if self.state_dim < 0:
            raise ConfigError(f"state_dim must not be negative; got {self.state_dim}")
        if self.goal_dims and not 3 <= self.goal_dims <= self.state_dim:
            raise ConfigError(
                f"goal_dims must be 0 or lie in [3, state_dim={self.state_dim}]; got {self.goal_dims}"
            )
        if len(self.position) != self.goal_dims:
            raise ConfigError(
                f"goal_dims is {self.goal_dims}, but the specs have {len(self.position)} state fields of the role "
                "ee_position; set goal_dims=0"
            )
        for name in ("chunk", "layers", "keypoints", "action_dim", "width", "heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.width % self.heads:
            raise ConfigError(
                f"heads must divide width; got width={self.width}, heads={self.heads}. Try heads=4"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1); got {self.dropout}")
        if self.future_tokens < 0:
            raise ConfigError(f"future_tokens must not be negative; got {self.future_tokens}. Try 8, or 0 for none")
        HEADS.get(self.head)  # raises ConfigError for an unknown head

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the main camera's frames."""
        return size_of(self.image_size)

    @property
    def views(self) -> tuple[Camera, ...]:
        """Cameras beside the main one."""
        return () if self.specs is None else self.specs.observation.views

    @property
    def position(self) -> tuple[int, ...]:
        """Columns of proprioception for which the next keyframe is predicted."""
        if self.specs is None:
            return tuple(range(self.goal_dims))
        return self.specs.observation.columns("ee_position")[: self.goal_dims]

    @classmethod
    def for_data(cls, name: str, specs: Specs, **overrides: Any) -> VLAPolicyConfig:
        """A named size for data of these specs; goals are predicted if there is an end-effector position.

        Raises:
            ConfigError: no actions, no camera, or an invalid setting.
        """
        if specs.action is None:
            raise ConfigError("a policy needs data with actions, but these specs have none")
        seen, gripper = specs.observation, specs.action.gripper
        own: dict[str, Any] = {
            "image_size": seen.main.size, "state_dim": seen.state_dim, "action_dim": specs.action.dim, "specs": specs,
            "goal_dims": 3 if len(seen.columns("ee_position")) == 3 else 0,
            "binary_dims": () if gripper is None else (gripper.index,),
        }  # fmt: skip
        return cls.preset(name, **{**own, **overrides})

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> VLAPolicyConfig:
        """A named size: `tiny` (0.2M, tests) or `small` (2M, two cores)."""
        if name not in PRESETS:
            raise ConfigError(f"unknown policy preset {name!r}; there are {', '.join(PRESETS)}")
        return cls.from_dict({**PRESETS[name], **overrides})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VLAPolicyConfig:
        """Build from a JSON object; an unknown key raises a ConfigError with a suggestion."""
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                raise ConfigError(
                    f"unknown policy setting {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
                )
        values = dict(values)
        if isinstance(values.get("specs"), Mapping):
            values["specs"] = Specs.from_dict(values["specs"])
        if isinstance(values.get("image_size"), list):
            values["image_size"] = tuple(values["image_size"])
        return cls(**values)


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"width": 64, "layers": 2, "heads": 2, "stem": (8, 16, 32), "keypoints": 8},
    "small": {"bf16": True},
}
