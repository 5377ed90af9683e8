"""`worldgym bench hacking` at toy size: judges by name and in pairs, a stop, and nothing run twice."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments.bundle import Bundle
from experiments.cli import main
from experiments.commands.bench_hacking import (
    BenchHackingConfig,
    make_judge,
    of_judge,
    one,
    uncertainty_quantile,
)
from experiments.pipelines.finetune import FineTuning
from experiments.pipelines.run_folder import RunFolder
from experiments.pipelines.settings import FineTuneSettings
from worldgym.errors import CheckpointError, ConfigError

FEW = [
    "--rounds", "1", "--every", "1", "--starts", "3", "--group", "4",
    "--threads", "1",
]  # fmt: skip


def test_every_judge_and_seed_is_pushed_and_watched_in_real(bundle, tmp_path, capsys):
    out = tmp_path / "hacking.json"
    typed = ["bench", "hacking", "--bundle", str(bundle), "--out", str(tmp_path / "runs"), "--json", str(out), *FEW]
    typed += ["--judges", "bundled", "bundled+bundled~0.5", "--names", "one", "two", "--seeds", "0", "1"]
    assert main(typed) == 0
    facts = json.loads(out.read_text())
    assert list(facts["judges"]) == ["one", "two"] and out.with_suffix(".png").stat().st_size > 5000
    for row in facts["judges"].values():
        assert [run["seed"] for run in row["runs"]] == [0, 1]
        for run in row["runs"]:
            assert [look["round"] for look in run["looks"]] == [0, 1]
            assert all(0 <= look["audit_true"] <= 1 for look in run["looks"])
        assert row["gap_grew"]["seeds"] == 2
    assert "gap grew by" in capsys.readouterr().out
    stamp = {f: f.stat().st_mtime_ns for f in (tmp_path / "runs").rglob("looks.json")}
    assert len(stamp) == 4 and main(typed) == 0
    assert stamp == {f: f.stat().st_mtime_ns for f in (tmp_path / "runs").rglob("looks.json")}, "finished is finished"


@pytest.mark.slow
def test_a_run_ends_when_imagined_success_is_high_enough(bundle, tmp_path):
    class Pleased:
        name, threshold = "pleased", 0.5

        def score(self, frames, instructions):
            import torch

            from worldgym.protocols import Judgement

            return Judgement(torch.ones(len(frames)), None, torch.ones(len(frames), dtype=torch.bool), [])

    config = BenchHackingConfig(
        bundle=str(bundle), rounds=5, every=1, starts=3, group=2, out=tmp_path,
    )  # fmt: skip
    found = Bundle.find(bundle)
    settings = FineTuneSettings(
        out=tmp_path / "own", iterations=5, starts=2, group=2, audit_every=1, audit_episodes=4
    )  # fmt: skip
    tuning = FineTuning(
        settings, found, RunFolder(settings.out, settings.key()), judge=Pleased(), stop_at=0.95
    )

    class Quiet:
        def add_scalar(self, *args): ...

    assert len(tuning.run(Quiet())) == 1
    assert one(config, found, "bundled", 0)["looks"][0]["round"] == 0


def test_doubt_is_a_quantile_of_what_the_world_model_says_of_itself(bundle, tmp_path):
    settings = FineTuneSettings(out=tmp_path, starts=2, group=2, rollout_horizon=10)
    found = Bundle.find(bundle)
    low, high = (uncertainty_quantile(settings, found, found.judge(), share) for share in (0.1, 0.9))
    assert 0 < low <= high and np.isfinite(high)


def test_figures_say_how_much_the_gap_grew():
    def look(imagined, true):
        return {"round": 0, "audit_imagined": imagined, "audit_true": true, "audit_gap": imagined - true}

    runs = [{"seed": s, "looks": [look(0.6, 0.5), look(0.9, 0.6 + s / 10)]} for s in (0, 1)]
    row = of_judge(runs)
    assert row["gap_grew"]["mean"] == pytest.approx(0.15) and row["true_gained"]["mean"] == pytest.approx(0.15)
    assert row["before"]["gap"] == pytest.approx(0.1) and row["after"]["imagined"] == pytest.approx(0.9)
    assert of_judge(runs[:1])["gap_grew"] is None, "one seed has no interval"


def test_what_cannot_be_meant_is_refused(bundle):
    found = Bundle.find(bundle)
    with pytest.raises(ConfigError, match=r"share of uncertain episodes"):
        make_judge("bundled~2", found, None)
    with pytest.raises(CheckpointError, match="no judge_latent"):
        make_judge("bundled+latent", found, None)
    with pytest.raises(ConfigError, match="2 names for 1"):
        BenchHackingConfig(names=("a", "b"))
