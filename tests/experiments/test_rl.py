"""`worldgym rl`: practice without measuring, the same for any number of workers, going on where it stopped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from agents import ImaginedRLTrainer
from experiments.cli import main
from experiments.commands.rl import RlConfig, run
from worldgym.errors import ConfigError


def weights(folder):
    return load_file(folder / "policy" / "model.safetensors")


def test_a_policy_practises_and_the_run_says_how_to_measure_it(bundle, tmp_path, capsys, caplog):
    out = tmp_path / "rl"
    assert main(["rl", "--bundle", str(bundle), "--out", str(out), "--quick"]) == 0
    said = capsys.readouterr().out
    assert "2 rounds" in said and f"worldgym eval --policy sft {out / 'policy'}" in said
    history = json.loads((out / "history.json").read_text())
    assert len(history) == 2 and history[1]["imagined_steps"] > history[0]["imagined_steps"] > 0
    assert (out / "config.yaml").is_file() and list(out.glob("events.out.*"))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert main(["rl", "--bundle", str(bundle), "--out", str(out), "--quick"]) == 0
    assert capsys.readouterr().out == said and "--fresh" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before, "it is shown, not run again"


def test_the_control_clones_as_often_as_the_run_and_imagines_nothing(bundle, tmp_path, capsys, monkeypatch):
    from experiments.pipelines.finetune import FineTuning

    def refused(*args, **kwargs):
        raise AssertionError("the control imagines nothing")

    monkeypatch.setattr(FineTuning, "run", refused)
    words = ["rl", "--bundle", str(bundle), "--out", str(tmp_path / "bc"), "--iterations", "2", "--updates", "1"]
    words += ["--imitation-steps", "2", "--bc-batch", "4", "--bc-only"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "6 updates on demonstrations" in said and f"--bundle {bundle}" in said
    before, after = load_file(bundle / "policy_sft" / "model.safetensors"), weights(tmp_path / "bc")
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert main(words) == 0 and "6 updates on demonstrations" in capsys.readouterr().out
    torch.randn(3)
    assert main([*words, "--out", str(tmp_path / "again")]) == 0 and capsys.readouterr().out
    again = weights(tmp_path / "again")
    assert all(torch.equal(after[name], again[name]) for name in after), "the seed alone decides"
    assert main([*words, "--workers", "1"]) == 2 and "--bc-only imagines nothing" in capsys.readouterr().err
    assert main(words[:-1]) == 2 and "bc_only" in capsys.readouterr().err.replace("-", "_")


def test_the_result_may_keep_a_share_of_the_initial_policy(bundle, tmp_path):
    line = ["rl", "--bundle", str(bundle), "--quick", "--out"]
    assert main([*line, str(tmp_path / "all")]) == 0
    assert main([*line, str(tmp_path / "half"), "--initial-share", "0.25"]) == 0
    first = load_file(bundle / "policy_sft" / "model.safetensors")
    learned, mixed = weights(tmp_path / "all"), weights(tmp_path / "half")
    assert any((learned[name] != value).any() for name, value in first.items())
    for name, value in first.items():
        if value.is_floating_point():
            assert torch.allclose(mixed[name], 0.25 * value + 0.75 * learned[name], atol=1e-6), name
    assert main([*line, str(tmp_path / "none"), "--initial-share", "1"]) == 2


def test_practice_may_begin_from_one_given_frame(bundle, tmp_path, monkeypatch, capsys):
    with np.load(bundle / "starts.npz") as found:
        one = {name: found[name][-1:] for name in found.files}
    one["images"] = 255 - one["images"]
    np.savez(tmp_path / "one.npz", **one)
    seen, whole = [], ImaginedRLTrainer.__init__
    monkeypatch.setattr(
        ImaginedRLTrainer, "__init__", lambda self, *given, **more: seen.append(given[4]) or whole(self, *given, **more)
    )
    line = ["rl", "--bundle", str(bundle), "--out", str(tmp_path / "rl"), "--quick", "--start-frames"]
    assert main([*line, str(tmp_path / "one.npz")]) == 0
    assert len(seen[0]) == 1 and (seen[0].starts.images.numpy() == one["images"]).all()
    one["images"] = one["images"] // 2  # another frame is another run
    np.savez(tmp_path / "one.npz", **one)
    assert main([*line, str(tmp_path / "one.npz")]) == 2
    assert main([*line[:-1], "--fresh", "--start-frames", str(tmp_path / "none.npz")]) == 2
    assert "none.npz" in capsys.readouterr().err


def test_a_stopped_run_goes_on_at_its_last_round_and_ends_the_same(bundle, tmp_path, monkeypatch):
    config = RlConfig(bundle=str(bundle), out=tmp_path / "whole", quick=True, piece=1)
    assert run(config) == 0
    original, calls = ImaginedRLTrainer.round, []

    def stopped(self):
        number = len(self.history)
        calls.append(number)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(ImaginedRLTrainer, "round", stopped)
    parted = RlConfig(bundle=str(bundle), out=tmp_path / "parted", quick=True, piece=1)
    with pytest.raises(KeyboardInterrupt):
        run(parted)
    assert run(parted) == 0 and calls == [0, 1, 1]
    left, right = weights(config.out), weights(parted.out)
    assert all((left[k] == right[k]).all() for k in left)


def test_a_round_that_was_not_saved_whole_is_done_again(bundle, tmp_path, monkeypatch):
    """Between any two files of a round the process may end; the memory of one round never meets another's policy."""
    from agents import GRPO

    config = RlConfig(bundle=str(bundle), out=tmp_path / "whole", quick=True, piece=1)
    assert run(config) == 0
    save, calls = GRPO.save, []

    def dies(self, *arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return save(self, *arguments)

    monkeypatch.setattr(GRPO, "save", dies)
    parted = RlConfig(bundle=str(bundle), out=tmp_path / "parted", quick=True, piece=1)
    with pytest.raises(KeyboardInterrupt):
        run(parted)
    assert run(parted) == 0 and len(calls) == 3
    left, right = weights(config.out), weights(parted.out)
    assert all((left[k] == right[k]).all() for k in left)


def test_a_killed_driver_goes_on_and_ends_the_same(bundle, tmp_path):
    """kill -9, which no handler sees, after the first round."""
    settings = ["--bundle", str(bundle), "--quick", "--iterations", "2", "--piece", "1", "--starts", "2"]
    parted = tmp_path / "parted"
    command = [sys.executable, "-m", "worldgym", "rl", "--out", str(parted), *settings]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((parted / "state").glob("round-*")):
        assert process.poll() is None and time.monotonic() < deadline, "no round was saved"
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert not (parted / "policy").exists()
    assert main(["rl", "--out", str(parted), *settings]) == 0
    assert main(["rl", "--out", str(tmp_path / "whole"), *settings]) == 0
    left, right = weights(tmp_path / "whole"), weights(parted)
    assert all((left[k] == right[k]).all() for k in left)


@pytest.mark.parametrize("call", [1, 4, 8])
def test_a_full_disk_is_a_sentence_and_the_run_goes_on_when_there_is_room(
    bundle, tmp_path, monkeypatch, capsys, call
):
    from safetensors import SafetensorError

    from worldgym.utils import tensors

    settings = ["rl", "--bundle", str(bundle), "--quick", "--piece", "1", "--out"]
    assert main([*settings, str(tmp_path / "whole")]) == 0
    save, calls = tensors.save_file, []

    def full(*arguments, **how):
        calls.append(1)
        if len(calls) >= call:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        return save(*arguments, **how)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(tensors, "save_file", full)
        assert main([*settings, str(tmp_path / "parted")]) == 2
    said = capsys.readouterr().err
    assert "the disk is full" in said and "Traceback" not in said
    assert main([*settings, str(tmp_path / "parted")]) == 0
    left, right = weights(tmp_path / "whole"), weights(tmp_path / "parted")
    assert all((left[k] == right[k]).all() for k in left)
    assert not [path for path in (tmp_path / "parted").rglob("*") if path.name.startswith(".tmp-")]


def test_another_policy_to_begin_with_is_another_run(bundle, tmp_path, monkeypatch, capsys):
    import shutil

    policy = shutil.copytree(bundle / "policy_sft", tmp_path / "policy")
    settings = [
        "rl",
        "--bundle",
        str(bundle),
        "--quick",
        "--out",
        str(tmp_path / "run"),
        "--policy",
        str(policy),
    ]

    def stopped(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ImaginedRLTrainer, "round", stopped)
        assert main(settings) == 130
    (policy / "notes.txt").write_text("trained again")
    assert main(settings) == 2 and "parts: there" in capsys.readouterr().err
    assert main([*settings, "--fresh"]) == 0, "the remedy that the message names"


def test_a_command_that_fails_before_the_first_round_leaves_its_folder_free(
    bundle, tmp_path, monkeypatch, capsys
):
    """The message names another value of an option; the corrected command then runs in the same folder."""
    line, out = ["rl", "--bundle", str(bundle), "--quick", "--out", str(tmp_path / "run")], tmp_path / "run"

    def refused(*arguments):
        raise ConfigError("type --learn all")

    with monkeypatch.context() as patch:
        patch.setattr("agents.algorithms.imagined_rl.learned_parameters", refused)
        assert main(line) == 2 and "type --learn all" in capsys.readouterr().err
    assert not [path for path in out.rglob("*") if path.is_file()]
    assert main([*line, "--learn", "all"]) == 0
    assert f"--bundle {bundle}" in capsys.readouterr().out


def test_a_policy_without_weights_is_refused():
    from agents.algorithms.parameters import learned_parameters

    with pytest.raises(ConfigError, match=r"object has no parameters\(\).*TrainablePolicy"):
        learned_parameters(object(), "all")


def test_audits_look_on_without_changing_what_is_learned(bundle, tmp_path, capsys):
    plain = RlConfig(bundle=str(bundle), out=tmp_path / "plain", quick=True, piece=1)
    watched = RlConfig(
        bundle=str(bundle),
        out=tmp_path / "watched",
        quick=True,
        piece=1,
        audit_every=1,
        audit_episodes=4,
        audit_bound=1.0,
    )
    assert run(plain) == 0 and run(watched) == 0
    left, right = weights(plain.out), weights(watched.out)
    assert all((left[k] == right[k]).all() for k in left)
    history = json.loads((watched.out / "history.json").read_text())
    assert [row["audit_gap"] == row["audit_imagined"] - row["audit_true"] for row in history] == [True, True]
    assert all(row["audit_steps"] == row["audit_episodes"] * watched.rollout_horizon for row in history)
    assert "audited 2 times" in capsys.readouterr().out


def test_practice_ends_when_the_judge_is_pleased_and_real_is_not(bundle, tmp_path, caplog):
    """A threshold that everything passes is a judge that can be gamed; a resumed run stays ended."""
    gamed = RlConfig(
        bundle=str(bundle), out=tmp_path, quick=True, piece=1, audit_every=1, audit_episodes=6, audit_bound=0.5,
        threshold=1e-9,
    )  # fmt: skip
    with caplog.at_level("WARNING"):
        assert run(gamed) == 0
    history = json.loads((tmp_path / "history.json").read_text())
    assert len(history) == 1 and history[0]["audit_imagined"] == 1.0 and history[0]["audit_gap"] > 0.5
    assert "exploit judge" in caplog.text and (tmp_path / "policy" / "model.safetensors").is_file()


def test_a_penalty_is_subtracted_from_the_reward_that_the_improver_sees(bundle, tmp_path, monkeypatch):
    from agents.algorithms import imagined_rl

    seen, whole = [], imagined_rl.updated

    def watched(name, improver, policy, rollouts, reserved):
        seen.append((rollouts.reward.clone(), rollouts.uncertainty.clone()))
        return whole(name, improver, policy, rollouts, reserved)

    monkeypatch.setattr(imagined_rl, "updated", watched)
    line = ["rl", "--bundle", str(bundle), "--quick", "--threshold", "0.01", "--out"]
    assert main([*line, str(tmp_path / "own")]) == 0
    assert main([*line, str(tmp_path / "careful"), "--futures", "2", "--penalty", "3"]) == 0
    own, careful = seen[:2], seen[2:]
    assert len(own) == len(careful) == 2 and {float(r) for r in own[0][0]} <= {0.0, 1.0}
    for reward, uncertainty in careful:
        success = reward + 3 * uncertainty
        assert torch.allclose(success, success.round(), atol=1e-5) and 0 < float(uncertainty.max()) <= 0.5
    rates = json.loads((tmp_path / "careful" / "history.json").read_text())
    assert all(0 <= row["success_rate"] <= 1 for row in rates), "success is reported without the penalty"
    # a run of an earlier version, which had no futures, goes on
    assert main([*line, str(tmp_path / "own"), "--futures", "0"]) == 0


def test_bad_settings_are_refused():
    for more in ({"futures": -1}, {"futures": 65}, {"penalty": -0.5}, {"penalty": float("nan")}):
        with pytest.raises(ConfigError, match="futures is .*; penalty is"):
            RlConfig(**more)
    with pytest.raises(ConfigError, match="--workers 2"):
        RlConfig(address="auto")
    with pytest.raises(ConfigError, match="at least 1"):
        RlConfig(piece=0)


@pytest.mark.slow  # Ray's workers import everything again
def test_ray_workers_give_the_policy_that_one_process_gives(bundle, tmp_path):
    pytest.importorskip("ray", reason="needs the extra `rllib`")
    folders = []
    for workers in (0, 2):
        folders.append(tmp_path / str(workers))
        assert run(RlConfig(bundle=str(bundle), out=folders[-1], quick=True, piece=1, workers=workers)) == 0
    left, right = map(weights, folders)
    assert all((left[k] == right[k]).all() for k in left)
