"""The frame tokenizer: 8 x 8 pixels to 16 numbers (64 x 64 pixels to an 8 x 8 grid), and back.

All downstream models use its latents, so details that it loses cannot be recovered. For static cameras it encodes the
difference to the median image of the scene (the static part needs no capacity), and its losses give more weight to
pixels that differ from that image (an object covers 1 % of the pixels). Every latent vector has unit RMS, so that
predicted latents can be projected back onto the sphere at each step instead of fading.

Example::

    tokenizer = FrameTokenizer()
    z = tokenizer.encode(frames)      # (N, H, W, 3) uint8 -> (N, 16, 8, 8) float32
    reconstruction = tokenizer.decode(z)       # (N, 64, 64, 3) uint8
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldgym.errors import ConfigError
from worldgym.models.tokenizers.base import check_frames
from worldgym.utils.devices import autocast, rand, randn
from worldgym.utils.sizes import ImageSize, short, size_of


@dataclass(frozen=True)
class TokenizerConfig:
    """Shape of the tokenizer.

    Args:
        image_size: height and width in pixels, multiples of 8; one number for a square.
        latent_channels: numbers per grid cell.
        widths: channels at 1/2, 1/4 and 1/8 resolution.
        blocks: residual blocks at each of these resolutions.
        background: encode the difference to the median image of the training frames. For static cameras; with False
            every pixel is encoded and has the same weight.

    Raises:
        ConfigError: a size that is not a multiple of 8, or invalid widths or blocks.
    """

    image_size: ImageSize = 64
    latent_channels: int = 16
    widths: tuple[int, int, int] = (32, 64, 128)
    blocks: tuple[int, int, int] = (1, 2, 2)
    background: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", short(self.image_size))
        if any(side % 8 or side < 8 for side in self.size):
            raise ConfigError(f"image_size must be a multiple of 8, got {self.image_size}")
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if self.latent_channels < 1 or min(self.widths) < 1 or min(self.blocks) < 0:
            raise ConfigError(
                f"latent_channels and widths must be at least 1, blocks not negative; got {self}"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return size_of(self.image_size)

    @property
    def reduction(self) -> int:
        """Pixels along one side of a latent cell."""
        return 8

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the latent grid."""
        return self.size[0] // 8, self.size[1] // 8


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)  # starts as the identity, so it trains without normalisation layers
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N,C,h,w)` to the same shape."""
        return x + self.second(F.silu(self.first(F.silu(x))))


def unit_rms(z: Tensor, dim: int = 1) -> Tensor:
    """Scale vectors along `dim` to RMS 1."""
    return z * torch.rsqrt(z.square().mean(dim, keepdim=True) + 1e-6)


class FrameTokenizer(nn.Module):
    """Convolutional autoencoder with unit-RMS latents and, for static cameras, a background image."""

    def __init__(self, config: TokenizerConfig | None = None) -> None:
        super().__init__()
        c = self.config = config or TokenizerConfig()
        w1, w2, w3 = c.widths
        n1, n2, n3 = c.blocks
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2), nn.Conv2d(12, w1, 3, padding=1), *[ResidualBlock(w1) for _ in range(n1)],
            nn.PixelUnshuffle(2), nn.Conv2d(4 * w1, w2, 1), *[ResidualBlock(w2) for _ in range(n2)],
            nn.PixelUnshuffle(2), nn.Conv2d(4 * w2, w3, 1), *[ResidualBlock(w3) for _ in range(n3)],
            nn.SiLU(), nn.Conv2d(w3, c.latent_channels, 1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(c.latent_channels, w3, 3, padding=1), *[ResidualBlock(w3) for _ in range(n3)],
            nn.Conv2d(w3, 4 * w2, 1), nn.PixelShuffle(2), *[ResidualBlock(w2) for _ in range(n2)],
            nn.Conv2d(w2, 4 * w1, 1), nn.PixelShuffle(2), *[ResidualBlock(w1) for _ in range(n1)],
            nn.SiLU(), nn.Conv2d(w1, 12, 3, padding=1), nn.PixelShuffle(2),
        )  # fmt: skip
        self.background: Tensor
        if c.background:
            self.register_buffer("background", torch.full((3, *c.size), 0.5))
        else:  # no background image: mid-grey
            self.register_buffer("background", torch.full((3, 1, 1), 0.5), persistent=False)

    @property
    def latent_channels(self) -> int:
        """Numbers per grid cell."""
        return self.config.latent_channels

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.config.size

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the latent grid."""
        return self.config.grid

    @property
    def static_picture(self) -> Tensor | None:
        """The median image `(3,H,W)` in [0, 1], or None for moving cameras."""
        return self.background if self.config.background else None

    @staticmethod
    def project(z: Tensor, dim: int = 1) -> Tensor:
        """Scale the vectors along `dim` to RMS 1, as `encode` does."""
        return unit_rms(z, dim)

    def set_background(self, frames: Tensor) -> None:
        """Store the per-pixel median of `frames (N,H,W,3)` u8 as the background image, if the config has one."""
        if not self.config.background:
            return
        self.background.copy_(_pixels(frames).median(0).values)

    def encode_background(self) -> Tensor | None:
        """Latent `(C,h,w)` of the background image, or None for moving cameras."""
        if not self.config.background:
            return None
        return self.encode((self.background.permute(1, 2, 0) * 255).round().to(torch.uint8)[None])[0]

    def encode_pixels(self, x: Tensor) -> Tensor:
        """Encode `(N,3,H,W)` float in [0, 1] to unit-RMS latents `(N,C,h,w)`."""
        return unit_rms(self.encoder((x - self.background) * 2).float())

    def decode_pixels(self, z: Tensor) -> Tensor:
        """Decode latents `(N,C,h,w)` to `(N,3,H,W)` float, not clamped."""
        return self.decoder(z).float() / 2 + self.background

    @torch.no_grad()
    def encode(self, frames: Tensor, batch: int = 256) -> Tensor:
        """Encode `(N,H,W,3)` uint8 to `(N,C,h,w)` float32.

        Raises:
            ConfigError: the frames have another size or dtype.
        """
        check_frames(frames, self.config.size)
        frames = frames.to(self.background.device)
        with autocast(self.background.device):
            return torch.cat([self.encode_pixels(_pixels(f)) for f in frames.split(batch)]).float()

    @torch.no_grad()
    def decode(self, z: Tensor, batch: int = 256) -> Tensor:
        """Decode `(N,C,h,w)` to `(N,H,W,3)` uint8."""
        z = z.to(self.background.device)
        with autocast(self.background.device):
            out = [
                (self.decode_pixels(part).clamp(0, 1) * 255).round().to(torch.uint8)
                for part in z.split(batch)
            ]
        return torch.cat(out).permute(0, 2, 3, 1).contiguous()


def _pixels(frames: Tensor) -> Tensor:
    return frames.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last) / 255


def tokenizer_loss(
    tokenizer: FrameTokenizer, frames: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Foreground-weighted L1 + L2 reconstruction loss with noisy latents.

    Args:
        tokenizer: the model.
        frames: `(N,H,W,3)` uint8.
        generator: draws the latent noise, which makes the decoder robust to small errors of a world model.
    """
    x = _pixels(frames.to(tokenizer.background.device))
    with autocast(x.device):
        z = tokenizer.encode_pixels(x)
        level = 0.25 * rand((len(z), 1, 1, 1), generator, z.device)
        noisy = unit_rms(z + level * randn(z.shape, generator, z.device))
        y = tokenizer.decode_pixels(noisy)
    if tokenizer.static_picture is None:
        foreground = torch.zeros_like(x[:, :1])
    else:
        far = (x - tokenizer.static_picture).abs().amax(1, keepdim=True)
        foreground = F.max_pool2d((far > 0.07).float(), 3, 1, 1)
    weight = 1.0 + 5.0 * foreground
    weight = weight / weight.mean()
    error = y - x
    loss = (weight * (error.abs() + 4.0 * error.square())).mean()
    with torch.no_grad():
        mse = error.square().mean()
        metrics = {"psnr": -10 * float(mse.log10())}
        if tokenizer.static_picture is not None:
            fg = (error.square() * foreground).sum() / (3 * foreground.sum() + 1)
            metrics["psnr_foreground"] = -10 * float(fg.log10())
    return loss, metrics
