"""A light decoder of latents, distilled from the tokenizer's: a third of the operations.

Example::

    decoder = LightDecoder(16, (96, 48, 24))
    decoder(z)                     # (N, 16, 8, 8) -> (N, 3, 64, 64), the difference to the background image
"""

from __future__ import annotations

from torch import Tensor, nn

from worldgym.models.tokenizers.frame import ResidualBlock


class LightDecoder(nn.Module):
    """Latents `(N,C,h,w)` to `(N,3,8h,8w)` float: twice the difference of the pixels to the background image.

    Args:
        channels: channels of the latents.
        widths: channels at 1/8, 1/4 and 1/2 resolution.
    """

    def __init__(self, channels: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        w3, w2, w1 = widths
        self.net = nn.Sequential(
            nn.Conv2d(channels, w3, 3, padding=1), ResidualBlock(w3),
            nn.Conv2d(w3, 4 * w2, 1), nn.PixelShuffle(2), ResidualBlock(w2),
            nn.Conv2d(w2, 4 * w1, 1), nn.PixelShuffle(2), ResidualBlock(w1),
            nn.SiLU(), nn.Conv2d(w1, 12, 3, padding=1), nn.PixelShuffle(2),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        """Decode."""
        out: Tensor = self.net(z)
        return out
