"""Building blocks of the policy: a convolution block that words modulate, and a transformer block with a memory.

Example::

    Block(width=192, heads=4, dropout=0.1)(queries, memory)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FiLMBlock(nn.Module):
    """Residual convolution block whose features a text vector scales and shifts."""

    def __init__(self, channels: int, text_dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(text_dim, 2 * channels)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """`x (B,C,h,w)`, `text (B,E)` -> `(B,C,h,w)`."""
        scale, shift = self.film(text)[:, :, None, None].chunk(2, dim=1)
        h = self.norm(self.conv1(x)) * (1 + scale) + shift
        return x + self.conv2(nn.functional.gelu(h))


class Block(nn.Module):
    """Pre-norm transformer block: a few tokens attend to themselves and to a fixed image memory.

    The convolutions have mixed the image already; not recomputing 64 image tokens in every layer makes the whole
    policy three times as fast on a CPU.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """`x (B,N,D)`, `memory (B,M,D)` normalised -> `(B,N,D)`."""
        batch, _, width = x.shape
        split = (batch, -1, self.heads, width // self.heads)
        normed = self.norm1(x)
        q = self.q(normed).view(split).transpose(1, 2)
        source = torch.cat([memory, normed.to(memory.dtype)], dim=1)
        k, v = (t.reshape(split).transpose(1, 2) for t in self.kv(source).chunk(2, dim=-1))
        # By hand: on CPU the fused kernel's backward costs more than everything else at these lengths.
        weights = torch.softmax(q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5, dim=-1)
        attended = (weights.to(v.dtype) @ v).transpose(1, 2).reshape(batch, -1, width)
        x = x + self.drop(self.out(attended))
        return x + self.drop(self.mlp(self.norm2(x)))
