"""`worldgym rl` with a policy, an improver or a judge that is at fault: a sentence, and the last good round is kept."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from agents import GRPO, VLAPolicy, VLAPolicyConfig
from experiments.cli import main
from rewards import LearnedJudge
from worldgym.protocols import Judgement


def words(bundle, out, *more):
    return ["rl", "--bundle", str(bundle), "--quick", "--piece", "1", "--out", str(out), *map(str, more)]


def refused(capsys, arguments):
    capsys.readouterr()
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_weights_that_become_nan_end_the_run_and_the_last_round_is_a_start(
    bundle, tmp_path, monkeypatch, capsys
):
    update, calls = GRPO.update, []

    def diverges(self, policy, rollouts):
        scalars = update(self, policy, rollouts)
        calls.append(1)
        if len(calls) == 2:
            next(policy.parameters()).data.fill_(float("nan"))
        return scalars

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(GRPO, "update", diverges)
        said = refused(capsys, words(bundle, out))
    last = out / "state" / "round-00001" / "average"
    assert "round 2: improver 'grpo' left" in said and f"round 1 is in {last}" in said and "--policy" in said
    assert [path.name for path in (out / "state").glob("round-*")] == ["round-00001"]
    assert not (out / "policy").exists()
    assert all(bool(v.isfinite().all()) for v in load_file(last / "model.safetensors").values())
    assert main(words(bundle, tmp_path / "again", "--policy", last, "--lr", "1e-6")) == 0
    assert main(words(bundle, out)) == 0, "the same command goes on at the last good round"


def test_a_policy_with_nan_actions_is_not_taken_for_a_failing_judge(bundle, tmp_path, monkeypatch, capsys):
    act = VLAPolicy.act

    def broken(self, observation, **how):
        output = act(self, observation, **how)
        output.actions = output.actions * float("nan")
        return output

    monkeypatch.setattr(VLAPolicy, "act", broken)
    said = refused(capsys, words(bundle, tmp_path / "run"))
    assert "VLAPolicy.act returned actions with NaN" in said and "diverged loss" in said
    evaluation = ["eval", "--bundle", str(bundle), "--policy", "sft", "--episodes", "1", "--workers", "0"]
    assert "VLAPolicy.act returned actions with NaN" in refused(
        capsys, [*evaluation, "--out", str(tmp_path / "e.json")]
    )


def test_a_policy_of_other_chunks_learns_without_demonstrations(bundle, tmp_path, capsys):
    torch.manual_seed(0)
    policy = tmp_path / "one"
    VLAPolicy(VLAPolicyConfig.preset("tiny", chunk=1)).eval().save_pretrained(str(policy))
    said = refused(capsys, words(bundle, tmp_path / "run", "--policy", policy))
    assert "chunks of 5 actions, but the policy predicts 1" in said and "--imitation-steps 0" in said
    assert "worldgym bundle" not in said
    assert main(words(bundle, tmp_path / "alone", "--policy", policy, "--imitation-steps", "0")) == 0


@pytest.mark.parametrize("how", ["nan", "invalid"])
def test_a_run_without_a_valid_episode_ends_with_an_error(bundle, tmp_path, monkeypatch, capsys, caplog, how):
    def silent(self, frames, instructions, **inputs):
        p, valid = torch.full((len(frames),), 0.4), torch.ones(len(frames), dtype=torch.bool)
        return Judgement(p * torch.nan, None, valid) if how == "nan" else Judgement(p, None, ~valid)

    monkeypatch.setattr(LearnedJudge, "score", silent)
    out = tmp_path / "run"
    said = refused(capsys, words(bundle, out))
    assert "no imagined episode of the 2 rounds was valid" in said and "judge learned" in said
    assert caplog.text.count("imagined episodes are invalid") == 2
    assert (out / "policy").is_dir() and len(json.loads((out / "history.json").read_text())) == 2
    assert refused(capsys, words(bundle, out)) == said, "a finished run says the same again"


def test_one_valid_round_is_enough(bundle, tmp_path, monkeypatch, capsys, caplog):
    score, rounds = LearnedJudge.score, []
    from agents import ImaginedRLTrainer

    original = ImaginedRLTrainer.round

    def counted(self):
        rounds.append(1)
        return original(self)

    def silent_at_last(self, frames, instructions, **inputs):
        verdict = score(self, frames, instructions, **inputs)
        if len(rounds) == 2:
            verdict.valid = torch.zeros_like(verdict.valid)
        return verdict

    monkeypatch.setattr(ImaginedRLTrainer, "round", counted)
    monkeypatch.setattr(LearnedJudge, "score", silent_at_last)
    assert main(words(bundle, tmp_path / "run")) == 0
    assert "round 2: all 8 imagined episodes are invalid" in caplog.text and "round 1:" not in caplog.text
    first = capsys.readouterr().out
    assert main(words(bundle, tmp_path / "run")) == 0 and capsys.readouterr().out == first
