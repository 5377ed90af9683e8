"""The fidelity bench, its logs, its ruler and its graded policies, whole at toy size."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from experiments.cli import main
from experiments.pipelines.held_out_episodes import true_logs
from experiments.pipelines.perturbed_policies import graded_policies
from worldgym.models import load_world_model


def test_logs_take_turns_and_hold_the_truth():
    logs = true_logs(("reach", "push"), 4, seed=11_900_000, horizon=6)
    assert logs.frames.shape == (4, 7, 64, 64, 3) and logs.positions.shape == (4, 7, 7, 2)
    assert logs.tasks == ("reach", "push", "reach", "push") and logs.success.shape == (4, 7)
    again = true_logs(("reach", "push"), 4, seed=11_900_000, horizon=6)
    assert np.array_equal(logs.frames, again.frames)


def test_more_noise_disturbs_a_policy_more_and_leaves_the_original_alone():
    from agents import VLAPolicy, VLAPolicyConfig

    torch.manual_seed(0)
    policy = VLAPolicy(VLAPolicyConfig.preset("tiny"))
    before = [p.clone() for p in policy.parameters()]
    graded = graded_policies(policy, (0.0, 0.1, 0.3), (1.0,))
    assert [g.name for g in graded] == ["noise 0", "noise 0.1", "noise 0.3", "T=1"]
    far = [
        sum(float((a - b).detach().abs().sum()) for a, b in zip(before, g.policy.parameters(), strict=True))
        for g in graded
    ]
    assert far[0] == 0 == far[3] and 0 < far[1] < far[2]


@pytest.mark.slow
def test_the_whole_bench_runs_and_writes_what_it_says(bundle, tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra `bench`")
    probe = ["train", "probe", "--world-model", str(bundle / "world_model"), "--out", str(tmp_path / "probe")]
    assert main([*probe, "--episodes", "24", "--steps", "3", "--batch-size", "4"]) == 0
    assert "hand_px" in (tmp_path / "probe" / "probe.json").read_text()
    bundle = shutil.copytree(bundle, tmp_path / "bundle")
    shutil.copytree(tmp_path / "probe" / "export", bundle / "probe")
    sizes = [
        "--episodes",
        "6",
        "--unseen-episodes",
        "2",
        "--closed-loop-episodes",
        "4",
        "--ranking-starts",
        "4",
    ]
    sizes += ["--noises", "0", "0.1", "--temperatures", "1.0", "--gaps", "0.5", "--workers", "0"]
    other = load_world_model(bundle / "world_model")
    for weight in other.dynamics.parameters():
        weight.data.add_(0.02 * torch.randn_like(weight))
    sizes += ["--members", str(other.save_pretrained(tmp_path / "other"))]
    out = tmp_path / "fidelity.json"
    assert (
        main(["bench", "fidelity", "--bundle", str(bundle), "--policies", "sft", "--json", str(out), *sizes])
        == 0
    )
    facts = json.loads(out.read_text())
    for key in (
        "closed_loop", "position_error_px", "outcome_agreement", "false_positive_rate", "pearson", "spearman", "mmrv",
        "drift_horizon", "action_sensitivity", "uncertainty_spearman", "failure_auroc", "by_horizon", "by_split",
    ):  # fmt: skip
        assert key in facts, key
    assert facts["uncertainty_spearman"] is not None and facts["uncertainty_bound"] > 0
    assert all(0 <= row["beyond_bound"] <= 1 for row in facts["by_split"].values())
    assert len(facts["by_horizon"]["model"]["psnr"]) == 40
    assert set(facts["by_split"]) > {"seen", "unseen_task"}
    parts = facts["by_split"]["seen"]["by_part"]
    assert list(parts) == ["judge", "tokenizer", "world model"]
    assert parts["world model"]["outcome_agreement"] == facts["outcome_agreement"]
    assert out.with_suffix(".html").read_text().count("<svg") == 6


@pytest.mark.slow
def test_the_speed_bench_runs_and_writes_what_it_says(bundle, tmp_path):
    out = tmp_path / "speed.json"
    few = [
        "--seconds",
        "0.05",
        "--rounds",
        "1",
        "--batches",
        "1",
        "2",
        "--quality-episodes",
        "0",
        "--processes",
        "1",
    ]
    assert main(["bench", "speed", "--bundle", str(bundle), "--json", str(out), *few]) == 0
    facts = json.loads(out.read_text())
    assert facts["alternatives"]["int8"]["product"] > 0
    compiled = facts["alternatives"]["compiled"]
    assert compiled.get("speedup", 0) > 0 or compiled["failed"]
    for key in (
        "imagined_fps", "simulator_fps", "imagined_over_simulator", "worldgym_style_fps",
        "speedup_over_worldgym_style", "gemm_fraction", "stages", "growth",
    ):  # fmt: skip
        assert key in facts, key
    assert facts["memory_bytes_per_environment"] > 1000
