"""A bright square that the actions move, in the direction that the instruction says: a toy for auxiliary losses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from agents import ChunkDataset, VLAPolicy, VLAPolicyConfig, chunk_dataset
from agents.auxiliary.encoder import FrozenEncoder

SIZE = 16
WORDS = ("move right", "move left")


class Pooled:
    """A tokenizer of frames: means of 4 x 4 pixels."""

    image_size, latent_channels, grid = (SIZE, SIZE), 3, (4, 4)

    def __init__(self) -> None:
        self.frames_read = 0

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        self.frames_read += len(frames)
        return torch.nn.functional.avg_pool2d(frames.permute(0, 3, 1, 2).float() / 128 - 1, 4)


def encoder() -> FrozenEncoder:
    return FrozenEncoder(Pooled(), "pooled")


def episode(seed: int, steps: int = 10) -> SimpleNamespace:
    rng = np.random.default_rng(seed)
    way, row = (1, -1)[seed % 2], int(rng.integers(2, 12))
    column = 6  # the first frame does not show the direction; the instruction says it
    frames = np.full((steps + 1, SIZE, SIZE, 3), 20, np.uint8)
    for t in range(steps + 1):
        left = int(np.clip(column + way * t, 0, 12))
        frames[t, row : row + 4, left : left + 4] = 255
    actions = np.zeros((steps, 4), np.float32)
    actions[:, 0], actions[:, 3] = way, -1
    state = np.zeros((steps + 1, 4), np.float32)
    state[:, 0] = column + way * np.arange(steps + 1)
    state[:, 2] = 0.1
    return SimpleNamespace(
        frames=frames, actions=actions, state=state, success=None, instruction=WORDS[seed % 2]
    )


def squares(count: int = 10, steps: int = 10, future: bool = True) -> ChunkDataset:
    return chunk_dataset([episode(seed, steps) for seed in range(count)], future=future)


def policy(seed: int = 0, **overrides: Any) -> VLAPolicy:
    torch.manual_seed(seed)
    values: dict[str, Any] = {"image_size": SIZE, "dropout": 0.0, "future_tokens": 8, **overrides}
    return VLAPolicy(VLAPolicyConfig.preset("tiny", **values)).eval()


def without_actions(data: ChunkDataset) -> ChunkDataset:
    """The same rows as video."""
    rows = data.select(np.arange(len(data)))
    rows.actions[:], rows.goals[:] = np.nan, np.nan
    return rows


def gradients(module: torch.nn.Module) -> dict[str, float]:
    """Norms of the gradients that are not zero, by parameter."""
    found = {name: float(p.grad.norm()) for name, p in module.named_parameters() if p.grad is not None}
    return {name: norm for name, norm in found.items() if norm > 0}
