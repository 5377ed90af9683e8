"""Any image autoencoder of diffusers as a tokenizer: AutoencoderTiny, AutoencoderDC, AutoencoderKL.

Its latents are standardised per channel, so that the dynamics gets values of unit size regardless of the autoencoder's
own scale. diffusers is imported when such a tokenizer is created, which takes several seconds.

Example::

    vae = AutoencoderTiny.from_pretrained("madebyollin/taesd")
    tokenizer = DiffusersTokenizer.of(vae, image_size=(256, 320)).fit(frames)        # frames (N, 256, 320, 3) uint8
    z = tokenizer.encode(frames)                                                     # (N, 4, 32, 40)
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from worldgym.errors import ConfigError
from worldgym.models.tokenizers.base import check_frames
from worldgym.utils.sizes import ImageSize, short, size_of

KINDS = ("AutoencoderTiny", "AutoencoderDC", "AutoencoderKL")


@dataclass(frozen=True)
class DiffusersTokenizerConfig:
    """Config of a tokenizer made from a diffusers autoencoder.

    Args:
        kind: class name of the autoencoder in diffusers, one of `KINDS`.
        image_size: height and width in pixels; one number for a square.
        settings: config of that class, as in its `config.json`.
        latent_channels: number of latent channels.
        reduction: pixels along one side of a latent cell: 8, or 32 for AutoencoderDC.

    Raises:
        ConfigError: an unsupported class, or an impossible size.
    """

    kind: str
    image_size: ImageSize = 64
    settings: dict[str, Any] = field(default_factory=dict)
    latent_channels: int = 4
    reduction: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", short(self.image_size))
        if self.kind not in KINDS:
            raise ConfigError(f"unknown autoencoder {self.kind!r}; the classes are {', '.join(KINDS)}")
        if self.reduction < 1 or any(side % self.reduction or side < 1 for side in self.size):
            raise ConfigError(f"image_size must be a multiple of {self.reduction}, got {self.image_size}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return size_of(self.image_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the latent grid."""
        return self.size[0] // self.reduction, self.size[1] // self.reduction


class DiffusersTokenizer(nn.Module):
    """A diffusers autoencoder as a `worldgym.models.tokenizers.base.VideoTokenizer`.

    Args:
        config: the autoencoder and the size of frames.
        autoencoder: autoencoder with weights; None creates one from `config.settings`, to be loaded.

    Raises:
        ConfigError: the shape of the latents differs from the config.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: DiffusersTokenizerConfig, autoencoder: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.autoencoder: Any = autoencoder if autoencoder is not None else _build(config)
        channels, *grid = _latent_shape(self.autoencoder, config.size)
        if (channels, *grid) != (config.latent_channels, *config.grid):
            raise ConfigError(
                f"this {config.kind} has {channels} channels and latents of {grid} cells for {config.size} pixels, the "
                f"config says {config.latent_channels} and {config.grid}; make it with DiffusersTokenizer.of"
            )
        self.register_buffer("latent_mean", torch.zeros(channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(channels, 1, 1))

    @classmethod
    def of(cls, autoencoder: nn.Module, image_size: ImageSize) -> DiffusersTokenizer:
        """Create a tokenizer from a loaded autoencoder."""
        values: Any = autoencoder.config
        settings = json.loads(json.dumps({k: v for k, v in dict(values).items() if not k.startswith("_")}))
        channels, rows, _ = _latent_shape(autoencoder, size_of(image_size))
        kind, reduction = type(autoencoder).__name__, size_of(image_size)[0] // rows
        return cls(DiffusersTokenizerConfig(kind, image_size, settings, channels, reduction), autoencoder)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.config.size

    @property
    def latent_channels(self) -> int:
        """C."""
        return self.config.latent_channels

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the latent grid."""
        return self.config.grid

    @property
    def static_picture(self) -> None:
        """None; this tokenizer has no background image."""
        return None

    def encode_background(self) -> None:
        """None; this tokenizer has no background image."""
        return None

    @torch.no_grad()
    def fit(self, frames: Tensor, batch: int = 64) -> DiffusersTokenizer:
        """Set the standardisation from the latents of `frames (N,H,W,3)` uint8; returns self."""
        z = self.encode(frames, batch) * self.latent_std + self.latent_mean
        self.latent_mean.copy_(z.mean((0, 2, 3))[:, None, None])
        self.latent_std.copy_(z.std((0, 2, 3), correction=0).clamp_min(1e-4)[:, None, None])
        return self

    @staticmethod
    def project(z: Tensor, dim: int = 1) -> Tensor:
        """Return predicted latents unchanged."""
        return z

    def encode_pixels(self, x: Tensor) -> Tensor:
        """Encode `(N,3,H,W)` float in [0, 1] to standardised latents `(N,C,h,w)`."""
        return (_encoded(self.autoencoder, 2 * x - 1).float() - self.latent_mean) / self.latent_std

    def decode_pixels(self, z: Tensor) -> Tensor:
        """Decode latents `(N,C,h,w)` to `(N,3,H,W)` float, not clamped."""
        picture: Tensor = self.autoencoder.decode(z * self.latent_std + self.latent_mean).sample
        return (picture.float() + 1) / 2

    @torch.no_grad()
    def encode(self, frames: Tensor, batch: int = 64) -> Tensor:
        """Encode `(N,H,W,3)` uint8 to `(N,C,h,w)` float32.

        Raises:
            ConfigError: the frames have another size or dtype.
        """
        check_frames(frames, self.config.size)
        frames = frames.to(self.latent_mean.device)
        parts = [self.encode_pixels(part.permute(0, 3, 1, 2).float() / 255) for part in frames.split(batch)]
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, z: Tensor, batch: int = 64) -> Tensor:
        """Decode `(N,C,h,w)` to `(N,H,W,3)` uint8."""
        z = z.to(self.latent_mean.device)
        parts = [
            (self.decode_pixels(part).clamp(0, 1) * 255).round().to(torch.uint8) for part in z.split(batch)
        ]
        return torch.cat(parts).permute(0, 2, 3, 1).contiguous()


def _encoded(autoencoder: Any, x: Tensor) -> Tensor:
    encoded = autoencoder.encode(x)
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.mode()  # type: ignore[no-any-return]
    return encoded.latents if hasattr(encoded, "latents") else encoded.latent  # type: ignore[no-any-return]


@torch.no_grad()
def _latent_shape(autoencoder: Any, size: tuple[int, int]) -> tuple[int, int, int]:
    shape = _encoded(autoencoder, torch.zeros(1, 3, *size, device="cpu").to(next(autoencoder.parameters()))).shape
    return shape[1], shape[2], shape[3]


def _build(config: DiffusersTokenizerConfig) -> nn.Module:
    import diffusers

    made: nn.Module = getattr(diffusers, config.kind).from_config(config.settings)
    return made
