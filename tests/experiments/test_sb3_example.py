"""The Stable-Baselines3 example: its features let words choose, and both algorithms run from end to end."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3", reason="needs the extra `sb3`")

from experiments.examples.sb3 import Args, SeenAndTold, main  # noqa: E402
from worldgym.imagination.sb3 import make_sb3_vec_env  # noqa: E402


def test_the_same_picture_gives_other_features_under_other_words():
    envs = make_sb3_vec_env("worldgym/Tabletop-v0", num_envs=1, task="reach")
    features = SeenAndTold(envs.observation_space)
    envs.close()
    torch.manual_seed(0)
    image, words = (
        torch.rand(1, 3, 64, 64).expand(2, -1, -1, -1),
        torch.nn.functional.normalize(torch.randn(2, 384)),
    )
    seen = features({"image": image, "instruction": words, "state": torch.zeros(2, 4)})
    assert seen.shape == (2, features.features_dim)
    product = seen[:, 512:768]
    assert torch.equal(seen[0, :256], seen[1, :256]) and not torch.allclose(product[0], product[1], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_it_learns_measures_and_writes(tmp_path, algorithm):
    args = Args(
        algorithm=algorithm, minutes=0.01, out=tmp_path, num_envs=2, horizon=10, eval_episodes=2, threads=1
    )
    assert main(args) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert {"before", "after", "difference", "curve", "seconds"} <= set(results)
    assert np.isfinite(results["difference"]["mean"]) and (tmp_path / "policy.safetensors").is_file()
