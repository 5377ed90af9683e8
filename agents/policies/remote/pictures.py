"""Resizing of images without a change of their aspect ratio, as openpi's `image_tools.resize_with_pad`."""

from __future__ import annotations

import numpy as np
from PIL import Image


def resize_with_pad(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale `images (..., H, W, 3)` uint8 bilinearly into (height, width), and pad with black on both sides."""
    if images.shape[-3:-1] == (height, width):
        return images
    flat = images.reshape(-1, *images.shape[-3:])
    out = np.zeros((len(flat), height, width, 3), np.uint8)
    scale = max(flat.shape[2] / width, flat.shape[1] / height)
    size = (max(1, int(flat.shape[2] / scale)), max(1, int(flat.shape[1] / scale)))
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    for target, image in zip(out, flat, strict=True):
        small = Image.fromarray(image).resize(size, resample=Image.Resampling.BILINEAR)
        target[top : top + size[1], left : left + size[0]] = np.asarray(small)
    return out.reshape(*images.shape[:-3], height, width, 3)
