"""Configuration of a chunk world model; saved as config.json next to the weights.

Example::

    config = ChunkConfig(chunk=5).for_data(states, specs, slots=probe.config.parts)
    model = ChunkWorldModel(config)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from worldgym.errors import ConfigError
from worldgym.models.canvas import Canvas
from worldgym.models.tokenizers import AnyTokenizerConfig, TokenizerConfig, tokenizer_config
from worldgym.specs import Specs
from worldgym.utils.typed import from_values

HAND = "hand"
"""Name of the part of a position probe that is the robot's hand."""


@dataclass(frozen=True)
class ChunkConfig:
    """Shape of a chunk world model.

    Args:
        tokenizer: config of the frame tokenizer; its frames are the canvas of all cameras.
        chunk: largest number of actions of one pass, K. Shorter chunks are passes with fewer actions.
        patch: latent cells along one side of a token.
        width: width of the transformer.
        depth: number of its layers.
        heads: number of attention heads.
        parts: names of the parts that the position probe locates; empty for data without a probe. The part `hand` is
            the robot's hand, the others are objects with a slot each.
        probe_width: width of the position probe.
        memory: numbers that each slot keeps from one chunk to the next.
        slot_width: width of the network that moves slots.
        kin_width: width of the network that predicts proprioception.
        decoder_widths: channels of the light decoder at 1/8, 1/4 and 1/2 resolution; None decodes with the tokenizer.
        decoder_blocks: residual blocks of the light decoder at each of these resolutions.
        between_width: width of the network that interpolates the frames within a chunk; None predicts each by a pass.
        members: members of an ensemble with one trunk; 1 for a single model. See `worldgym.models.chunk.members`.
        own_layers: last layers of the transformer that each member has for itself, with all that follows them.
        state_mean: mean of the data's proprioception, per dimension.
        state_std: standard deviation of the data's proprioception, per dimension.
        action_dim: A.
        dtype: precision of inference: `"float32"`, or `"bfloat16"` on devices on which it is faster.
        tasks: tasks in the training logs.
        specs: observation and action specs.

    Raises:
        ConfigError: an invalid shape.
    """

    tokenizer: AnyTokenizerConfig = field(default_factory=TokenizerConfig)
    chunk: int = 5
    patch: int = 2
    width: int = 256
    depth: int = 4
    heads: int = 4
    parts: tuple[str, ...] = ()
    probe_width: int = 48
    memory: int = 32
    slot_width: int = 128
    kin_width: int = 160
    decoder_widths: tuple[int, int, int] | None = None
    decoder_blocks: tuple[int, int, int] = (1, 1, 1)
    between_width: int | None = None
    members: int = 1
    own_layers: int = 1
    state_mean: tuple[float, ...] = ()
    state_std: tuple[float, ...] = ()
    action_dim: int = 4
    dtype: str = "bfloat16"
    tasks: tuple[str, ...] = ()
    specs: Specs | None = None

    def __post_init__(self) -> None:
        for name in ("chunk", "patch", "depth", "action_dim", "memory", "members", "own_layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.own_layers > self.depth:
            raise ConfigError(f"own_layers is {self.own_layers}, but there are {self.depth} layers; try own_layers=1")
        if self.width % (2 * self.heads):
            raise ConfigError(f"width {self.width} must be a multiple of 2 * heads = {2 * self.heads}")
        if any(side % self.patch for side in self.tokenizer.grid):
            raise ConfigError(
                f"patch {self.patch} does not divide the latent grid {self.tokenizer.grid}; try patch=1"
            )
        if len(self.state_mean) != len(self.state_std):
            raise ConfigError("state_mean and state_std have different lengths")
        if self.dtype not in ("bfloat16", "float32"):
            raise ConfigError(f"dtype must be 'bfloat16' or 'float32', got {self.dtype!r}")
        if self.parts and self.tokenizer.size[0] != self.tokenizer.size[1]:
            raise ConfigError("a position probe takes square frames of one camera; leave parts empty")

    @property
    def state_dim(self) -> int:
        """Dimension of proprioception, S."""
        return len(self.state_mean)

    @property
    def objects(self) -> tuple[str, ...]:
        """Names of the parts with a slot."""
        return tuple(name for name in self.parts if name != HAND)

    @property
    def cells(self) -> tuple[int, int]:
        """Height and width of the latent grid."""
        return self.tokenizer.grid

    @property
    def described(self) -> Specs:
        """The specs.

        Raises:
            ConfigError: the config has none; make it with `for_data`.
        """
        if self.specs is None:
            raise ConfigError("this config has no specs; make it with ChunkConfig.for_data(states, specs)")
        return self.specs

    @property
    def canvas(self) -> Canvas:
        """Layout of the cameras in the tokenizer's image."""
        return Canvas(self.described.observation.cameras, self.tokenizer.reduction * self.patch)

    @staticmethod
    def preset(name: str) -> ChunkConfig:
        """Preset `"base"` (128 px, 64 tokens a frame, one GPU), `"small"` (64 px, 2 CPU cores) or `"tiny"` (tests)."""
        if name == "base":
            return ChunkConfig(
                TokenizerConfig(image_size=128, widths=(64, 128, 256)), width=768, depth=12, heads=12,
                decoder_widths=(192, 128, 32), decoder_blocks=(1, 1, 0), between_width=128, slot_width=256,
            )  # fmt: skip
        if name == "small":
            return ChunkConfig(decoder_widths=(96, 64, 16), decoder_blocks=(1, 1, 0), between_width=64)
        if name == "tiny":
            return ChunkConfig(
                TokenizerConfig(widths=(8, 16, 32), blocks=(1, 1, 1), latent_channels=8),
                width=64, depth=1, heads=2, slot_width=32, kin_width=32, probe_width=8, decoder_widths=(16, 8, 8),
                between_width=16,
            )  # fmt: skip
        raise ConfigError(f"unknown preset {name!r}; the presets are base, small, tiny")

    def for_data(self, states: np.ndarray, specs: Specs, parts: Sequence[str] = ()) -> ChunkConfig:
        """This config for other data.

        Args:
            states: `(F,S)` proprioception of the training logs.
            specs: specs of the data.
            parts: parts that a position probe of these frames locates.

        Raises:
            ConfigError: the specs have no action spec.
        """
        if specs.action is None:
            raise ConfigError("these specs have no action spec; a chunk model is conditioned on actions")
        canvas = Canvas(specs.observation.cameras, self.tokenizer.reduction * self.patch)
        tokenizer = replace(self.tokenizer, image_size=canvas.size)
        if isinstance(tokenizer, TokenizerConfig):
            static = all(camera.static for camera in specs.observation.cameras)
            tokenizer = replace(tokenizer, background=tokenizer.background and static)
        return replace(
            self,
            tokenizer=tokenizer,
            decoder_widths=self.decoder_widths if isinstance(tokenizer, TokenizerConfig) else None,
            parts=tuple(parts),
            state_mean=tuple(float(v) for v in states.mean(0)),
            state_std=tuple(float(v) for v in states.std(0) + 1e-6),
            action_dim=specs.action.dim,
            specs=specs,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        specs = None if self.specs is None else self.specs.to_dict()
        return {**asdict(replace(self, specs=None)), "specs": specs}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ChunkConfig:
        """Rebuild from `to_dict`.

        Raises:
            ConfigError: unknown fields, or values of another type.
        """
        values = dict(data)
        specs, tokenizer = values.pop("specs", None), values.pop("tokenizer", {})
        read = from_values(cls, values, "chunk world model")
        return replace(
            read,
            tokenizer=tokenizer_config(tokenizer),
            specs=None if specs is None else Specs.from_dict(specs),
        )
