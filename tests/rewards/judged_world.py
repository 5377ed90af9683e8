"""A tiny set of logs whose truth can be read from the pixels: a coloured square in the left or the right half."""

from __future__ import annotations

import numpy as np
import torch

from worldgym.data.reader import EpisodeArrays
from worldgym.protocols import Judgement

SIZE = 16
COLOURS = {"red": (230, 30, 30), "green": (30, 230, 30), "blue": (40, 60, 240)}


def draw(colour: str, side: str | None, rng: np.random.Generator) -> np.ndarray:
    """A square of one colour: in the left or right margin (success) or in the middle."""
    frame = np.full((SIZE, SIZE, 3), 120, np.uint8)
    x = {"left": 0, "right": SIZE - 4, None: 6}[side]
    y = int(rng.integers(0, SIZE - 4))
    frame[y : y + 4, x : x + 4] = COLOURS[colour]
    return frame


def logs(episodes: int = 60, seed: int = 0) -> EpisodeArrays:
    """Pushing episodes of 6 frames: the square is in the middle, then at the side; every third one fails."""
    rng = np.random.default_rng(seed)
    frames, success, texts = [], [], []
    templates = ("push the {} cube to the {}", "slide the {} cube to the {} zone")
    for i in range(episodes):
        colour = list(COLOURS)[int(rng.integers(3))]
        side = ("left", "right")[int(rng.integers(2))]
        for t in range(6):
            done = t >= 3 and i % 3 > 0
            frames.append(draw(colour, side if done else None, rng))
            success.append(done)
        texts.append(templates[i % 2].format(colour, side))
    count = 6 * episodes
    return EpisodeArrays(
        frames=np.stack(frames),
        states=np.zeros((count, 4), np.float32),
        actions=np.zeros((count, 4), np.float32),
        success=np.asarray(success),
        progress=np.asarray(success, np.float32),
        is_last=np.tile(np.arange(6) == 5, episodes),
        offsets=np.arange(0, count + 1, 6),
        instructions=texts,
        tasks=["push"] * episodes,
        behaviours=["expert"] * episodes,
        provenance=[{}] * episodes,
        indices=np.arange(episodes),
    )


class Reddish:
    """A teacher that says whatever is red has succeeded, which no label says."""

    name, threshold = "reddish", 0.5

    def score(self, frames: torch.Tensor, instructions: list[str]) -> Judgement:
        red = (frames[:, -1, ..., 0].float() - frames[:, -1, ..., 1].float()).amax((1, 2)) > 150
        return Judgement(red.float(), None, torch.ones(len(frames), dtype=torch.bool), [])
