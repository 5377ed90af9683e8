"""Augmentation of training images that leaves every object where it is.

Example::

    jittered(images, rng, strength=0.1, noise=0.02)       # (B, H, W, 3) uint8
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def jittered(image: Tensor, rng: np.random.Generator, strength: float, noise: float) -> Tensor:
    """Random brightness, contrast and channel gains per row, plus pixel noise; `(B,H,W,3)` uint8 in and out."""
    if not strength and not noise:
        return image
    batch = image.shape[0]
    gain = torch.from_numpy(rng.uniform(1 - strength, 1 + strength, (batch, 1, 1, 3)).astype(np.float32))
    shift = torch.from_numpy(rng.uniform(-strength, strength, (batch, 1, 1, 1)).astype(np.float32))
    x = image.float() * gain + 127.5 * shift
    if noise:
        x = x + 255 * noise * torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32))
    return x.round().clamp(0, 255).to(torch.uint8)
