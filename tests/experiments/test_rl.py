"""`worldgym rl`: practice without measuring, the same for any number of workers, going on where it stopped."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from experiments.cli import main
from experiments.commands.rl import RlConfig, run
from experiments.practice import Practice
from worldgym.errors import ConfigError


def weights(folder):
    return load_file(folder / "policy" / "model.safetensors")


def test_a_policy_practises_and_the_run_says_how_to_measure_it(bundle, tmp_path, capsys):
    out = tmp_path / "rl"
    assert main(["rl", "--bundle", str(bundle), "--out", str(out), "--quick"]) == 0
    said = capsys.readouterr().out
    assert "2 rounds" in said and f"worldgym eval --policy sft {out / 'policy'}" in said
    history = json.loads((out / "history.json").read_text())
    assert len(history) == 2 and history[1]["imagined_steps"] > history[0]["imagined_steps"] > 0
    assert (out / "config.yaml").is_file() and list(out.glob("events.out.*"))


def test_a_stopped_run_goes_on_at_its_last_round_and_ends_the_same(bundle, tmp_path, monkeypatch):
    config = RlConfig(bundle=str(bundle), out=tmp_path / "whole", quick=True, piece=1)
    assert run(config) == 0
    original, calls = Practice.iteration, []

    def stopped(self, policy, improver, imitation, number, history):
        calls.append(number)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, policy, improver, imitation, number, history)

    monkeypatch.setattr(Practice, "iteration", stopped)
    parted = RlConfig(bundle=str(bundle), out=tmp_path / "parted", quick=True, piece=1)
    with pytest.raises(KeyboardInterrupt):
        run(parted)
    assert run(parted) == 0 and calls == [0, 1, 1]
    left, right = weights(config.out), weights(parted.out)
    assert all((left[k] == right[k]).all() for k in left)


def test_bad_settings_are_refused():
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
