"""The environment runs on a model of latent frames unchanged: chunks of 5, resets of single slots, saved states."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from backbone_cases import model_of
from gymnasium.vector import AutoresetMode

from worldgym.imagination import ArrayStarts, WorldModelVectorEnv
from worldgym.protocols import Judgement


class Never:
    name = "never"

    def score(self, frames, instructions):
        return Judgement(torch.zeros(len(frames)), None, torch.ones(len(frames), dtype=torch.bool))


@pytest.fixture(scope="module")
def model():
    return model_of(attention="causal")


def envs_of(model, num_envs: int = 3) -> WorldModelVectorEnv:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    states = rng.normal(size=(4, 4)).astype(np.float32)
    return WorldModelVectorEnv(
        model, Never(), ArrayStarts(images, ["go"] * 4, states=states), num_envs=num_envs, horizon=10, chunk=5,
        autoreset_mode=AutoresetMode.DISABLED,
    )  # fmt: skip


def test_slots_that_were_reset_apart_continue_as_if_alone(model):
    envs = envs_of(model)
    envs.reset(seed=3)
    actions = np.random.default_rng(1).uniform(-1, 1, (3, 3, 5, 3)).astype(np.float32)
    envs.step(actions[0])
    envs.reset(seed=5, options={"reset_mask": np.array([False, True, False])})
    observed, _, _, truncated, info = envs.step(actions[1])
    assert truncated.tolist() == [True, False, True]  # the horizon is 10 actions
    assert observed["image"].shape == (3, 16, 16, 3) and np.isfinite(info["uncertainty"]).all()
    plain = envs_of(model)
    plain.reset(seed=3)
    plain.step(actions[0])
    again = plain.step(actions[1])[0]
    assert np.abs(observed["image"][[0, 2]].astype(int) - again["image"][[0, 2]]).max() <= 1


def test_a_saved_state_is_replayed_and_forks_copy_rows(model):
    envs = envs_of(model)
    envs.reset(seed=3)
    actions = np.random.default_rng(1).uniform(-1, 1, (2, 3, 5, 3)).astype(np.float32)
    envs.step(actions[0])
    saved = envs.save_state()
    first = envs.step(actions[1])[0]["image"]
    envs.restore_state(saved)
    assert np.array_equal(envs.step(actions[1])[0]["image"], first)
