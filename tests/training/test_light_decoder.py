"""A light decoder learns to draw what the tokenizer draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from worldgym.errors import ConfigError
from worldgym.models.chunk.config import ChunkConfig
from worldgym.models.chunk.world_model import ChunkWorldModel
from worldgym.specs import ActionSpec, Camera, ObservationSpec, Specs
from worldgym.training.light_decoder import train_decoder
from worldgym.training.loop import LoopConfig


def model_of(**changes) -> ChunkWorldModel:
    torch.manual_seed(0)
    specs = Specs(
        ObservationSpec((Camera("front", 16, 16),)), ActionSpec(("a",), ("m",), 5.0, (-1.0,), (1.0,))
    )
    config = replace(ChunkConfig.preset("tiny"), dtype="float32", **changes)
    return ChunkWorldModel(config.for_data(np.zeros((2, 0), np.float32), specs))


def test_it_learns_the_pixels_and_decodes_for_the_model(tmp_path):
    model = model_of()
    frames = (
        np.random.default_rng(0).integers(0, 255, (8, 1, 1, 3)).repeat(16, 1).repeat(16, 2).astype(np.uint8)
    )
    latents = model.tokenizer.encode(torch.from_numpy(frames))

    def error() -> float:
        return float((model.decode_pixels(latents).float() - torch.from_numpy(frames)).abs().mean())

    before = error()
    train_decoder(model, latents, frames, LoopConfig(steps=150, lr=5e-3, warmup=5, ema=0.9), tmp_path)
    assert error() < 0.5 * before
    assert model.decode(latents[:, None])[0].shape == (8, 1, 16, 16, 3)


def test_a_model_without_one_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="decoder_widths"):
        train_decoder(
            model_of(decoder_widths=None),
            torch.zeros(1, 8, 2, 2),
            np.zeros((1, 16, 16, 3), np.uint8),
            LoopConfig(),
            tmp_path,
        )
