"""The temporal VAE of Wan and Cosmos: the first frame alone, then one latent frame for every 4 frames.

Its encoder and decoder are causal in time: a latent frame depends on its own and earlier frames only, and a frame on
its own and earlier latent frames only.

Example::

    vae = TemporalVAE(AutoencoderKLWan(...))
    z = vae.encode(frames)             # (B, 1 + 4n, H, W, 3) uint8 -> (B, 1 + n, C, h, w)
    frames = vae.decode(z)             # and back
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from worldgym.errors import ConfigError


class TemporalVAE(nn.Module):
    """`diffusers.AutoencoderKLWan` with standardised latents.

    Args:
        autoencoder: the VAE; `latents_mean` and `latents_std` of its config are taken over.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        for name in ("mean", "std"):
            values = torch.tensor(autoencoder.config[f"latents_{name}"], dtype=torch.float32)
            self.register_buffer(f"latent_{name}", values[:, None, None])

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.autoencoder.parameters()).dtype

    def encode_pixels(self, x: Tensor) -> Tensor:
        """Encode `(B,3,T,H,W)` in [-1, 1], T = 1 + 4n, to latents that are not standardised `(B,C,1+n,h,w)`."""
        mode: Tensor = self.autoencoder.encode(x.to(self.dtype)).latent_dist.mode()
        return mode

    def standardise(self, z: Tensor) -> Tensor:
        """Latents `(B,T,C,h,w)` float32 of about unit size, of `z (B,C,T,h,w)`."""
        return (z.transpose(1, 2).float() - self.latent_mean) / self.latent_std

    @torch.no_grad()
    def encode(self, frames: Tensor, batch: int = 16) -> Tensor:
        """Encode `(B,T,H,W,3)` uint8 to `(B,1+n,C,h,w)` float32, T = 1 + 4n.

        Raises:
            ConfigError: another number of frames.
        """
        if frames.shape[1] % 4 != 1:
            raise ConfigError(f"the VAE encodes 1 + 4n frames, got {frames.shape[1]}; cut the clip")
        parts = []
        for part in frames.to(self.latent_mean.device).split(batch):
            pixels = part.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
            parts.append(self.standardise(self.encode_pixels(pixels)))
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, z: Tensor, batch: int = 16) -> Tensor:
        """Decode `(B,1+n,C,h,w)` to `(B,1+4n,H,W,3)` uint8."""
        parts = []
        for part in z.to(self.latent_mean.device).split(batch):
            latents = (part * self.latent_std + self.latent_mean).transpose(1, 2).to(self.dtype)
            pixels = self.autoencoder.decode(latents).sample.float()  # (B, 3, T, H, W), clamped
            parts.append(((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1))
        return torch.cat(parts).contiguous()

    @torch.no_grad()
    def fit(self, z: Tensor) -> None:
        """Set the standardisation from standardised latents `(..., C, h, w)`, e.g. of the training logs."""
        z = z.flatten(0, -4).float()
        mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3), correction=0).clamp_min(1e-4)
        self.latent_mean += mean[:, None, None] * self.latent_std
        self.latent_std *= std[:, None, None]
