"""A small decoder in place of the one of the temporal VAE: frames of a latent frame from it and the one before.

The VAE's decoder has a memory over the whole clip and takes a large part of the time of a few-step sampler. This one
looks back by one latent frame, and is distilled from logs (`worldgym.training.tiny_decoder`), like TAEHV
(github.com/madebyollin/taehv).

Example::

    decoder = TinyDecoder(channels=48, reduction=16, width=64)
    decoder.decode(z)                 # (B, 1 + n, 48, h, w) -> (B, 1 + 4n, 16 h, 16 w, 3) uint8, as TemporalVAE.decode
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from worldgym.models.tokenizers.frame import ResidualBlock


class TinyDecoder(nn.Module):
    """Convolutions at each resolution, with pixel shuffles between them.

    Args:
        channels: latent channels, C.
        reduction: pixels along one side of a latent cell, a power of 2.
        width: channels at the resolution of the latents; halved with every doubling of it, to 16 at least.
        per_frame: frames of a latent frame, r.
    """

    def __init__(self, channels: int, reduction: int, width: int, per_frame: int = 4) -> None:
        super().__init__()
        self.per_frame = per_frame
        levels = int(math.log2(reduction))
        widths = [max(min(16, width), width // 2**i) for i in range(levels)]
        layers: list[nn.Module] = [nn.Conv2d(2 * channels, widths[0], 3, padding=1), ResidualBlock(widths[0])]
        for coarse, fine in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(coarse, 4 * fine, 1), nn.PixelShuffle(2), ResidualBlock(fine)]
        layers += [nn.SiLU(), nn.Conv2d(widths[-1], 3 * per_frame * 4, 3, padding=1), nn.PixelShuffle(2)]
        self.net = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Pixels `(B,T,r,3,H,W)`, in [-1, 1] after training, of latent frames `z (B,T,C,h,w)`.

        Of the first latent frame, which is one frame only, the last of the r counts.
        """
        before = torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1)
        pixels: Tensor = self.net(torch.cat([before, z], 2).flatten(0, 1))
        return pixels.unflatten(1, (self.per_frame, 3)).unflatten(0, z.shape[:2])

    @torch.no_grad()
    def decode(self, z: Tensor, batch: int = 64) -> Tensor:
        """Decode `(B,1+n,C,h,w)` to `(B,1+4n,H,W,3)` uint8."""
        parts = []
        for part in z.split(batch):
            pixels = self(part).clamp(-1, 1)
            clip = pixels.flatten(1, 2)[:, self.per_frame - 1 :]
            parts.append(((clip + 1) * 127.5).round().to(torch.uint8).permute(0, 1, 3, 4, 2))
        return torch.cat(parts).contiguous()
