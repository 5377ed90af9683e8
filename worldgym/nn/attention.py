"""Explicit attention, and rotary position embeddings over one to three axes.

Attention is not fused because, with the few queries of one frame, the fused kernel is slower on a CPU; its backward
pass took 41 % of a training step. The softmax is computed in float32 by default.

Example::

    rotary = Rotary.of(torch.arange(8), head_dim=64)
    y = attend(rotary.turn(q), rotary.turn(k), v, mask)      # q, k, v (B, heads, L, 64) -> (B, L, heads * 64)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from worldgym.errors import ConfigError


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, float_softmax: bool = True
) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1).

    Args:
        q: queries `(B, heads, Lq, E)`.
        k: keys `(B, heads, Lk, E)`.
        v: values `(B, heads, Lk, E)`.
        mask: added to the scores, broadcast to `(B, heads, Lq, Lk)`; see `worldgym.nn.kv_cache.additive`.
        float_softmax: softmax in float32; False keeps the dtype of the scores, which then also rounds the gradient.

    Returns:
        `(B, Lq, heads * E)`.
    """
    score = (q @ k.transpose(-1, -2)) * (q.shape[-1] ** -0.5)
    if mask is not None:
        score = score + mask
    score = score.float() if float_softmax else score
    return (score.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)


class Rotary(NamedTuple):
    """Rotary position embedding (Su et al. 2021): pairs of channels, rotated by angles proportional to the position.

    Args:
        cos: cosines `(..., L, head_dim / 2)`.
        sin: sines, of the same shape.
    """

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(
        cls, positions: Tensor, head_dim: int, axes: Sequence[int] | None = None, base: float = 100.0
    ) -> Rotary:
        """Angles of integer positions.

        Args:
            positions: `(..., L)` on one axis, or `(..., L, n)` on n axes with `axes`.
            head_dim: dimension of queries and keys per head.
            axes: number of head channels that each axis rotates, all even; they sum to `head_dim`. None is one axis.
            base: the slowest pair rotates by 1 / base per position.

        Raises:
            ConfigError: `axes` do not fit `positions` or `head_dim`.
        """
        sizes = (head_dim,) if axes is None else tuple(axes)
        split = positions[..., None] if axes is None else positions
        if sum(sizes) != head_dim or any(size % 2 for size in sizes) or split.shape[-1] != len(sizes):
            raise ConfigError(
                f"rotary axes {sizes} over positions of {split.shape[-1]} axes do not fit a head of {head_dim} "
                "channels; give one even number per axis, with that sum"
            )
        angles = []
        for i, size in enumerate(sizes):
            if size:
                frequency = 1.0 / (base ** (torch.arange(0, size, 2, device=positions.device) / size))
                angles.append(split[..., i, None].float() * frequency)
        angle = angles[0] if len(angles) == 1 else torch.cat(angles, -1)
        return cls(angle.cos(), angle.sin())

    def turn(self, x: Tensor) -> Tensor:
        """Rotate `x (B, heads, L, head_dim)` by the angles of the positions."""
        a, b = x.chunk(2, -1)
        return torch.cat([a * self.cos - b * self.sin, a * self.sin + b * self.cos], -1)

    def to(self, dtype: torch.dtype) -> Rotary:
        """Convert to another dtype."""
        return Rotary(self.cos.to(dtype), self.sin.to(dtype))

    def heads(self) -> Rotary:
        """Add an axis for the heads before the tokens: for angles `(B, L, head_dim / 2)` that differ between rows."""
        return Rotary(self.cos.unsqueeze(-3), self.sin.unsqueeze(-3))
