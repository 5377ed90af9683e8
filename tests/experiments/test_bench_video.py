"""The world model's trainer on recorded video: one fold at toy size."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments.cli import main
from worldgym.data.codecs.video import encode_mp4


def test_each_episode_is_left_out_in_turn(tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        frames = np.full((8, 128, 128, 3), 90, np.uint8)
        for t in range(8):
            frames[t, 40:70, 10 + 8 * t : 40 + 8 * t] = (220, 40, 40)
        encode_mp4(tmp_path / f"{name}.mp4", frames, 128, 20)
        rows = np.zeros((8, 10), np.float32)
        rows[:, :6], rows[:, 6] = rng.uniform(-1, 1, (8, 6)), 1
        np.savez(tmp_path / f"{name}.npz", arr_0=rows)
    sizes = ["--tokenizer-steps", "3", "--shift-steps", "2", "--steps", "2", "--preset", "tiny"]
    out = ["--out", str(tmp_path / "runs"), "--json", str(tmp_path / "video.json")]
    assert main(["bench", "video", "--source", str(tmp_path), "--image-size", "32", *sizes, *out]) == 0
    facts = json.loads((tmp_path / "video.json").read_text())
    assert [row["left_out_episodes"] for row in facts["folds"]] == [[0], [1]]
    assert facts["image_size"] == 32 and facts["folds"][0]["left_out"]["steps"] == 7  # the episodes are short
    for metric in ("psnr", "ssim", "features"):
        assert np.isfinite(facts["mean"]["left_out"][metric]["model"]["5"])
    # One episode was left out: the actions that it did not have are those of a trained one.
    assert facts["folds"][0]["left_out"]["action_sensitivity"]["low"] is None


def test_one_episode_cannot_be_left_out(tmp_path, capsys):
    encode_mp4(tmp_path / "a.mp4", np.zeros((3, 128, 128, 3), np.uint8), 128, 20)
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((3, 10), np.float32))
    assert main(["bench", "video", "--source", str(tmp_path)]) == 2
    assert "needs two" in capsys.readouterr().err


def test_bad_sizes_are_refused():
    from experiments.commands.bench_video import BenchVideoConfig
    from worldgym.errors import ConfigError

    with pytest.raises(ConfigError, match="multiple of 8"):
        BenchVideoConfig(source="x", image_size=50)
    with pytest.raises(ConfigError, match="folds"):
        BenchVideoConfig(source="x", folds=0)


def test_a_model_is_not_measured_on_episodes_that_it_was_trained_on(tmp_path, capsys):
    from experiments.commands.bench_video import BenchVideoConfig, check_left_out
    from experiments.pipelines.training_run import claim
    from worldgym.errors import ConfigError

    def run_with(limit):
        folder = tmp_path / f"limit {limit}"
        claim(folder, "train world-model", {"--limit": limit}, own=("export",))
        return folder / "export"

    check_left_out(BenchVideoConfig(tmp_path, world_model=run_with(7), after=7))
    check_left_out(BenchVideoConfig(tmp_path, world_model=run_with(7), after=9))
    check_left_out(BenchVideoConfig(tmp_path, world_model=tmp_path / "copied" / "model", after=1))
    with pytest.raises(ConfigError, match="the first 7 episodes .* Type --after 7"):
        check_left_out(BenchVideoConfig(tmp_path, world_model=run_with(7), after=3))
    with pytest.raises(ConfigError, match="all episodes of its data, so that none is left out"):
        check_left_out(BenchVideoConfig(tmp_path, world_model=run_with(None), after=3))
