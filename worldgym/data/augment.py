"""Augmented copies of recorded episodes, for world models of little data.

Every copy of an episode has one change of colour and one crop for all its frames, so that what an action does between
two frames stays true. Frames are never mirrored, since that would change the meaning of the actions.

Example::

    more = augmented(dataset.load_arrays(), copies=3, seed=0)     # four times as many episodes
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from worldgym.data.arrays import EpisodeArrays

GAIN, GAMMA, SMALLEST = 0.15, 0.2, 0.88
"""Largest change of a colour channel's gain and of gamma, and the smallest side of a crop as a share of the side."""


def augmented(arrays: EpisodeArrays, copies: int, seed: int = 0) -> EpisodeArrays:
    """The episodes, followed by `copies` changed copies of all of them.

    Args:
        arrays: N episodes.
        copies: number of copies of each; 0 returns `arrays`.
        seed: of the changes. Each camera is cropped alone; colours change alike in all cameras.

    Returns:
        `N * (copies + 1)` episodes with equal actions, states and labels.
    """
    if not copies:
        return arrays
    rng = np.random.default_rng(seed)
    frames, views = [arrays.frames], {name: [pictures] for name, pictures in arrays.views.items()}
    for _ in range(copies):
        colours = [Colour.draw(rng) for _ in range(len(arrays))]
        frames.append(_copy(arrays, arrays.frames, colours, rng))
        for name, pictures in arrays.views.items():
            views[name].append(_copy(arrays, pictures, colours, rng))
    times = copies + 1
    changes: dict[str, Any] = {
        name: np.concatenate([getattr(arrays, name)] * times)
        for name in ("states", "actions", "success", "progress", "is_last", "indices", "has_action", "has_success")
    }
    changes |= {name: getattr(arrays, name) * times for name in ("instructions", "tasks", "behaviours", "provenance")}
    steps = np.tile(np.diff(arrays.offsets), times)
    return replace(
        arrays, **changes, frames=np.concatenate(frames),
        views={name: np.concatenate(pictures) for name, pictures in views.items()},
        offsets=np.concatenate([[0], np.cumsum(steps)]).astype(np.int64),
    )  # fmt: skip


class Colour:
    """A table of 256 new values for each colour channel, `(256,3)` uint8."""

    def __init__(self, gain: np.ndarray, gamma: float) -> None:
        values = np.arange(256)[:, None] / 255
        self.table = np.clip(255 * gain * values**gamma, 0, 255).round().astype(np.uint8)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Colour:
        """A gain for all channels, a smaller one for each, and a gamma."""
        gain = (1 + rng.uniform(-GAIN, GAIN)) * (1 + rng.uniform(-GAIN / 3, GAIN / 3, 3))
        return cls(gain, float(np.exp(rng.uniform(-GAMMA, GAMMA))))

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Change `frames (T,H,W,3)` uint8."""
        return np.stack([self.table[frames[..., channel], channel] for channel in range(3)], -1)


def cropped(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One random crop of `frames (T,H,W,3)` uint8, resized to H x W."""
    height, width = frames.shape[1:3]
    share = rng.uniform(SMALLEST, 1.0)
    h, w = max(1, round(share * height)), max(1, round(share * width))
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    cut = torch.from_numpy(np.ascontiguousarray(frames[:, top : top + h, left : left + w])).permute(0, 3, 1, 2).float()
    whole = F.interpolate(cut, size=(height, width), mode="bilinear", align_corners=False, antialias=True)
    return whole.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def _copy(
    arrays: EpisodeArrays, frames: np.ndarray, colours: list[Colour], rng: np.random.Generator
) -> np.ndarray:
    out = np.empty_like(frames)
    for episode, colour in enumerate(colours):
        rows = arrays.rows(episode)
        out[rows] = cropped(colour(frames[rows]), rng)
    return out
