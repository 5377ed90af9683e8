"""The Stable-Baselines3 example: its eyes follow the words, and both algorithms run from end to end."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3", reason="needs the extra `sb3`")

from experiments.examples.sb3 import Args, main  # noqa: E402
from rewards.judge_features import JudgeFeatures, JudgeFeatureWrapper  # noqa: E402
from worldgym.imagination.adapters.sb3 import ImageLanguageExtractor, make_sb3_vec_env  # noqa: E402


def test_the_judge_s_eyes_find_other_places_under_other_words():
    envs = make_sb3_vec_env("worldgym/Tabletop-v0", num_envs=1, task="reach")
    seen = ImageLanguageExtractor(envs.observation_space, JudgeFeatures)
    observation = {k: torch.as_tensor(v) for k, v in envs.reset().items()}
    observation["image"] = observation["image"].float() / 255
    envs.close()
    first = seen(observation)
    assert first.shape == (1, seen.features_dim) and not first.requires_grad
    observation["instruction"] = torch.nn.functional.normalize(torch.randn(1, 384), dim=-1)
    assert not torch.allclose(seen(observation), first, atol=1e-3)
    assert not list(seen.parameters()), "the judge is not trained, and not saved with the policy"


def test_a_batch_seen_by_the_judge_shows_what_its_eyes_see_last_observations_too():
    settings = {"num_envs": 2, "task": "reach", "horizon": 3, "seed": 0}
    seed = settings.pop("seed")
    plain = make_sb3_vec_env("worldgym/Tabletop-v0", **settings)
    seen = make_sb3_vec_env("worldgym/Tabletop-v0", wrap=JudgeFeatureWrapper, **settings)
    eyes = seen.envs.see
    for envs in (plain, seen):
        envs.seed(seed)
    own, shown = plain.reset(), seen.reset()
    assert np.allclose(shown["seen"], eyes(own)["seen"], atol=1e-5)
    for _ in range(3):
        actions = np.zeros((2, 4), np.float32)
        own, _, done, infos = plain.step(actions)
        shown, _, _, told = seen.step(actions)
    assert done.all() and np.allclose(shown["seen"], eyes(own)["seen"], atol=1e-5)
    last = {k: v[None] for k, v in infos[1]["terminal_observation"].items()}
    assert np.allclose(told[1]["terminal_observation"]["seen"], eyes(last)["seen"][0], atol=1e-5)
    assert seen.observation_space.contains({"seen": shown["seen"][0]})


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_it_learns_measures_and_writes(tmp_path, algorithm):
    args = Args(
        algorithm=algorithm, minutes=0.01, out=tmp_path, num_envs=2, horizon=10, eval_episodes=2, threads=1
    )
    assert main(args) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert {"before", "after", "difference", "curve", "seconds"} <= set(results)
    assert np.isfinite(results["difference"]["mean"]) and (tmp_path / "policy" / "model.safetensors").is_file()
