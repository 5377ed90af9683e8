"""A bundle whose world model and policy are one joint model: the policy practises in what it imagines itself."""

from __future__ import annotations

import json

import pytest
import torch

from agents.policies.joint import JointPolicy
from experiments.cli import main
from worldgym import pretrained


@pytest.mark.slow
@pytest.mark.parametrize("world", ["tabletop", "metaworld"])
def test_a_joint_model_practises_in_its_own_imagination(tmp_path, world):
    if world == "metaworld":
        pytest.importorskip("metaworld")
    shipped = pretrained.path(f"{world}-small")
    data, wam, bundle, practice = (str(tmp_path / name) for name in ("data", "wam", "bundle", "practice"))
    collect = ["--suite", world, "--episodes", "8", "--tasks", "reach", "--mix", "expert=1", "--workers", "0"]
    assert main(["collect", "--out", data, *collect]) == 0
    train = ["--family", "gigaworld", "--preset", "tiny", "--steps", "2", "--batch-size", "4", "--out", wam]
    assert main(["train", "wam", "--data", data, "--initial", f"{world}-small", *train]) == 0
    parts = ["--world-model", f"{wam}/export", "--policy", f"{wam}/export", "--judge", str(shipped / "judge")]
    assert main(["bundle", "--data", data, "--suite", world, *parts, "--demos-per-task", "4", "--out", bundle]) == 0
    few = ["--iterations", "1", "--starts", "2", "--group", "3", "--imitation-steps", "2", "--bc-batch", "4"]
    few += ["--imitation-lr", "1e-2", "--threshold", "1e-6"]  # all attempts count as successes, and are cloned
    rl = ["rl", "--bundle", bundle, "--learn", "all", "--temperature", "1", *few, "--rollout-horizon", "10"]
    assert main([*rl, "--out", practice]) == 0
    (row,) = json.loads((tmp_path / "practice" / "history.json").read_text())
    assert row["imagined_steps"] > 0 and row["valid"] == 1
    before, after = (JointPolicy.from_pretrained(folder) for folder in (f"{wam}/export", f"{practice}/policy"))
    states = before.state_dict()
    assert any(not torch.equal(states[name], value) for name, value in after.state_dict().items())
