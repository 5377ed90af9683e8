"""RLlib's new API stack on batched environments: episodes are counted right, runners find the id, state is restored."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

ray = pytest.importorskip("ray", reason="needs the extra `rllib`")
pytest.importorskip("ray.rllib", reason="needs the extra `rllib`")

from worldgym.imagination import WorldModelVectorEnv  # noqa: E402
from worldgym.imagination.adapters.features import EncodedFeatures  # noqa: E402
from worldgym.imagination.adapters.rllib import ImageLanguageModule, rllib_config  # noqa: E402

SMALL = {"train_batch_size_per_learner": 64, "minibatch_size": 32, "num_epochs": 1}


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200 * 1024**2,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


def test_ppo_on_the_batched_imagination_counts_episodes_right_and_restores(registered, tmp_path):
    config = rllib_config(registered, 4, horizon=10, chunk=5, reward=None).training(**SMALL)
    algorithm = config.build_algo()
    batch = algorithm.env_runner.env.unwrapped
    assert isinstance(batch, WorldModelVectorEnv) and batch.num_envs == 4
    assert batch.single_action_space.shape == (20,)
    result = algorithm.train()
    # Ten frames in chunks of five: two steps an episode, the ignored step of the reset not among them.
    assert result["env_runners"]["episode_len_mean"] == 2.0
    assert result["env_runners"]["num_env_steps_sampled"] >= 64
    assert result["env_runners"]["num_episodes"] == result["env_runners"]["num_env_steps_sampled"] // 2
    assert np.isfinite(result["learners"]["default_policy"]["total_loss"])
    folder = algorithm.save_to_path(str(tmp_path / "saved"))
    weights = {k: v.copy() for k, v in algorithm.get_module().get_state().items()}
    algorithm.train()
    changed = algorithm.get_module().get_state()
    assert any(not np.array_equal(weights[k], changed[k]) for k in weights)
    algorithm.stop()
    again = type(algorithm).from_checkpoint(folder)
    assert all(np.array_equal(weights[k], v) for k, v in again.get_module().get_state().items())
    assert again.train()["training_iteration"] == 2
    again.stop()


def test_held_actions_are_one_a_chunk_and_episodes_are_counted_the_same(registered):
    config = rllib_config(registered, 4, held=True, horizon=10, chunk=5, reward=None).training(**SMALL)
    algorithm = config.build_algo()
    assert algorithm.env_runner.env.single_action_space.shape == (4,)
    result = algorithm.train()
    assert result["env_runners"]["episode_len_mean"] == 2.0
    algorithm.stop()


@pytest.mark.slow  # the runner's process imports everything again
def test_a_remote_runner_finds_the_id_and_counts_the_same():
    config = rllib_config(
        "worldgym/Tabletop-v0", 2, env_runners=1, task="reach", horizon=6, terminate_on_success=False
    ).training(**SMALL)
    algorithm = config.build_algo()
    assert algorithm.train()["env_runners"]["episode_len_mean"] == 6.0
    algorithm.stop()


def test_what_rllib_would_get_wrong_is_refused():
    with pytest.raises(ValueError, match="'NextStep' only"):
        rllib_config(autoreset_mode="SameStep")
    with pytest.raises(ValueError, match="leave out instruction="):
        rllib_config(instruction="text")
    with pytest.raises(ValueError, match="leave out instruction="):
        rllib_config(tensors=True)
    with pytest.raises(ValueError, match="action_repeat=True"):
        rllib_config(wrap="rewards.judge_features:JudgeFeatureWrapper")


def test_the_network_sees_all_parts_of_an_observation(make_vec):
    envs = make_vec(num_envs=2, instruction="embedding")
    module = ImageLanguageModule(
        observation_space=envs.single_observation_space,
        action_space=envs.single_action_space,
        model_config={"width": 32},
    )
    observation = {k: torch.as_tensor(v) for k, v in envs.reset(seed=0)[0].items()}
    before = module.compute_values({"obs": observation})
    assert before.shape == (2,)
    for name, part in observation.items():
        other = {**observation, name: part + (60 if name == "image" else 0.5)}
        assert not torch.allclose(module.compute_values({"obs": other}), before)


def test_a_wrapper_that_encodes_observations_is_named_by_text_and_the_network_reads_what_it_shows():
    wrap = "rewards.judge_features:JudgeFeatureWrapper"
    config = rllib_config(num_envs=2, action_repeat=True, task="reach", chunk=2, horizon=4, wrap=wrap)
    envs = gym.make_vec(config.env, **config.env_config, num_envs=2, vectorization_mode="vector_entry_point")
    observation = {k: torch.as_tensor(v) for k, v in envs.reset(seed=0)[0].items()}
    module = ImageLanguageModule(
        observation_space=envs.single_observation_space, action_space=envs.single_action_space,
        model_config={"width": 32, "features": EncodedFeatures},
    )  # fmt: skip
    assert set(observation) == {"seen"} and module.compute_values({"obs": observation}).shape == (2,)
    windows = {"seen": observation["seen"][:, None].expand(-1, 3, -1)}
    assert module.compute_values({"obs": windows}).shape == (2, 3), "also in windows of time"
    with pytest.raises(ImportError, match="nowhere"):
        gym.make_vec(
            config.env, **{**config.env_config, "wrap": "nowhere:Wrapper"}, num_envs=2,
            vectorization_mode="vector_entry_point",
        )  # fmt: skip
    envs.close()
