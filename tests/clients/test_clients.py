"""Other people's clients, with their real packages, run on our ids as they are."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

import worldgym  # noqa: F401

IDS = ["worldgym/ImaginedTabletop-v0", "worldgym/Tabletop-v0"]


@pytest.mark.parametrize("env_id", IDS)
def test_minari_records_infos(env_id, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    minari = pytest.importorskip("minari", reason="install it with `make test-clients`")
    pytest.importorskip("h5py", reason="install it with `make test-clients`")
    env = minari.DataCollector(
        gym.make(env_id, horizon=4, chunk=2, instruction="embedding"), record_infos=True
    )
    for seed in range(2):
        env.reset(seed=seed)
        over = False
        while not over:
            *_, terminated, truncated, _ = env.step(np.zeros(env.action_space.shape, np.float32))
            over = terminated or truncated
    dataset = env.create_dataset("tabletop/still-v0", author="a", algorithm_name="still", eval_env=env_id)
    episode = next(dataset.iterate_episodes())
    assert dataset.total_episodes == 2 and len(episode.infos["episode_len"]) == len(episode.rewards) + 1


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasium_shows_a_window(env_id):
    pytest.importorskip("pygame", reason="install it with `make test-clients`")
    code = (
        f"import gymnasium as gym, numpy as np, worldgym; env = gym.make({env_id!r}, render_mode='human');"
        "env.reset(seed=0); env.step(np.zeros(4, np.float32)); env.close(); print('shown')"
    )
    environment = {**os.environ, "SDL_VIDEODRIVER": "dummy"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "shown" in done.stdout, done.stderr


@pytest.mark.parametrize("env_id", IDS)
def test_stable_worldmodel_evaluates_a_policy(env_id):
    if importlib.util.find_spec("stable_worldmodel") is None:  # its import needs the repair below
        pytest.skip("install it with `make test-clients`")
    code = f"""
from worldgym.utils.torchvision_compat import repair_torchvision
repair_torchvision()
import numpy as np, stable_worldmodel as swm, worldgym
from stable_worldmodel.policy import RandomPolicy
world = swm.World({env_id!r}, num_envs=2, image_shape=(64, 64), max_episode_steps=8, horizon=8)
world.set_policy(RandomPolicy(seed=0))
world.reset(seed=0)
assert world.infos["pixels"].shape[:2] == (2, 1) and "instruction_text" in world.infos
result = world.evaluate(episodes=2, seed=0)
print("evaluated", sorted(result))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if "No module named" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert "evaluated" in done.stdout, done.stderr[-3000:]


def test_stable_baselines3_records_a_video_at_the_rate_of_the_frames(tmp_path):
    from stable_baselines3.common.vec_env import VecVideoRecorder

    from worldgym.imagination.adapters.sb3 import make_sb3_vec_env

    envs = make_sb3_vec_env(num_envs=2, seed=3, render_mode="rgb_array")
    recorder = VecVideoRecorder(envs, str(tmp_path), lambda step: step == 0, video_length=3)
    first = recorder.reset()
    assert recorder.frames_per_sec == 5
    again = make_sb3_vec_env(num_envs=2, seed=3).reset()
    assert np.array_equal(first["image"], again["image"])


def test_held_actions_are_an_id_that_other_processes_find():
    code = (
        "import gymnasium as gym\n"
        "envs = gym.make_vec('worldgym:worldgym/ActionRepeat-v0', env_id='worldgym/ImaginedTabletop-v0', num_envs=2, "
        "chunk=5)\n"
        "envs.reset(seed=0); print(envs.step(envs.action_space.sample())[4]['episode_len'].tolist())\n"
        "env = gym.make('worldgym:worldgym/ActionRepeat-v0', env_id='worldgym/ImaginedTabletop-v0', chunk=5)\n"
        "env.reset(seed=0); print(env.step(env.action_space.sample())[4]['episode_len'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["[5,", "5]", "5"], done.stderr


@pytest.mark.parametrize("env_id", IDS)
def test_rl_zoo3_enjoys_a_saved_agent(env_id, tmp_path):
    pytest.importorskip("rl_zoo3", reason="install it with `make test-clients`")
    pytest.importorskip("pygame", reason="install it with `make test-clients`")
    from stable_baselines3 import PPO

    name = env_id.replace("/", "-")
    env = gym.make(env_id, instruction="embedding", horizon=4)
    agent = PPO("MultiInputPolicy", env, n_steps=2, batch_size=2, policy_kwargs={"net_arch": [8]})
    agent.save(tmp_path / "ppo" / f"{name}_1" / f"{name}.zip")
    command = [sys.executable, "-m", "rl_zoo3.enjoy", "--env", env_id, "--algo", "ppo", "-f", str(tmp_path)]
    command += ["--gym-packages", "worldgym", "--env-kwargs", "instruction:'embedding'", "horizon:4", "-n", "9"]
    environment = {**os.environ, "SDL_VIDEODRIVER": "dummy"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "2 Episodes" in done.stdout and "Mean episode length: 4.00" in done.stdout, done.stderr[-3000:]
