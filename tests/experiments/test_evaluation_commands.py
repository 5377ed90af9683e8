"""`worldgym eval` and `worldgym bench closed-loop`: what they print, write and refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments.cli import main
from experiments.commands import bench_closed_loop, evaluate
from experiments.pipelines.policies import PolicyChoice
from worldgym.errors import CheckpointError, ConfigError, ServerUnavailableError
from worldgym.evaluation.rollouts import EvaluationPool


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


def test_a_policy_is_measured_with_the_latency_of_its_inference(bundle, tmp_path, capsys):
    def steps(*more):
        out = tmp_path / "late.json"
        words = ["eval", "--policy", "sft", "--episodes", "6", "--horizon", "12", "--workers", "0", "--out", str(out)]
        assert main([*words, *more]) == 0
        data = json.loads(out.read_text())
        return np.array(data["policies"]["sft"]["outcomes"]["steps"]), data

    none, plain = steps()
    held, late = steps("--latency-ms", "500", "--execution", "blocking")
    assert "latency_ms" not in plain and (late["latency_ms"], late["execution"]) == (500.0, "blocking")
    assert (held >= none).all() and held.sum() > none.sum()
    assert main(["eval", "--policy", "sft", "--execution", "blocking"]) == 2
    assert "--latency-ms 200" in capsys.readouterr().err
    for more, said in (("-1", "latency_ms"), ("2000", "--execution blocking")):  # 2 s are 10 steps, a chunk has 5
        assert main(["eval", "--policy", "sft", "--episodes", "3", "--latency-ms", more]) == 2
        assert said in capsys.readouterr().err
    assert main(["eval", "--imagined", "--latency-ms", "100"]) == 2
    assert "--latency-ms" in capsys.readouterr().err


def test_a_policy_is_also_measured_with_the_words_of_another_start(bundle, tmp_path, monkeypatch):
    given, whole = [], EvaluationPool.evaluate
    monkeypatch.setattr(
        EvaluationPool,
        "evaluate",
        lambda pool, ref, starts, **more: given.append(starts) or whole(pool, ref, starts, **more),
    )
    out = tmp_path / "eval.json"
    config = evaluate.EvalConfig(
        bundle=str(bundle), episodes=4, horizon=5, workers=0, wrong_instructions=True, out=out
    )
    assert evaluate.run(config) == 0
    data = json.loads(out.read_text())
    assert list(data["policies"]) == ["sft", "sft, wrong instruction"]
    assert [d["a"] for d in data["differences"]] == ["sft, wrong instruction"]
    own = data["policies"]["sft"]["outcomes"]
    assert [(a.task, a.seed) for a in given[0]] == [(b.task, b.seed) for b in given[1]]
    assert all(start.instruction for start in given[1]) and len(own["success"]) == 4


def test_results_are_kept_when_the_server_of_a_later_policy_is_gone(bundle, tmp_path, monkeypatch):
    whole = EvaluationPool.evaluate

    def evaluate_until_gone(pool, ref, starts, *, temperature, **more):
        if temperature == 1.0:
            raise ServerUnavailableError("the server at ws://127.0.0.1:8000 ended")
        return whole(pool, ref, starts, temperature=temperature, **more)

    monkeypatch.setattr(EvaluationPool, "evaluate", evaluate_until_gone)
    out = tmp_path / "eval.json"
    config = evaluate.EvalConfig(
        policy=("sft", "sft@1.0"), bundle=str(bundle), episodes=2, horizon=5, workers=0, out=out
    )
    with pytest.raises(ServerUnavailableError):
        evaluate.run(config)
    data = json.loads(out.read_text())
    assert list(data["policies"]) == ["sft"] and not data["differences"]


def test_the_gate_prints_a_matrix_and_its_exit_code_is_the_verdict(bundle, tmp_path, capsys):
    config = bench_closed_loop.BenchClosedLoopConfig(
        policies=("sft",), bundle=str(bundle), episodes=4, horizon=10, clips=1, out=tmp_path / "gate.json"
    )
    code = bench_closed_loop.run(config)
    text = capsys.readouterr().out
    data = json.loads(config.out.read_text())
    assert code == (0 if data["passes"] else 1)
    assert text.index("FP") < text.index("TP") and "gate " in text
    assert data["all"]["episodes"] == sum(row["episodes"] for row in data["by_task"].values()) == 4
    assert data["all"]["precision"] == (data["policies"]["sft"]["confusion"]["precision"] or {}).get("mean")
    clip = data["policies"]["sft"]["clips"][0]
    assert (tmp_path / "gate" / "sft" / clip["gif"]).is_file()


def test_a_policy_can_carry_its_temperature(bundle):
    assert PolicyChoice.parse("sft", str(bundle)).temperature == 0
    folder = bundle / "policy_sft"
    choice = PolicyChoice.parse(f"{folder}@0.5", str(bundle), 1.0)
    assert choice.temperature == 0.5 and choice.ref.path == str(folder)
    with pytest.raises(ConfigError, match="not a temperature"):
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


def test_the_gate_also_takes_policies_that_nobody_trained(bundle, tmp_path, capsys):
    names = ("random", "gaussian", "weak", "scripted")
    config = bench_closed_loop.BenchClosedLoopConfig(
        policies=names, bundle=str(bundle), episodes=4, horizon=10, out=tmp_path / "gate.json"
    )
    bench_closed_loop.run(config)
    rows = json.loads(config.out.read_text())["policies"]
    assert set(rows) == set(names)
    for row in rows.values():
        assert len(row["outcomes"]["real"]) == 4
        for task, pair in row["rates_by_task"].items():
            table = row["by_task"][task]
            said, true = table["tp"] + table["fp"], table["tp"] + table["fn"]
            assert (pair["imagined"]["mean"], pair["real"]["mean"]) == (said / 2, true / 2)
            assert pair["imagined"]["low"] <= pair["imagined"]["mean"] <= pair["imagined"]["high"]
    printed = capsys.readouterr().out
    assert "imagined" in printed and "scripted" in printed


def test_noise_is_bounded_repeatable_and_of_its_kind():
    import torch

    from experiments.pipelines.simple_policies import NoisePolicy

    look = {"instruction": ["a"] * 500}
    for kind, spread in (("random", 0.577), ("gaussian", 0.72)):
        policy = NoisePolicy(kind, 5, 4)
        first, again = (
            policy.act(look, generator=torch.Generator().manual_seed(1)).actions for _ in range(2)
        )
        assert torch.equal(first, again) and first.shape == (500, 5, 4) and first.abs().max() <= 1
        assert abs(float(first.std()) - spread) < 0.03
    assert float((first.abs() == 1).float().mean()) == pytest.approx(0.317, abs=0.02)


def test_the_experts_actions_are_replayed_row_by_row_and_succeed_in_real():
    import torch

    from envs.tabletop import TabletopEnv
    from experiments.pipelines.simple_policies import ScriptedPolicy
    from worldgym.evaluation import make_starts
    from worldgym.evaluation.closed_loop import replay_actions

    starts = make_starts(["reach", "push"], 2, 14_900_000)
    policy = ScriptedPolicy(5, {"horizon": 40})
    policy.prepare(starts)
    first = policy.act({"row": torch.arange(4)}).actions
    rest = [policy.act({"row": torch.tensor([1, 3])}).actions for _ in range(7)]
    assert first.shape == (4, 5, 4) and torch.equal(first, policy.plans[:, :5])
    env = TabletopEnv(domain="real", horizon=40)
    for row, i in enumerate((1, 3)):
        plan = torch.cat([first[i], *(chunk[row] for chunk in rest)]).numpy()
        assert plan.shape == (40, 4) and replay_actions(env, starts[i], plan)[0]
    env.close()


@pytest.mark.parametrize(
    "typed",
    [
        ["eval", "--policy", "data/nope"], ["eval", "--policy", "./q/r@1.0"], ["rl", "--policy", "data/nope"],
        ["bench", "closed-loop", "--policies", "data/nope"], ["bench", "closed-loop", "--judge", "data/nope"],
        ["bench", "closed-loop", "--world-model", "data/nope"], ["calibrate", "--policies", "data/nope"],
        ["calibrate", "--judge", "data/nope"], ["demo", "--bundle", "data/nope"], ["rl", "--bundle", "./q/r"],
        ["eval", "--bundle", "data/nope"], ["bench", "closed-loop", "--bundle", "data/nope"],
        ["bench", "best-of", "--judges", "data/nope"], ["bench", "best-of", "--policy", "data/nope"],
        ["bench", "hacking", "--judges", "data/nope"], ["bench", "fidelity", "--checkpoint", "data/nope"],
        ["bench", "env", "--bundle", "data/nope"], ["sweep", "--bundle", "data/nope", "--space", "lr=1e-5"],
        ["audit", "--judges", "data/nope"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_mistyped_path_is_no_such_folder_at_once_and_asks_no_hub(typed, tmp_path, monkeypatch, capsys):
    import time

    from experiments.cli import main

    def asked(*arguments, **settings):
        raise AssertionError("a network was asked")

    monkeypatch.setattr("socket.socket.connect", asked)
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    assert main(typed) == 2
    said = capsys.readouterr().err
    assert "no folder" in said or "no such folder" in said, said
    assert "Traceback" not in said and time.monotonic() - began < 20
