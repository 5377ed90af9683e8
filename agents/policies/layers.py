"""Building blocks of the policy: a text-modulated convolution block and a transformer block with an image memory.

Example::

    Block(width=192, heads=4, dropout=0.1)(queries, memory)
"""

from __future__ import annotations

from torch import Tensor, nn

from worldgym.nn import GroupNorm, TransformerBlock


class FiLMBlock(nn.Module):
    """Residual convolution block with features scaled and shifted by a text vector (FiLM)."""

    def __init__(self, channels: int, text_dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(text_dim, 2 * channels)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """`x (B,C,h,w)`, `text (B,E)` -> `(B,C,h,w)`."""
        scale, shift = self.film(text)[:, :, None, None].chunk(2, dim=1)
        h = self.norm(self.conv1(x)) * (1 + scale) + shift
        return x + self.conv2(nn.functional.gelu(h))


class Block(TransformerBlock):
    """Pre-norm transformer block: a few tokens attend to themselves and to a fixed image memory.

    The convolutions have already mixed the image. Not recomputing 64 image tokens in every layer makes the whole policy
    three times as fast on a CPU. `forward(x (B,N,D), memory (B,M,D) normalised)` returns `(B,N,D)`.

    Args:
        width: D.
        heads: attention heads.
        dropout: dropout rate of the attention and MLP outputs.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__(width, heads, affine=True, memory=True, dropout=dropout, float_softmax=False)
