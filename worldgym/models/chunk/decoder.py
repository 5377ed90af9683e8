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
        blocks: residual blocks at each of these resolutions.
    """

    def __init__(
        self, channels: int, widths: tuple[int, int, int], blocks: tuple[int, int, int] = (1, 1, 1)
    ) -> None:
        super().__init__()
        w3, w2, w1 = widths
        deep, middle, fine = (
            [ResidualBlock(w) for _ in range(n)] for w, n in zip(widths, blocks, strict=True)
        )
        self.net = nn.Sequential(
            nn.Conv2d(channels, w3, 3, padding=1), *deep,
            nn.Conv2d(w3, 4 * w2, 1), nn.PixelShuffle(2), *middle,
            nn.Conv2d(w2, 4 * w1, 1), nn.PixelShuffle(2), *fine,
            nn.SiLU(), nn.Conv2d(w1, 12, 3, padding=1), nn.PixelShuffle(2),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        """Decode."""
        out: Tensor = self.net(z)
        return out
