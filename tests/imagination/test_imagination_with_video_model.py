"""The environment on the real architecture, tiny and untrained: shapes, replay, batching, checker, disk."""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from fakes import DotJudge, make_starts
from gymnasium.utils.env_checker import check_env

from worldgym.imagination import WorldModelEnv, WorldModelVectorEnv
from worldgym.models import EnsembleWorldModel, VideoWorldModel, WorldModelConfig


@pytest.fixture(scope="module")
def model() -> VideoWorldModel:
    torch.manual_seed(0)
    return VideoWorldModel(WorldModelConfig.preset("tiny")).eval().with_sampler(dtype="float32")


def actions(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def test_replay_fork_and_per_slot_reset(model):
    envs = WorldModelVectorEnv(
        model, DotJudge(), make_starts(), num_envs=3, chunk=2, horizon=4, success_threshold=1.0
    )
    plan = actions(5, 3, 2, 4)
    envs.reset(seed=0)
    envs.step(plan[0])
    saved = envs.save_state()
    twin = envs.fork([2, 2])
    first = [envs.step(a)[0] for a in plan[1:]]  # through horizon and autoreset
    envs.restore_state(saved)
    second = [envs.step(a)[0] for a in plan[1:]]
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(first, second, strict=True))
    assert all(np.array_equal(a["state"], b["state"]) for a, b in zip(first, second, strict=True))
    branch = twin.step(plan[1][[2, 2]])[0]["image"]
    assert np.abs(branch[0].astype(int) - first[0]["image"][2]).max() <= 2


def test_a_slot_does_not_depend_on_its_neighbours(model):
    """Up to rounding: matrix products of another batch size may differ in the last bit."""
    many = WorldModelVectorEnv(model, None, make_starts(), num_envs=4, horizon=3)
    one = WorldModelEnv(model, None, make_starts(), horizon=3)
    many.reset(seed=5)
    one.reset(seed=7)
    for step, a in enumerate(actions(5, 4, 4)):
        left = many.step(a)[0]
        right = one.reset()[0] if step == 3 else one.step(a[2])[0]
        assert np.abs(left["image"][2].astype(int) - right["image"]).max() <= 2
        assert np.allclose(left["state"][2], right["state"], atol=1e-3)
        assert left["instruction"][2] == right["instruction"]


def test_noise_keys_are_those_of_the_slot_alone(model):
    """An untrained model hides its noise, so the keys themselves are compared."""
    other = VideoWorldModel(model.config)
    other.tokenizer.load_state_dict(model.tokenizer.state_dict())
    for whole in (model, EnsembleWorldModel([model, other.eval()])):
        many = WorldModelVectorEnv(whole, None, make_starts(), num_envs=4, horizon=3)
        one = WorldModelEnv(whole, None, make_starts(), horizon=3)
        many.reset(seed=5)
        one.reset(seed=7)
        assert len(set(keys_of(many))) == 4 and keys_of(many)[2] == keys_of(one)[0]
        same, fresh = (many.fork([2] * 3, fresh_noise=flag) for flag in (False, True))
        assert keys_of(same) == [keys_of(one)[0]] * 3 and len({*keys_of(fresh), *keys_of(one)}) == 4


def keys_of(envs) -> list[int]:
    return envs.save_state().episodes.state.keys.tolist()


def test_masked_reset_leaves_the_others_where_they_are(model):
    envs = WorldModelVectorEnv(model, None, make_starts(), num_envs=3, autoreset_mode="Disabled")
    envs.reset(seed=0)
    plan = actions(3, 3, 4)
    envs.step(plan[0])
    saved = envs.save_state()
    untouched = [envs.step(a)[0]["image"][[0, 2]] for a in plan[1:]]
    envs.restore_state(saved)
    envs.reset(options={"reset_mask": np.array([False, True, False])})
    after = [envs.step(a)[0]["image"][[0, 2]] for a in plan[1:]]
    assert np.array_equal(untouched, after)


def test_checker_passes_on_a_saved_checkpoint(model, tmp_path):
    """`worldgym/Imagined-v0` with nothing but strings, as it travels to a worker."""
    import worldgym  # noqa: F401

    model.save_pretrained(tmp_path / "world_model")
    make_starts().save(tmp_path / "starts.npz")
    kwargs = {
        "world_model": str(tmp_path / "world_model"),
        "starts": str(tmp_path / "starts.npz"),
        "reward": "fakes:make_judge",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make("worldgym/Imagined-v0", render_mode="rgb_array", horizon=10, **kwargs)
        check_env(env.unwrapped)
    assert "starts.npz" in env.spec.to_json()
    envs = gym.make_vec("worldgym/Imagined-v0", num_envs=2, horizon=10, **kwargs)
    assert isinstance(envs, WorldModelVectorEnv)
    assert envs.world_model is env.unwrapped.batch.world_model  # one copy of the weights in a process
    tabletop = gym.make("worldgym/ImaginedTabletop-v0", checkpoint=str(tmp_path), reward="fakes:make_judge")
    obs, info = tabletop.reset(seed=0)
    assert obs in tabletop.observation_space and info["task"] in ("left", "right")
