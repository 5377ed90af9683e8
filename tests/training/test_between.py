"""The frames within a chunk are learned from its two ends and the path of the hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from worldgym.errors import ConfigError
from worldgym.models.chunk.config import ChunkConfig
from worldgym.models.chunk.world_model import ChunkWorldModel
from worldgym.specs import ActionSpec, Camera, ObservationSpec, Specs, StateField
from worldgym.training.between import train_between
from worldgym.training.chunk_data import ChunkEpisodes
from worldgym.training.loop import LoopConfig

STEPS = 11


def model_of(**changes) -> ChunkWorldModel:
    torch.manual_seed(0)
    fields = (StateField("x", "joint", "rad"),)
    specs = Specs(
        ObservationSpec((Camera("front", 32, 32),), fields), ActionSpec(("a",), ("m",), 5.0, (-1.0,), (1.0,))
    )
    states = np.linspace(-1, 1, 20, dtype=np.float32)[:, None]
    config = replace(ChunkConfig.preset("tiny"), dtype="float32", **changes)
    return ChunkWorldModel(config.for_data(states, specs))


def logs(count: int = 6) -> SimpleNamespace:
    """A bright bar that moves at a speed of its own in every episode; proprioception is its place."""
    rng = np.random.default_rng(0)
    frames = np.zeros((count * STEPS, 32, 32, 3), np.uint8)
    states = np.zeros((count * STEPS, 1), np.float32)
    for i in range(count):
        steps = np.cumsum(rng.integers(0, 3, STEPS))
        for t, x in enumerate(steps):
            frames[i * STEPS + t, :, x : x + 8] = 255
            states[i * STEPS + t] = x / 16 - 0.5
    return SimpleNamespace(
        frames=frames, states=states, actions=np.zeros((len(frames), 1), np.float32), views={},
        offsets=np.arange(count + 1) * STEPS,
    )  # fmt: skip


def test_it_learns_what_lies_between_two_frames(tmp_path):
    model, arrays = model_of(), logs()
    data = ChunkEpisodes.encode(model, arrays)
    z = data.episodes.latents.float()
    path = model.normalise_state(torch.from_numpy(arrays.states))
    begins = [i * STEPS + t for i in range(6) for t in (0, 3, 5)]

    def error() -> float:
        rows = torch.tensor(begins)[:, None] + torch.arange(6)
        with torch.no_grad():
            found = model.between(z[rows[:, 0]], z[rows[:, 5]], path[rows], None, None, None, None)
        return float((model.tokenizer.project(found, 2) - z[rows[:, 1:5]]).square().mean())

    before = error()
    train_between(model, data, LoopConfig(steps=150, lr=5e-3, warmup=5, ema=0.9), tmp_path)
    assert error() < 0.6 * before


@pytest.mark.parametrize("changes", [{"between_width": None}, {"chunk": 1}])
def test_a_model_without_frames_within_a_chunk_is_refused(tmp_path, changes):
    model = model_of(**changes)
    with pytest.raises(ConfigError, match="between_width"):
        train_between(model, ChunkEpisodes.encode(model, logs(1)), LoopConfig(steps=1), tmp_path)
