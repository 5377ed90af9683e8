"""Stable-Baselines3 on a batch of imagined environments: as on single ones, and refused where it would go wrong."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import DotJudge, DotWorldModel, make_starts

pytest.importorskip("stable_baselines3", reason="needs the extra `sb3`")

from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from worldgym.imagination import WorldModelEnv
from worldgym.imagination.adapters.sb3 import SB3VecEnv, make_sb3_vec_env

SETTINGS = {"horizon": 10, "judge_every": 2, "instruction": "embedding"}


@pytest.fixture
def envs(make_vec) -> SB3VecEnv:
    return SB3VecEnv(make_vec(num_envs=4, autoreset_mode="SameStep", **SETTINGS))


def single() -> WorldModelEnv:
    return WorldModelEnv(DotWorldModel(0.01), DotJudge(), make_starts(), success_threshold=0.9, **SETTINGS)


def test_the_batch_is_to_sb3_what_its_own_dummy_of_single_environments_is(envs):
    theirs = DummyVecEnv([single] * 4)
    envs.seed(7), theirs.seed(7)
    ours_first, theirs_first = envs.reset(), theirs.reset()
    assert all(np.array_equal(ours_first[k], theirs_first[k]) for k in theirs_first)
    rng, ended, timed_out = np.random.default_rng(0), 0, 0
    for _ in range(30):
        actions = rng.uniform(-1, 1, (4, 4)).astype(np.float32)
        actions[:, 0] = [-0.8, 0.8, -0.8, 0.8]
        (obs, reward, done, infos), (obs2, reward2, done2, infos2) = envs.step(actions), theirs.step(actions)
        assert all(np.array_equal(obs[k], obs2[k]) for k in obs2)
        assert np.array_equal(reward, reward2) and reward.dtype == np.float32 and np.array_equal(done, done2)
        for i in range(4):
            assert infos[i]["TimeLimit.truncated"] == infos2[i]["TimeLimit.truncated"] if done[i] else True
            assert ("terminal_observation" in infos[i]) == done[i]
            if done[i]:
                last, last2 = (x[i]["terminal_observation"] for x in (infos, infos2))
                assert all(np.array_equal(last[k], last2[k]) for k in last2)
                assert infos[i]["episode_len"] == infos2[i]["episode_len"] == infos[i]["episode"]["l"]
                assert infos[i]["return"] == infos[i]["episode"]["r"]
                assert infos[i]["is_success"] == infos[i]["success_once"]
                assert envs.reset_infos[i]["task"] in ("left", "right")
                timed_out += infos[i]["TimeLimit.truncated"]
        ended += done.sum()
    assert 0 < timed_out < ended


def test_ppo_trains_saves_and_loads_on_the_batch(envs, tmp_path):
    model = PPO("MultiInputPolicy", envs, n_steps=12, batch_size=24, n_epochs=1, seed=0)
    model.learn(96)
    lengths = [episode["l"] for episode in model.ep_info_buffer]
    assert lengths and max(lengths) == 10  # an episode that time ends has all its steps
    model.save(tmp_path / "ppo")
    again = PPO.load(tmp_path / "ppo", env=envs)
    observation = envs.reset()
    a, b = (m.predict(observation, deterministic=True)[0] for m in (model, again))
    assert a.shape == (4, 4) and np.array_equal(a, b)


def test_options_and_seeds_reach_the_next_reset_only(envs, make_vec):
    envs.seed(3)
    envs.set_options({"task": "left"})
    first = envs.reset()
    assert [info["task"] for info in envs.reset_infos] == ["left"] * 4
    plain = make_vec(num_envs=4, **SETTINGS)
    assert np.array_equal(first["image"], plain.reset(seed=3, options={"task": "left"})[0]["image"])
    envs.reset()
    assert envs._options == [{}] * 4 and envs._seeds == [None] * 4


def test_what_sb3_would_get_wrong_is_refused(make_vec):
    with pytest.raises(ValueError, match="autoreset_mode='SameStep'"):
        SB3VecEnv(make_vec(instruction="embedding"))
    with pytest.raises(ValueError, match="instruction='embedding'"):
        SB3VecEnv(make_vec(autoreset_mode="SameStep"))
    with pytest.raises(ValueError, match="tensors=False"):
        SB3VecEnv(make_vec(autoreset_mode="SameStep", instruction="embedding", tensors=True))


def test_the_batch_answers_for_its_slots(make_vec):
    envs = SB3VecEnv(make_vec(autoreset_mode="SameStep", render_mode="rgb_array", **SETTINGS))
    envs.reset()
    assert envs.get_attr("horizon") == [10] * 3 and envs.get_attr("horizon", [0]) == [10]
    assert envs.env_is_wrapped(Monitor) == [True] * 3
    assert [image.shape for image in envs.get_images()] == [(64, 64, 3)] * 3
    assert np.array_equal(envs.env_method("render", indices=1)[0], envs.get_images()[1])
    with pytest.raises(ValueError, match="one batch"):
        envs.set_attr("horizon", 5, indices=[0])


def test_ids_of_imagination_and_of_real_make_the_same_spaces(registered):
    imagined = make_sb3_vec_env(registered, num_envs=2)
    real = make_sb3_vec_env("worldgym/Tabletop-v0", num_envs=2, task="reach", horizon=3)
    assert imagined.observation_space.keys() == real.observation_space.keys()
    real.reset()
    for _ in range(3):
        *_, done, infos = real.step(np.zeros((2, 4), np.float32))
    assert done.all() and all(info["TimeLimit.truncated"] and info["episode"]["l"] == 3 for info in infos)
