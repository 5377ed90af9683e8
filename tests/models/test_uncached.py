"""Imagination without a cache: the reference that the ring buffer must agree with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worldgym.models import SamplerConfig, VideoWorldModel, WorldModelConfig
from worldgym.models.video.uncached import imagine_uncached

TINY = WorldModelConfig.preset("tiny")


@pytest.fixture(scope="module")
def model() -> VideoWorldModel:
    torch.manual_seed(0)
    model = VideoWorldModel(TINY)
    for p in model.dynamics.parameters():
        p.data.add_(0.05 * torch.randn_like(p))
    model.sampler = SamplerConfig(steps=1, dtype="float32")
    return model.eval().requires_grad_(False)


def _inputs(length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(rng.integers(0, 256, (2, 1, 64, 64, 3), dtype=np.uint8))
    actions = torch.from_numpy(rng.uniform(-1, 1, (2, length, 4)).astype(np.float32))
    return frames, actions, torch.zeros(2, 1, 4)


def test_one_pass_without_a_cache_is_what_the_cache_gives(model):
    frames, actions, states = _inputs(
        TINY.dynamics.window
    )  # later the ring also remembers through its own past
    generator = torch.Generator().manual_seed(0)
    plain = imagine_uncached(model, frames, actions, states, generator, passes=1)
    state = model.begin(frames, actions[:, :0], generator, states=states)
    _, cached = model.step(state, actions)
    difference = (plain.int() - cached.frames.int()).abs()
    assert difference.max() <= 1  # of 255: rounding


def test_guidance_of_one_is_no_guidance_and_more_passes_use_the_noise(model):
    frames, actions, states = _inputs(3)
    run = lambda seed, **kw: imagine_uncached(  # noqa: E731
        model, frames, actions, states, torch.Generator().manual_seed(seed), **kw
    )
    assert torch.equal(run(0, passes=1), run(1, passes=1))
    assert not torch.equal(run(0, passes=3), run(1, passes=3))
    assert not torch.equal(run(0, passes=1), run(0, passes=1, guidance=3.0))
