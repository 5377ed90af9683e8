"""`worldgym eval` and `worldgym bench closed-loop`: what they print, write and refuse."""

from __future__ import annotations

import json

import pytest

from experiments.commands import bench_closed_loop, evaluate
from experiments.policies import PolicyChoice
from worldgym.errors import CheckpointError, ConfigError


def test_eval_prints_a_table_and_writes_paired_outcomes(bundle, tmp_path, capsys):
    out = tmp_path / "eval.json"
    config = evaluate.EvalConfig(
        policy=("sft", "sft@1.0"), bundle=str(bundle), episodes=4, horizon=10, workers=0, out=out
    )
    assert evaluate.run(config) == 0
    text = capsys.readouterr().out
    assert "sft@1.0 - sft" in text and "reach" in text and str(out) in text
    data = json.loads(out.read_text())
    assert len(data["policies"]["sft"]["outcomes"]["success"]) == 4
    assert data["differences"][0]["a"] == "sft@1.0" and data["split"] == "seen"


def test_the_gate_prints_a_matrix_and_its_exit_code_is_the_verdict(bundle, tmp_path, capsys):
    config = bench_closed_loop.BenchClosedLoopConfig(
        policies=("sft",), bundle=str(bundle), episodes=4, horizon=10, clips=1, out=tmp_path / "gate.json"
    )
    code = bench_closed_loop.run(config)
    text = capsys.readouterr().out
    data = json.loads(config.out.read_text())
    assert code == (0 if data["passes"] else 1)
    assert text.index("FP") < text.index("TP") and "gate " in text
    clip = data["policies"]["sft"]["clips"][0]
    assert (tmp_path / "gate" / "sft" / clip["gif"]).is_file()


def test_a_policy_can_carry_its_temperature(bundle):
    assert PolicyChoice.parse("sft", str(bundle)).temperature == 0
    folder = bundle / "policy_sft"
    choice = PolicyChoice.parse(f"{folder}@0.5", str(bundle), 1.0)
    assert choice.temperature == 0.5 and choice.ref.path == str(folder)
    with pytest.raises(ConfigError, match="no temperature"):
        PolicyChoice.parse("sft@warm", str(bundle))
    with pytest.raises(CheckpointError, match="save_pretrained"):
        PolicyChoice.parse("no/such/folder", str(bundle))


def test_unknown_tasks_and_empty_lists_are_refused(bundle):
    with pytest.raises(ConfigError, match="pick_place"):
        evaluate.run(evaluate.EvalConfig(tasks=("juggle",), bundle=str(bundle)))
    with pytest.raises(ConfigError, match="--policy"):
        evaluate.EvalConfig(policy=())
    with pytest.raises(ConfigError, match="--policies"):
        bench_closed_loop.BenchClosedLoopConfig(policies=())


def test_the_gates_starts_can_be_others_but_never_those_of_the_data(bundle, tmp_path):
    config = bench_closed_loop.BenchClosedLoopConfig(
        policies=("sft",),
        bundle=str(bundle),
        episodes=2,
        horizon=5,
        start_seed=13_000_000,
        out=tmp_path / "g.json",
    )
    bench_closed_loop.run(config)
    assert json.loads(config.out.read_text())["start_seed"] == 13_000_000
    with pytest.raises(ConfigError, match="start_seed"):
        bench_closed_loop.BenchClosedLoopConfig(start_seed=5)
