"""Training of the network that interpolates the frames within a chunk (`worldgym.models.chunk.between`).

Its inputs are true latents with the noise of imagined ones, and true positions at both ends of a chunk.

Example::

    train_between(model, data, LoopConfig(steps=4000, lr=2e-3), "runs/chunk/between")
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldgym.errors import ConfigError
from worldgym.models.chunk.config import HAND
from worldgym.models.chunk.world_model import ChunkWorldModel
from worldgym.training.chunk_data import ChunkEpisodes, labels
from worldgym.training.loop import LoopConfig, TrainingLoop
from worldgym.training.world_model import frame_loss
from worldgym.utils.devices import autocast, rand, randn

BATCH = 48
NOISE = 0.3
"""Largest noise added to the latents of both ends."""
ROBUST = 0.05
SHORT = 0.2
"""Fraction of the batches with chunks of fewer actions."""


def train_between(
    model: ChunkWorldModel,
    data: ChunkEpisodes,
    settings: LoopConfig,
    run_dir: Path | str,
    identity: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Train `model.between` in place; resumes from `run_dir`. Returns the last scalars.

    Args:
        model: chunk model with a network between.
        data: encoded logs.
        settings: settings of the run.
        run_dir: folder of checkpoints.
        identity: values that identify the run.

    Raises:
        ConfigError: the model has no network between, or a chunk is a single action.
    """
    if model.between is None or model.config.chunk < 2:
        raise ConfigError("frames within a chunk need ChunkConfig(between_width=...) and chunk >= 2")
    background = model.tokenizer.encode_background()
    e, config = data.episodes, model.config

    def loss(module: nn.Module, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        coin = torch.rand(2, generator=generator).tolist()
        k = config.chunk if coin[0] >= SHORT else 2 + int(coin[1] * (config.chunk - 1))
        index, mask, _, _ = e.draw(BATCH, k, generator)
        given = labels(model, data, index, mask, k)
        z = e.latents[index].to(model.device).float()
        level = NOISE * rand((len(z), 1, 1, 1, 1), generator, z.device).square()
        ends = z[:, [0, -1]] + level * randn(z[:, [0, -1]].shape, generator, z.device)
        ends = model.tokenizer.project(ends, 2)
        start = end = present = hand = None
        if config.parts:
            start, end = given.where[:, 0], given.where[:, -1]
            present = (given.present[:, 0] & given.present[:, -1]).float()
            if HAND in config.parts:
                at = config.parts.index(HAND)
                with torch.no_grad():
                    hand = model.kinematics.place(given.states)
                present[:, at] = 1.0
                start, end = start.clone(), end.clone()
                start[:, at], end[:, at] = hand[:, 0], hand[:, -1]
        with autocast(z.device):
            latents = module(ends[:, 0], ends[:, 1], given.states, start, end, present, hand)
        latents = model.tokenizer.project(latents, 2)
        cost, plain = frame_loss(latents, z[:, 1:-1], z[:, :1].expand_as(latents), background, ROBUST)
        weight = given.mask[:, -1:].float().expand_as(cost)
        total = weight.sum() + 1e-6
        return (weight * cost).sum() / total, {"mse": float((weight * plain).sum() / total)}

    training = TrainingLoop(
        model.between, settings, run_dir, loss, tag="train_between", identity=dict(identity or {})
    )
    facts = training.run()
    model.between.load_state_dict(training.ema_model.state_dict())
    return facts
