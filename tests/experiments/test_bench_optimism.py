"""`worldgym bench optimism` at toy size, and the figures of given scores."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments.cli import main
from experiments.commands.bench_optimism import BenchOptimismConfig
from experiments.pipelines.optimism import JUDGE, measured
from worldgym.data.counterfactual import Counterfactual
from worldgym.errors import ConfigError
from worldgym.evaluation import Start
from worldgym.evaluation.judge_audit import JudgeAudit


def test_sequences_are_executed_imagined_and_judged(bundle, tmp_path, capsys):
    out = tmp_path / "optimism.json"
    line = ["bench", "optimism", "--bundle", str(bundle), "--starts", "2", "--threshold", "0.01", "--json", str(out)]
    assert main(line) == 0
    facts = json.loads(out.read_text())
    imagined, judge = facts["parts"]["world model"], facts["parts"]["judge"]
    assert facts["starts"] == 2 and facts["expert_failed"] == 0
    assert imagined["all"]["sequences"] == facts["sequences"] == judge["all"]["sequences"] > 10
    assert imagined["by_family"]["none"]["failures"] == 0, "the expert succeeds in Real"
    assert imagined["by_family"]["frozen"]["by_severity"]["0.6"]["failures"] == 2
    assert sum(row["sequences"] for row in imagined["by_task"].values()) == facts["sequences"]
    shown = capsys.readouterr().out
    assert "missed grasp" in shown and "all, frames from Real" in shown
    page = out.with_suffix(".html").read_text()
    assert "Optimism of the world model" in page and "<svg" in page


def test_scores_of_all_checks_are_joined_and_sequences_without_a_verdict_left_out():
    plans = [(i // 2, Counterfactual("frozen", 0.1, np.zeros((10, 4), np.float32), 5)) for i in range(4)]
    scores = np.array([[0.1, 0.9], [0.2, 0.3], [np.nan, 0.9], [0.6, 0.1]], np.float32)
    won = np.array([[False, True], [False, False], [False, False], [False, False]])
    audit = JudgeAudit(
        tuple(Start("reach", i) for i, _ in plans), ["x"] * 4, {JUDGE: scores}, won, won,
        real_scores={JUDGE: np.zeros((4, 2), np.float32)},
    )  # fmt: skip
    parts = measured([audit], plans, 0.5)
    assert parts["world model"].scores.tolist() == pytest.approx([0.9, 0.3, 0.6])
    assert parts["world model"].optimism().mean == 0.5 and parts[JUDGE].optimism().mean == 0
    assert parts["world model"].starts.tolist() == [0, 0, 1]


def test_impossible_settings_are_explained():
    for more, said in (
        ({"starts": 0}, "starts and horizon must be at least 1"), ({"threshold": 1.5}, "expected a probability"),
        ({"start_seed": 5}, "may be in the training data"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            BenchOptimismConfig(**more)
