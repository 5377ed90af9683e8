"""Shift of a frame by a fraction of a latent cell, computed in latent space.

A grasped object moves with the hand, so its prediction is a shifted copy. But a latent vector encodes *where inside its
cell* an edge lies; interpolating latent vectors like pixels erases an object in two steps. Decoding, shifting pixels
and encoding again preserves it, but would double the cost of a step. This network is trained to reproduce the result
of that procedure (`worldgym.training.shift`) at a fifth of its cost (`worldgym bench speed`, stages): it unfolds the
latents to a finer grid of features, shifts those bilinearly, and folds them again. Networks that shift features in
order to shift pixels are the spatial transformers of Jaderberg et al. 2015; predicting video by moving existing content
is Finn et al. 2016, section 3.

The static background of the scene does not move, because the tokenizer encodes only the difference to it.

Example::

    shift = LatentShift(channels=16)
    moved = shift(z, torch.tensor([[0.5, 0.0]]))     # (1,16,8,8): everything half a cell to the right
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldgym.models.tokenizers.frame import ResidualBlock, unit_rms

FINER = 4  # cells of the finer grid along one latent cell


def move_bilinearly(x: Tensor, shift: Tensor) -> Tensor:
    """Shift `x (N,C,h,w)` by `shift (N,2)` of its own cells to the right and down; edges are filled with zeros."""
    h, w = x.shape[-2:]
    right = (torch.arange(w, device=x.device) + 0.5) * 2 / w - 1
    down = (torch.arange(h, device=x.device) + 0.5) * 2 / h - 1
    grid = torch.stack(torch.meshgrid(right, down, indexing="xy"), -1)  # (h, w, 2) x, y
    step = torch.tensor([2 / w, 2 / h], device=x.device)
    where = grid[None] - (shift.float() * step)[:, None, None]
    return F.grid_sample(x.float(), where, align_corners=False)


def unshuffle(x: Tensor, by: int) -> Tensor:
    """Like `F.pixel_unshuffle`, but three times as fast on a CPU: `(N,C,h,w)` to `(N,C by^2,h/by,w/by)`."""
    n, c, h, w = x.shape
    cells = x.reshape(n, c, h // by, by, w // by, by)
    return cells.permute(0, 1, 3, 5, 2, 4).reshape(n, c * by**2, h // by, w // by)


class LatentShift(nn.Module):
    """Shifts the foreground of latents.

    Args:
        channels: channels of the latents.
        width: width of the convolutions.
        features: channels on the finer grid.
    """

    def __init__(self, channels: int = 16, width: int = 96, features: int = 16) -> None:
        super().__init__()
        self.into = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), ResidualBlock(width), nn.SiLU(),
            nn.Conv2d(width, FINER**2 * features, 1),
        )  # fmt: skip
        self.back = nn.Sequential(
            nn.Conv2d(FINER**2 * features, width, 1), ResidualBlock(width), nn.SiLU(),
            nn.Conv2d(width, channels, 3, padding=1),
        )  # fmt: skip

    def unfold(self, z: Tensor) -> Tensor:
        """Map latents `(N,C,h,w)` to the finer grid, `(N,features,4h,4w)`; this part does not depend on the shift."""
        fine: Tensor = F.pixel_shuffle(self.into(z), FINER)
        return fine

    def fold(self, fine: Tensor, shift: Tensor) -> Tensor:
        """Shift the output of `unfold` by `shift (N,2)` latent cells right and down; unit-RMS latents `(N,C,h,w)`."""
        moved = move_bilinearly(fine, shift * FINER).to(fine.dtype)
        return unit_rms(self.back(unshuffle(moved, FINER)).float())

    def forward(self, z: Tensor, shift: Tensor) -> Tensor:
        """Shift `z (N,C,h,w)` by `shift (N,2)` latent cells to the right and down; returns unit-RMS latents."""
        return self.fold(self.unfold(z), shift)
