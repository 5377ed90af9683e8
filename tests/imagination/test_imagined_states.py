"""Imagined episodes of states: members, penalty, limits, determinism, and the interface of PPO."""

import numpy as np
import pytest
import torch

from worldgym.errors import ConfigError, DatasetError
from worldgym.imagination.states import ImaginedStates
from worldgym.models.states import StateEnsemble, StateEnsembleConfig


def logs(count=5, steps=10, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "states": rng.normal(size=(steps + 1, 3)).astype(np.float32),
            "actions": rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
            "reward": rng.normal(size=steps).astype(np.float32),
            "success": np.zeros(steps, bool),
        }
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def model():
    return StateEnsemble(StateEnsembleConfig.preset("tiny").for_data(logs())).eval()


def silent(model, name, logit):
    """A copy of the model in which an event head has a fixed logit."""
    copy = StateEnsemble(model.config)
    copy.load_state_dict(model.state_dict())
    column = 2 * model.config.state_dim + {"success": 1, "terminated": 2}[name]
    with torch.no_grad():
        copy.write.weight[:, :, column] = 0
        copy.write.bias[:, :, column] = logit
    return copy


@pytest.fixture(scope="module")
def endless(model):
    return silent(silent(model, "terminated", -20.0), "success", -20.0)


def test_the_interface_is_that_of_ppo(endless):
    envs = ImaginedStates(endless, logs(), 7, horizon=4)
    assert (envs.num_envs, envs.sizes, envs.action_dim) == (7, {"actor": 3, "privileged": 3}, 2)
    obs = envs.reset(0)
    for t in range(1, 9):
        obs, reward, done, info = envs.step(np.zeros((7, 2), np.float32))
        assert obs["actor"].shape == obs["privileged"].shape == (7, 3) and obs["actor"].dtype == np.float32
        assert reward.shape == (7,) and reward.dtype == np.float32 and done.dtype == bool
        assert info["success"].dtype == info["terminated"].dtype == bool
        assert done.all() == (t % 4 == 0) and not info["terminated"].any()
        same = (info["final"]["actor"] == obs["actor"]).all(1)
        assert (same == ~done).all()


def test_starts_are_logged_states(endless):
    episodes = logs()
    obs = ImaginedStates(endless, episodes, 64).reset(1)
    known = {tuple(row) for e in episodes for row in e["states"][:-1]}
    assert {tuple(row) for row in obs["actor"]} <= known and len({tuple(r) for r in obs["actor"]}) > 10


def test_one_start_has_the_memory_of_its_history(endless):
    episodes = logs(1)
    envs = ImaginedStates(endless, episodes, 1, sample=False)
    obs, t = envs.reset(0), 0
    while not np.allclose(episodes[0]["states"][t], obs["actor"][0]):
        t += 1
    past = max(0, t - endless.config.history + 1)
    states, actions = (torch.from_numpy(episodes[0][k])[None] for k in ("states", "actions"))
    memory = endless.begin(states[:, past : t + 1], actions[:, past:t])
    _, predicted = endless.step(memory, torch.ones(1, 2), member=torch.from_numpy(envs.member))
    assert np.allclose(envs.step(np.ones((1, 2)))[0]["actor"], predicted.states.numpy(), atol=1e-5)


def test_the_penalty_enters_the_reward_exactly(endless):
    plain, less = (ImaginedStates(endless, logs(), 6, penalty=p, horizon=50) for p in (0.0, 2.5))
    plain.reset(4), less.reset(4)
    for _ in range(5):
        _, reward, _, info = plain.step(np.ones((6, 2)))
        _, penalised, _, same = less.step(np.ones((6, 2)))
        assert (info["uncertainty"] > 0).all() and np.array_equal(info["uncertainty"], same["uncertainty"])
        assert np.array_equal(reward, info["model_reward"])
        assert np.array_equal(penalised, same["model_reward"] - np.float32(2.5) * same["uncertainty"])


def test_an_episode_follows_one_member_to_its_end(endless):
    envs = ImaginedStates(endless, logs(), 40, horizon=6)
    envs.reset(0)
    first = envs.member
    assert set(first) == set(range(5))
    for _ in range(6):
        info = envs.step(np.zeros((40, 2)))[3]
        assert np.array_equal(info["member"], first)
    assert not np.array_equal(envs.member, first)


def test_an_uncertain_episode_is_truncated(endless):
    envs = ImaginedStates(endless, logs(), 6, uncertainty_bound=1e-9)
    envs.reset(0)
    _, _, done, info = envs.step(np.zeros((6, 2)))
    assert (
        done.all() and info["truncated"].all() and not info["terminated"].any() and not info["success"].any()
    )


def test_a_success_ends_the_episode_where_the_data_do(model):
    won = silent(silent(model, "terminated", 20.0), "success", 20.0)
    envs = ImaginedStates(won, logs(), 6)
    envs.reset(0)
    _, _, done, info = envs.step(np.zeros((6, 2)))
    assert done.all() and info["terminated"].all() and info["success"].all() and not info["truncated"].any()


def test_a_success_that_does_not_end_the_episode_is_reported_at_its_end(endless):
    envs = ImaginedStates(silent(endless, "success", 20.0), logs(), 3, horizon=2)
    envs.reset(0)
    assert not envs.step(np.zeros((3, 2)))[3]["success"].any()
    assert envs.step(np.zeros((3, 2)))[3]["success"].all()


def test_equal_seeds_give_equal_episodes(model):
    one, two = (ImaginedStates(model, logs(), 5, horizon=3) for _ in range(2))
    one.reset(2), two.reset(2)
    for _ in range(7):
        got, same = one.step(np.zeros((5, 2))), two.step(np.zeros((5, 2)))
        assert np.array_equal(got[0]["actor"], same[0]["actor"]) and np.array_equal(got[1], same[1])
    assert not np.array_equal(one.reset(3)["actor"], two.reset(2)["actor"])


def test_actions_are_clipped(endless):
    one, two = (ImaginedStates(endless, logs(), 5) for _ in range(2))
    one.reset(0), two.reset(0)
    assert np.array_equal(one.step(np.full((5, 2), 9.0))[0]["actor"], two.step(np.ones((5, 2)))[0]["actor"])


def test_episodes_of_one_step_are_starts(endless):
    short = [{k: v[: 2 if k == "states" else 1] for k, v in e.items()} for e in logs()]
    envs = ImaginedStates(endless, short, 4)
    assert envs.reset(0)["actor"].shape == (4, 3)


def test_bad_input_is_explained(endless):
    with pytest.raises(
        ConfigError, match="penalty is -1, expected a finite number of at least 0; try penalty=1"
    ):
        ImaginedStates(endless, logs(), 4, penalty=-1)
    with pytest.raises(ConfigError, match="num_envs is 0"):
        ImaginedStates(endless, logs(), 0)
    with pytest.raises(ConfigError, match="uncertainty_bound is 0"):
        ImaginedStates(endless, logs(), 4, uncertainty_bound=0)
    wide = [e | {"actions": np.zeros((10, 4), np.float32)} for e in logs()]
    with pytest.raises(DatasetError, match="3 state and 4 action dimensions, expected 3 and 2"):
        ImaginedStates(endless, wide, 4)
    envs = ImaginedStates(endless, logs(), 4)
    with pytest.raises(ConfigError, match="type envs.reset"):
        envs.step(np.zeros((4, 2)))
    envs.reset(0)
    with pytest.raises(ConfigError, match=r"actions have shape \(4, 3\) .* expected \(4, 2\)"):
        envs.step(np.zeros((4, 3)))
    with pytest.raises(ConfigError, match="1 values that are not finite"):
        envs.step(np.array([[np.nan, 0], [0, 0], [0, 0], [0, 0]]))
