"""Protocol of frame tokenizers.

Example::

    assert isinstance(tokenizer, VideoTokenizer)
    z = tokenizer.encode(frames)          # (N, H, W, 3) uint8 -> (N, C, h, w) float32
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from worldgym.errors import ConfigError
from worldgym.utils.sizes import ImageSize, size_of


@runtime_checkable
class VideoTokenizer(Protocol):
    """Maps frames to a grid of latents and back. A `torch.nn.Module`; a world model stores its weights with its own."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        ...

    @property
    def latent_channels(self) -> int:
        """C."""
        ...

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the latent grid."""
        ...

    @property
    def static_picture(self) -> Tensor | None:
        """The static background `(3,H,W)` in [0, 1] that the tokenizer stores, or None."""
        ...

    def encode(self, frames: Tensor, batch: int = 256) -> Tensor:
        """Encode `(N,H,W,3)` uint8 to `(N,C,h,w)` float32 of about unit size."""
        ...

    def decode(self, z: Tensor, batch: int = 256) -> Tensor:
        """Decode `(N,C,h,w)` to `(N,H,W,3)` uint8."""
        ...

    def decode_pixels(self, z: Tensor) -> Tensor:
        """Decode `(N,C,h,w)` to `(N,3,H,W)` float, not clamped; differentiable."""
        ...

    def encode_background(self) -> Tensor | None:
        """Latent `(C,h,w)` of the static background, or None."""
        ...

    def project(self, z: Tensor, dim: int = 1) -> Tensor:
        """Project predicted latents onto the set of valid latents; `dim` is the channel axis."""
        ...


def check_frames(frames: Tensor, size: ImageSize, name: str = "frames") -> None:
    """Raise a ConfigError unless `frames` is `(..., H, W, 3)` uint8 of this size."""
    height, width = size_of(size)
    if frames.dtype != torch.uint8 or tuple(frames.shape[-3:]) != (height, width, 3):
        raise ConfigError(
            f"{name} are {str(frames.dtype).removeprefix('torch.')} of shape {tuple(frames.shape)}, expected uint8 "
            f"(..., {height}, {width}, 3); resize with PIL.Image.resize and keep values 0..255"
        )
