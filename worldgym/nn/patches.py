"""Conversion of latent grids to tokens and back, one token per patch; images with pixel coordinates.

Example::

    x = to_tokens(latents, patch=2)              # (N, 16, 8, 8) -> (N, 16, 64)
    latents = from_tokens(x, patch=2)            # inverse; for a grid that is not square, give grid=(6, 10)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from worldgym.errors import ConfigError


def to_tokens(grid: Tensor, patch: int) -> Tensor:
    """Convert `(N,C,h,w)` to tokens `(N, h w / patch^2, C patch^2)`, row by row, in one copy."""
    n, c, h, w = grid.shape
    cells = grid.view(n, c, h // patch, patch, w // patch, patch)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // patch**2, c * patch**2)


def from_tokens(x: Tensor, patch: int, grid: tuple[int, int] | None = None) -> Tensor:
    """Inverse of `to_tokens`.

    Args:
        x: `(N,L,D)`.
        patch: cells along one side of a token.
        grid: height and width of the result in cells; a square when None.

    Raises:
        ConfigError: the number of tokens does not match the grid.
    """
    n, tokens, width = x.shape
    side = math.isqrt(tokens)
    rows, columns = (side, side) if grid is None else (grid[0] // patch, grid[1] // patch)
    if rows * columns != tokens:
        raise ConfigError(f"{tokens} tokens are not a grid of {rows} x {columns} patches; give grid=(h, w)")
    c = width // patch**2
    cells = x.view(n, rows, columns, c, patch, patch)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(n, c, rows * patch, columns * patch)


def with_coordinates(image: Tensor, pixels: Tensor) -> Tensor:
    """`(B,5,H,W)` in channels-last order: `image (B,H,W,3)` in [0, 1] scaled to [-1, 1], and `pixels (2,H,W)`."""
    where = pixels.permute(1, 2, 0).expand(len(image), -1, -1, -1)
    return torch.cat([image * 2 - 1, where], dim=-1).permute(0, 3, 1, 2)
