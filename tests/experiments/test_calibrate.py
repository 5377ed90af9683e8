"""`worldgym calibrate` whole at toy size: a judge with one threshold, and what was found on the way."""

from __future__ import annotations

import json

import pytest

from experiments.cli import main
from experiments.commands.calibrate import CalibrateConfig
from rewards import LearnedJudge
from worldgym.errors import ConfigError


def test_a_judge_is_written_that_gate_and_practice_can_use(bundle, tmp_path, capsys):
    out = tmp_path / "judge"
    few = ["--episodes", "8", "--horizon", "10", "--at", "0.7", "--bundle", str(bundle), "--out", str(out)]
    assert main(["calibrate", *few]) == 0
    facts = json.loads((out / "calibration.json").read_text())
    assert set(facts["thresholds"]) == {"reach", "push"} and facts["checked"]["sft"]["episodes"] == 4
    judge = LearnedJudge.from_pretrained(out)
    assert judge.threshold == pytest.approx(0.7) and judge.config.by_words
    assert "checked on" in capsys.readouterr().out
    gate = [
        "bench",
        "closed-loop",
        "--judge",
        str(out),
        "--bundle",
        str(bundle),
        "--episodes",
        "2",
        "--horizon",
        "10",
    ]
    assert main([*gate, "--out", str(tmp_path / "gate.json")]) in (0, 1)


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="start_seed"):
        CalibrateConfig(start_seed=5)
    with pytest.raises(ConfigError, match="no policy"):
        CalibrateConfig(policies=())
