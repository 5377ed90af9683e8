"""Configuration of a joint world-action model; saved as config.json next to the weights.

Example::

    config = JointConfig.preset("small", "dreamzero").for_data(states, specs)
    config = replace(config, sampling=JointSampling(steps=4))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from worldgym.errors import ConfigError
from worldgym.models.canvas import Canvas
from worldgym.models.joint.layouts import Family, Sizes, family_of
from worldgym.models.tokenizers import AnyTokenizerConfig, TokenizerConfig, tokenizer_config
from worldgym.nn.reuse import Reuse
from worldgym.specs import Specs
from worldgym.text import EMBEDDING_DIM
from worldgym.utils.typed import from_values

LEVELS = ("auto", "coupled", "independent", "decoupled", "high_noise")


@dataclass(frozen=True)
class JointSampling:
    """How actions and video are sampled.

    Args:
        steps: passes of the sampler, N. Levels fall evenly from 1 to 0.
        guidance: weight g of classifier-free guidance, `v = v0 + g (v1 - v0)`, with v0 without the instruction; on the
            video only, actions take v1 (DreamZero). 1 means no guidance, and one network pass instead of two.
        cache: keep keys and values of the given tokens, where the family's mask allows it.
        reuse: which passes run the network; at the others the last velocities are used again.
        video_end: noise level at which a policy's video stops while its actions go to 0 (decoupled inference); 0 is
            off, and None is 0.5 for models trained with `levels=decoupled`, which saw hardly any cleaner frame, else 0.
        joint: a policy samples the video with the actions; else it holds the video at pure noise (the policy mode of
            UWM, the VLA mode of Motus). DreamZero always samples both, and FastWAM's actions never see the video.
        noise: noise level of the stochastic sampler of actions, at t = 1 and temperature 1.
        dtype: precision of inference, `float32` or `bfloat16`.
        compile: run the network through torch.compile for single observations, which are what a robot waits for. It
            needs a C++ compiler on a CPU, and the first chunk takes up to a minute. No keys and values are kept then. A
            batch whose last episode is alone counts as a single observation.

    Raises:
        ConfigError: a value outside its range.
    """

    steps: int = 4
    guidance: float = 1.0
    cache: bool = True
    reuse: Reuse = field(default_factory=Reuse)
    video_end: float | None = None
    joint: bool = False
    noise: float = 0.5
    dtype: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps is {self.steps}, expected at least 1; try steps=4")
        if not self.guidance >= 1:
            raise ConfigError(f"guidance is {self.guidance}, expected at least 1; 1 means no guidance")
        self.reuse.fixed(self.steps)
        if self.video_end is not None and not 0 <= self.video_end < 1:
            raise ConfigError(f"video_end is {self.video_end}, expected a level in [0, 1); try video_end=0.8")
        if not 0 < self.noise <= 2:
            raise ConfigError(f"noise is {self.noise}, expected a value in (0, 2]; try noise=0.5")
        if self.dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"dtype is {self.dtype!r}, expected 'float32' or 'bfloat16'")


def sampling_of(values: Any) -> JointSampling:
    """Settings of the sampling from plain values, such as `{"steps": 16, "reuse": {"plan": "static", "passes": 6}}`.

    Raises:
        ConfigError: no mapping, unknown names, or values of another type or range.
    """
    where = "sampling of a joint model"
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: got {values!r}, expected settings by name; try sampling={{steps: 2}}")
    plain = {**values}
    reuse = plain.pop("reuse", {})
    if not isinstance(reuse, Mapping):
        raise ConfigError(
            f"{where}: reuse is {reuse!r}, expected settings by name; try reuse={{plan: static, passes: 2}}"
        )
    if isinstance(reuse.get("similar"), list):
        reuse = {**reuse, "similar": tuple(reuse["similar"])}
    made = from_values(Reuse, dict(reuse), f"reuse, {where}")
    return replace(from_values(JointSampling, {**plain, "steps": plain.get("steps", 4)}, where), reuse=made)


@dataclass(frozen=True)
class JointConfig:
    """Shape, training levels and sampling of a `JointModel`.

    Args:
        family: see `worldgym.models.joint.layouts.FAMILIES`.
        tokenizer: config of the frame tokenizer; its frames are the canvas of all cameras.
        chunk: actions of a block, K. The frame after them is predicted.
        blocks: largest number of blocks in a sequence; None takes the family's.
        patch: latent cells along one side of a token.
        width: width of the first expert.
        action_width: width of the action expert, for families with several experts.
        text_width: width of the understanding expert.
        depth: number of layers.
        heads: attention heads.
        head_dim: channels per head, a multiple of 16.
        levels: noise levels of a block in training. `coupled`: one level for video and actions; `independent`: one
            each; `decoupled`: video from Beta(7,1), actions uniform (DreamZero-Flash); `high_noise`: one each, both
            from Beta(3,1) (dreamzero0/dreamzero); `auto`: what the family was published with.
        video_coef: weight of the video loss; 0 trains the same network without it.
        residual: expected standard deviation of the change of a latent frame, see
            `worldgym.nn.noise.residual_velocity`.
        cut: share of the blocks that end early in training, so that shorter chunks can be imagined.
        text_drop: share of the sequences without the instruction in training.
        sampling: how it is sampled.
        state_width: width of the network that integrates proprioception.
        state_mean: mean of proprioception in the logs, per dimension.
        state_std: standard deviation of proprioception in the logs, per dimension.
        action_dim: A.
        specs: observation and action specs.

    Raises:
        ConfigError: an invalid shape or setting.
    """

    family: str = "uwm"
    tokenizer: AnyTokenizerConfig = field(default_factory=TokenizerConfig)
    chunk: int = 5
    blocks: int | None = None
    patch: int = 2
    width: int = 192
    action_width: int = 128
    text_width: int = 96
    depth: int = 6
    heads: int = 6
    head_dim: int = 32
    levels: str = "auto"
    video_coef: float = 1.0
    residual: float = 0.5
    cut: float = 0.2
    text_drop: float = 0.15
    sampling: JointSampling = field(default_factory=JointSampling)
    state_width: int = 160
    state_mean: tuple[float, ...] = ()
    state_std: tuple[float, ...] = ()
    action_dim: int = 4
    specs: Specs | None = None

    def __post_init__(self) -> None:
        kind = family_of(self.family)
        for name in ("chunk", "patch", "width", "action_width", "text_width", "depth", "heads", "action_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1; leave it out for the default")
        if self.head_dim < 1 or self.head_dim % 16:
            raise ConfigError(f"head_dim is {self.head_dim}, expected a multiple of 16; try head_dim=32")
        if any(side % self.patch for side in self.tokenizer.grid):
            raise ConfigError(
                f"patch {self.patch} does not divide the latent grid {self.tokenizer.grid}; try patch=1"
            )
        if self.levels not in LEVELS:
            raise ConfigError(f"levels is {self.levels!r}, expected one of {', '.join(LEVELS)}; try levels=auto")
        if self.blocks is not None and not 1 <= self.blocks <= 16:
            raise ConfigError(f"blocks is {self.blocks}, expected 1 to 16")
        if self.block_count > 1 and kind.blocks == 1:
            raise ConfigError(
                f"the family {self.family} has one block, got blocks={self.blocks}; leave it out"
            )
        if self.video_coef < 0 or self.residual <= 0:
            raise ConfigError(
                f"video_coef must not be negative and residual must be positive, got {self.video_coef} and "
                f"{self.residual}; try 1.0 and 0.5"
            )
        for name in ("cut", "text_drop"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected a share in [0, 1); try {name}=0.2")
        if len(self.state_mean) != len(self.state_std):
            raise ConfigError("state_mean and state_std have different lengths")

    @property
    def kind(self) -> Family:
        """The family."""
        return family_of(self.family)

    @property
    def block_count(self) -> int:
        """Largest number of blocks, n."""
        return self.kind.blocks if self.blocks is None else self.blocks

    @property
    def drawn_levels(self) -> str:
        """`levels`, with `auto` replaced by the family's."""
        if self.levels != "auto":
            return self.levels
        return "coupled" if self.kind.coupled else "independent"

    @property
    def samples_video(self) -> bool:
        """Whether a policy samples the frame with the actions; else it holds it at pure noise, or leaves it out."""
        together = self.kind.coupled or self.drawn_levels == "coupled" or self.sampling.joint
        return self.kind.future and together

    @property
    def video_end(self) -> float:
        """Noise level at which a policy's video stops."""
        if self.sampling.video_end is not None:
            return self.sampling.video_end
        return 0.5 if self.drawn_levels == "decoupled" else 0.0

    @property
    def patches(self) -> int:
        """Tokens of a latent frame."""
        rows, columns = self.grid
        return rows * columns

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens of a latent frame."""
        rows, columns = self.tokenizer.grid
        return rows // self.patch, columns // self.patch

    def sizes(self, blocks: int) -> Sizes:
        """Numbers of tokens of a sequence of `blocks` blocks."""
        return Sizes(blocks, self.patches, self.chunk)

    @property
    def state_dim(self) -> int:
        """Dimension of proprioception, S."""
        return len(self.state_mean)

    @property
    def text_dim(self) -> int:
        """Dimension of an instruction's embedding."""
        return EMBEDDING_DIM

    @property
    def described(self) -> Specs:
        """The specs.

        Raises:
            ConfigError: the config has none; make it with `for_data`.
        """
        if self.specs is None:
            raise ConfigError("this config has no specs; make it with JointConfig.for_data(states, specs)")
        return self.specs

    @property
    def canvas(self) -> Canvas:
        """Layout of the cameras in the tokenizer's image."""
        return Canvas(self.described.observation.cameras, self.tokenizer.reduction * self.patch)

    @staticmethod
    def preset(name: str, family: str = "uwm") -> JointConfig:
        """Preset `"base"` (128 px, one GPU), `"small"` (64 px, 2 CPU cores) or `"tiny"` (tests) of a family."""
        if name == "base":
            return JointConfig(
                family, TokenizerConfig(image_size=128, widths=(64, 128, 256)), width=768, action_width=512,
                text_width=384, depth=12, heads=12, head_dim=64,
            )  # fmt: skip
        if name == "small":
            return JointConfig(family)
        if name == "tiny":
            return JointConfig(
                family, TokenizerConfig(widths=(8, 16, 32), blocks=(1, 1, 1), latent_channels=8), width=48,
                action_width=32, text_width=16, depth=2, heads=2, head_dim=16, state_width=32,
                blocks=2 if family_of(family).blocks > 1 else None,
            )  # fmt: skip
        raise ConfigError(f"unknown preset {name!r}; the presets are base, small, tiny")

    def for_data(self, states: np.ndarray, specs: Specs) -> JointConfig:
        """This config for other data.

        Args:
            states: `(F,S)` proprioception of the training logs.
            specs: specs of the data.

        Raises:
            ConfigError: the specs have no action spec.
        """
        if specs.action is None:
            raise ConfigError("these specs have no action spec; a joint model predicts actions")
        canvas = Canvas(specs.observation.cameras, self.tokenizer.reduction * self.patch)
        tokenizer = replace(self.tokenizer, image_size=canvas.size)
        if isinstance(tokenizer, TokenizerConfig):
            static = all(camera.static for camera in specs.observation.cameras)
            tokenizer = replace(tokenizer, background=tokenizer.background and static)
        return replace(
            self,
            tokenizer=tokenizer,
            state_mean=tuple(float(v) for v in states.mean(0)),
            state_std=tuple(max(float(v), 1e-3) for v in states.std(0)),
            action_dim=specs.action.dim,
            specs=specs,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        specs = None if self.specs is None else self.specs.to_dict()
        return {**asdict(replace(self, specs=None)), "specs": specs}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> JointConfig:
        """Rebuild from `to_dict`.

        Raises:
            ConfigError: unknown fields, or values of another type.
        """
        values = dict(data)
        specs, tokenizer = values.pop("specs", None), values.pop("tokenizer", {})
        sampling = sampling_of(values.pop("sampling", {}))
        read = from_values(cls, values, "joint model")
        return replace(
            read,
            tokenizer=tokenizer_config(tokenizer),
            sampling=sampling,
            specs=None if specs is None else Specs.from_dict(specs),
        )
