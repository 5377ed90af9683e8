"""Shapes of a world model and how it draws frames; saved as config.json beside the weights.

Why apart from the model: checkpoints, trainers and the command line speak of shapes without loading a network.

Example::

    config = WorldModelConfig.preset("small").for_data(states, action_dim=7, image_size=128, hand=False)
    model = VideoWorldModel(config)
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from worldgym.errors import ConfigError
from worldgym.models.tokenizer import TokenizerConfig
from worldgym.utils.typed import from_values

PRESETS = ("small", "tiny")


@dataclass(frozen=True)
class DynamicsConfig:
    """Shape of the transformer.

    Args:
        latent_channels, grid: the tokenizer's.
        patch: latent cells along one side of a token.
        width, depth, heads: of the transformer.
        window: frames that a frame sees, itself included; also the ring buffer's length.
        action_dim, state_dim: sizes of action and proprioception; 0 where no proprioception was recorded.
        anchor: whether a frame from before the window is an input as well.
        moved: whether the previous frame, moved as the hand is, is an input as well; then `shift` is where it begins.
        held: whether the anchor, moved by as much as the hand has carried something, is an input too; needs `moved`.
        holding: openings of the hand (the last state dimension, normalised) between which something is in it.
        low: height of the hand (the third state dimension, normalised) below which its sideways travel counts as
            carrying too, since it pushes there; None where it does not.
        moved_width: width of the net that moves latents.
        shift: latent cells (right, down) that a unit of each action dimension moves the hand in the image, as the
            training first assumes; it learns better.
    """

    latent_channels: int = 16
    grid: int = 8
    patch: int = 2
    width: int = 256
    depth: int = 4
    heads: int = 4
    window: int = 12
    action_dim: int = 4
    state_dim: int = 4
    anchor: bool = True
    moved: bool = True
    held: bool = True
    holding: tuple[float, float] = (-2.0, 0.0)
    low: float | None = -1.0
    moved_width: int = 96
    shift: tuple[tuple[float, ...], tuple[float, ...]] = ((0.95, 0.0, 0.0, 0.0), (0.0, -0.73, -0.61, 0.0))

    def __post_init__(self) -> None:
        for name, least in (("action_dim", 1), ("state_dim", 0), ("window", 1), ("depth", 1), ("patch", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least {least}")
        if self.grid % self.patch:
            raise ConfigError(f"patch {self.patch} does not divide the latent grid {self.grid}; try patch=1")
        if self.width % (2 * self.heads):
            raise ConfigError(f"width {self.width} must be a multiple of 2 * heads = {2 * self.heads}")
        if self.held and not self.moved:
            raise ConfigError("held=True needs moved=True: what is held is moved by the same net")
        if self.held and self.state_dim < 1:
            raise ConfigError("held=True needs proprioception, got state_dim=0; try held=False")
        if self.held and self.low is not None and self.state_dim < 4:
            raise ConfigError(
                f"low={self.low} needs proprioception x, y, z, ..., opening; got state_dim={self.state_dim}; "
                "try low=None"
            )
        low, high = self.holding
        object.__setattr__(self, "holding", (low, high))
        right, down = self.shift  # json gives lists
        object.__setattr__(self, "shift", (tuple(right), tuple(down)))
        if self.moved and not len(right) == len(down) == self.action_dim:
            raise ConfigError(
                f"shift needs {self.action_dim} numbers for right and down each; got {self.shift}"
            )

    @property
    def tokens(self) -> int:
        """Tokens per frame."""
        return (self.grid // self.patch) ** 2


@dataclass(frozen=True)
class SamplerConfig:
    """How a frame is drawn.

    Args:
        steps: denoising passes per frame; 1 paints the mean of what may happen (and uses no noise), more let the sample
            decide.
        dtype: `"bfloat16"` or `"float32"` for the transformer.
        mask: which of the passes run the network; at the others its last answer serves again. Empty runs all. This is
            the fixed form of DreamZero's caching of velocities; the adaptive form would look at the batch, and what a
            row dreams must not depend on its neighbours.
    """

    steps: int = 2
    dtype: str = "bfloat16"
    mask: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"sampler steps must be at least 1, got {self.steps}")
        if self.dtype not in ("bfloat16", "float32"):
            raise ConfigError(f"sampler dtype must be 'bfloat16' or 'float32', got {self.dtype!r}")
        mask = tuple(bool(runs) for runs in self.mask)  # json gives a list
        object.__setattr__(self, "mask", mask)
        if mask and (len(mask) != self.steps or not mask[0]):
            raise ConfigError(
                f"sampler mask must say True or False for each of {self.steps} passes, the first True; got {mask}"
            )

    def runs(self, i: int) -> bool:
        """Whether the network runs at pass `i`."""
        return not self.mask or self.mask[i]

    def times(self) -> list[float]:
        """Noise levels of the passes, evenly from 1 downwards."""
        return [1.0 - i / self.steps for i in range(self.steps)]


@dataclass(frozen=True)
class WorldModelConfig:
    """Everything needed to build the model; saved as config.json beside the weights.

    Args:
        tokenizer, dynamics: their shapes.
        sampler: how frames are drawn.
        state_mean, state_std: of the data's proprioception, per dimension.
        tasks: verbs that the training logs covered.
    """

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    state_mean: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    state_std: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    tasks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        t, d = self.tokenizer, self.dynamics
        wanted = (t.latent_channels, t.image_size // 8, len(self.state_mean), len(self.state_std))
        found = (d.latent_channels, d.grid, d.state_dim, d.state_dim)
        if wanted != found:
            raise ConfigError(
                "the parts of this world model do not fit: the tokenizer has latents of "
                f"{t.latent_channels} x {wanted[1]} x {wanted[1]} and state_mean and state_std {wanted[2]} and "
                f"{wanted[3]} numbers, but the dynamics take {d.latent_channels} x {d.grid} x {d.grid} and "
                f"{d.state_dim}; make the shape with WorldModelConfig.for_data"
            )

    @staticmethod
    def preset(name: str) -> WorldModelConfig:
        """`"small"` (bundled, 2 CPU cores) or `"tiny"` (tests)."""
        if name == "small":
            return WorldModelConfig()
        if name == "tiny":
            return WorldModelConfig(
                TokenizerConfig(widths=(8, 16, 32), blocks=(1, 1, 1), latent_channels=8),
                DynamicsConfig(latent_channels=8, width=64, depth=2, heads=2, window=4),
            )
        raise ConfigError(f"unknown preset {name!r}; the presets are {', '.join(PRESETS)}")

    def for_data(
        self, states: np.ndarray, action_dim: int, image_size: int = 64, *, hand: bool = True
    ) -> WorldModelConfig:
        """This shape for other data: its proprioception's mean and spread, its sizes, nothing assumed of its camera.

        Twice the side of a frame is twice that of the latent grid, and four times the tokens.

        Args:
            states: `(F,S)` proprioception of the training logs.
            action_dim: A.
            image_size: pixels along a side, a multiple of 8.
            hand: whether proprioception is a hand's: x, y, z first and the opening of its fingers last. Without that
                knowledge nothing is moved or held in latents.

        Raises:
            ConfigError: `hand` with fewer than four dimensions of proprioception.
        """
        d = self.dynamics
        same = (action_dim, states.shape[1], image_size) == (
            d.action_dim,
            d.state_dim,
            self.tokenizer.image_size,
        )
        still, grid = (0.0,) * action_dim, image_size // 8
        mean, std = states.mean(0), states.std(0) + 1e-6
        own = replace(
            self,
            tokenizer=replace(self.tokenizer, image_size=image_size),
            dynamics=replace(
                d, action_dim=action_dim, state_dim=states.shape[1], grid=grid,
                patch=1 if grid % d.patch else d.patch, shift=d.shift if same and hand else (still, still),
                moved=d.moved and hand, held=d.held and hand, low=None,
            ),
            state_mean=tuple(float(v) for v in mean),
            state_std=tuple(float(v) for v in std),
        )  # fmt: skip
        if not hand:
            return own
        if states.shape[1] < 4:
            raise ConfigError(
                f"proprioception has {states.shape[1]} dimensions; a hand's has at least four: x, y, z, ..., opening"
            )
        shut, wide = np.percentile(states[:, -1], (1, 99))
        floor, ceiling = np.percentile(states[:, 2], (1, 99))
        low = float((floor + 0.2 * (ceiling - floor) - mean[2]) / std[2]) if ceiling > floor else None
        holding = tuple(float((shut + share * (wide - shut) - mean[-1]) / std[-1]) for share in (0.2, 0.9))
        return replace(own, dynamics=replace(own.dynamics, holding=holding, low=low))

    @staticmethod
    def from_dict(data: dict[str, Any]) -> WorldModelConfig:
        """Inverse of `dataclasses.asdict`."""
        data = dict(data)
        dynamics = dict(data["dynamics"])
        if dynamics.get("moved") and "moved_width" not in dynamics:
            raise ConfigError(
                "it moves frames through pixels, as this version no longer does; imagine with the version that made "
                "it, or train anew with `worldgym train world-model --data DATA --tokenizer TOKENIZER`"
            )
        # Older checkpoints lacked these and do not say so.
        data["dynamics"] = {"anchor": False, "moved": False, "held": False, "low": None, **dynamics}
        return from_values(WorldModelConfig, data)
