"""Shapes of a world model and how it draws frames; saved as config.json beside the weights.

Why apart from the model: checkpoints, trainers and the command line speak of shapes without loading a network.

Example::

    config = WorldModelConfig.preset("small").for_data(states, action_dim=7, image_size=128)
    model = VideoWorldModel(config)
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from worldgym.models.dynamics import DynamicsConfig
from worldgym.models.tokenizer import TokenizerConfig


@dataclass(frozen=True)
class SamplerConfig:
    """How a frame is drawn.

    Args:
        steps: denoising passes per frame; 1 paints the mean of what may happen (and uses no noise), more let the sample
            decide.
        dtype: `"bfloat16"` or `"float32"` for the transformer.
    """

    steps: int = 2
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"sampler steps must be at least 1, got {self.steps}")
        if self.dtype not in ("bfloat16", "float32"):
            raise ValueError(f"sampler dtype must be 'bfloat16' or 'float32', got {self.dtype!r}")

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
        raise ValueError(f"unknown preset {name!r}; known: 'small', 'tiny'")

    def for_data(self, states: np.ndarray, action_dim: int, image_size: int = 64) -> WorldModelConfig:
        """This shape for other data: its proprioception's mean and spread, its sizes, nothing assumed of its camera.

        Twice the side of a frame is twice that of the latent grid, and four times the tokens.

        Args:
            states: `(F,S)` proprioception of the training logs.
            action_dim: A.
            image_size: pixels along a side, a multiple of 8.
        """
        d = self.dynamics
        same = (action_dim, states.shape[1], image_size) == (
            d.action_dim,
            d.state_dim,
            self.tokenizer.image_size,
        )
        still = (0.0,) * action_dim
        mean, std = states.mean(0), states.std(0) + 1e-6
        shut, wide = np.percentile(states[:, -1], (1, 99))
        return replace(
            self,
            tokenizer=replace(self.tokenizer, image_size=image_size),
            dynamics=replace(
                d, action_dim=action_dim, state_dim=states.shape[1], grid=image_size // 8,
                shift=d.shift if same else (still, still),
                holding=tuple(
                    float((shut + share * (wide - shut) - mean[-1]) / std[-1]) for share in (0.2, 0.9)
                ),
            ),
            state_mean=tuple(float(v) for v in mean),
            state_std=tuple(float(v) for v in std),
        )  # fmt: skip

    @staticmethod
    def from_dict(data: dict[str, Any]) -> WorldModelConfig:
        """Inverse of `dataclasses.asdict`."""
        data = dict(data)
        # Older checkpoints lacked these and do not say so.
        dynamics = {"anchor": False, "moved": False, "held": False, **data.pop("dynamics")}
        return WorldModelConfig(
            TokenizerConfig(**data.pop("tokenizer")), DynamicsConfig(**dynamics),
            SamplerConfig(**data.pop("sampler")), **{k: tuple(v) for k, v in data.items()},
        )  # fmt: skip
