"""Frozen features of single frames: the tokenizer of a world model, whose latents become tokens.

Every frame is encoded by itself. The features of a frame therefore hold nothing about any other frame, which the
encoders of video that VLA-JEPA and V-JEPA 2 use do not guarantee: they attend in both directions of time.

Example::

    encoder = FrozenEncoder.load("tabletop-small", image_size=(64, 64))
    encoder(frames).shape          # (N, 64, 64, 3) uint8 -> (N, 16, 64) float32
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldgym.errors import ConfigError
from worldgym.nn import to_tokens


class FrozenEncoder:
    """Tokens of single frames. It is no module: its weights are neither trained nor saved.

    Args:
        tokenizer: with `encode`, `image_size`, `latent_channels` and `grid` (`worldgym.models.tokenizers`).
        name: name for messages; features are kept under it.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self.tokenizer, self.name = tokenizer, name
        self.size: tuple[int, int] = tuple(tokenizer.image_size)
        rows, columns = tokenizer.grid
        self.patch = 2 if rows % 2 == 0 and columns % 2 == 0 else 1
        self.grid = (rows // self.patch, columns // self.patch)
        self.width = int(tokenizer.latent_channels) * self.patch**2

    @classmethod
    def load(
        cls, name: str | Path, image_size: tuple[int, int], device: torch.device | None = None
    ) -> FrozenEncoder:
        """The tokenizer of a world model.

        Args:
            name: a bundled checkpoint, or the folder of a world model.
            image_size: height and width of the frames, in pixels.
            device: where it runs.

        Raises:
            CheckpointError: there is no such world model.
            ConfigError: it has no tokenizer of frames, or one for another size.
        """
        from worldgym.models import load_world_model

        model = load_world_model(name, device=None if device is None else str(device))
        tokenizer = getattr(model, "tokenizer", None)
        if tokenizer is None:
            raise ConfigError(
                f"encoder={name}: this world model has no tokenizer of frames; give one of type video or chunk"
            )
        found = cls(tokenizer, str(name))
        if found.size != tuple(image_size):
            raise ConfigError(
                f"encoder={name} reads frames of {found.size[0]} x {found.size[1]} pixels, and the policy those of "
                f"{image_size[0]} x {image_size[1]}; train one on these data (worldgym train "
                "world-model --help) and type --aux-settings encoder=FOLDER"
            )
        return found

    @property
    def tokens(self) -> int:
        """Tokens of a frame, P."""
        return self.grid[0] * self.grid[1]

    def __call__(self, frames: Tensor) -> Tensor:
        """`(N,H,W,3)` uint8 -> `(N,P,C)` float32, without gradients."""
        with torch.no_grad():
            return to_tokens(self.tokenizer.encode(frames).float(), self.patch)
