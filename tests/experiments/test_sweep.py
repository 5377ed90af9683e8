"""`worldgym sweep`: the space is that of the settings, trials are reported, a stopped sweep goes on."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.cli import main
from experiments.commands.sweep import (
    METRIC,
    SETTINGS,
    SweepConfig,
    parse_space,
    plain_settings,
    table,
    table_rows,
    trial,
    whole_settings,
)
from worldgym.errors import CheckpointError, ConfigError
from worldgym.utils import files


def test_the_space_has_the_names_and_types_of_the_settings():
    texts = (
        "lr=1e-5,2e-5",
        "group=4,8",
        "learn=all,goal",
        "threshold=0.5,none",
        "train_tasks=reach+push,reach",
    )
    assert parse_space(texts) == {
        "lr": [1e-5, 2e-5],
        "group": [4, 8],
        "learn": ["all", "goal"],
        "threshold": [0.5, None],
        "train_tasks": [("reach", "push"), ("reach",)],
    }
    assert parse_space(("lr=loguniform(1e-6, 1e-3)",)) == {"lr": ("loguniform", 1e-6, 1e-3)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr", "name=value"),
        ("rate=1", "settings are seed"),
        ("group=many", "invalid literal"),
        ("learn=some", "one of goal, all"),
        ("lr=loguniform(0,1)", "more than 0"),
        ("lr=uniform(2,1)", "low < high"),
    ],
)
def test_a_wrong_space_says_what_is_known(text, words):
    with pytest.raises(ConfigError, match=words):
        SweepConfig(space=(text,))


def test_an_empty_space_is_refused():
    with pytest.raises(ConfigError, match="--space lr"):
        SweepConfig(space=())


def test_a_resumed_sweep_needs_no_space_and_takes_every_setting_from_the_first(bundle, tmp_path):
    first = whole_settings(
        SweepConfig(space=("lr=1e-5", "group=4,8"), out=tmp_path, bundle=str(bundle), grace=2)
    )
    remember(first)
    again = whole_settings(SweepConfig(out=tmp_path, resume=True, concurrent=3))
    assert (again.space, again.grace, again.iterations, again.seed) == (first.space, 2, 20, 0)
    assert plain_settings(again) == plain_settings(first) and again.concurrent == 3
    typed = SweepConfig(space=("lr=0.00001", "group=4,8"), out=tmp_path, bundle=str(bundle), resume=True)
    with pytest.raises(ConfigError, match="space"):
        whole_settings(typed)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"space": ("lr=5e-5,9e-5", "temperature=2")}, "space"), ({"iterations": 3}, "iterations: there 20, here 3"),
        ({"samples": 2}, "samples"), ({"grace": 1}, "grace"), ({"seed": 1}, "seed"), ({"cpus": 2}, "cpus"),
        ({"quick": True}, "quick: there false, here true"), ({"bundle": "tabletop-small"}, "bundle"),
    ],
)  # fmt: skip
def test_a_resumed_sweep_with_other_settings_is_refused_with_what_differs(bundle, tmp_path, changed, said):
    remember(whole_settings(SweepConfig(space=("lr=1e-5",), out=tmp_path, bundle=str(bundle))))
    with pytest.raises(ConfigError, match=f"other settings.*{said}"):
        whole_settings(dataclasses.replace(SweepConfig(out=tmp_path, resume=True), **changed))


def test_a_bundle_that_changed_since_is_noticed(bundle, tmp_path):
    other = shutil.copytree(bundle, tmp_path / "bundle")
    remember(whole_settings(SweepConfig(space=("lr=1e-5",), out=tmp_path, bundle=str(other))))
    (other / "starts.npz").write_bytes(b"x")
    with pytest.raises(ConfigError, match="parts: there"):
        whole_settings(SweepConfig(out=tmp_path, resume=True))


@pytest.mark.parametrize("name", ["sweep.json", "tune", "trials"])
def test_an_existing_sweep_is_never_overwritten(bundle, tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=f"{name} of a sweep.*--resume"):
        whole_settings(SweepConfig(space=("lr=1e-5",), out=tmp_path, bundle=str(bundle)))
    with pytest.raises(ConfigError, match="earlier version"):
        whole_settings(SweepConfig(out=tmp_path, resume=True))


def test_there_must_be_a_sweep_to_resume(tmp_path):
    with pytest.raises(ConfigError, match="no sweep to resume"):
        whole_settings(SweepConfig(out=tmp_path, resume=True))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"space": [], "sha256": "0"}'])
def test_damaged_settings_of_a_sweep_are_a_sentence(tmp_path, text):
    (tmp_path / SETTINGS).write_text(text)
    with pytest.raises(CheckpointError, match=f"{SETTINGS}.*new --out"):
        whole_settings(SweepConfig(out=tmp_path, resume=True))


def remember(config):
    files.write_sealed(config.out / SETTINGS, plain_settings(config))


class FakeTune:
    """Ray Tune as a trial sees it; a scheduler ends the trial at its first report, as Ray does: in its thread."""

    def __init__(self, stop_after=None):
        self.reports, self.stop_after = [], stop_after

    def get_context(self):
        return SimpleNamespace(get_trial_id=lambda: "one")

    def report(self, values):
        self.reports.append(values)
        if len(self.reports) == self.stop_after:
            raise SystemExit


@pytest.fixture
def fixed(bundle, tmp_path):
    common = {"quick": True, "threads": 1, "device": "cpu", "dtype": "auto"}
    return {"bundle": str(bundle), "iterations": 2, "sweep": str(tmp_path), **common}


def test_a_trial_that_the_scheduler_ends_early_has_left_the_policy_it_reported(
    fixed, monkeypatch, capsys, bundle
):
    ray = pytest.importorskip("ray", reason="needs the extra `rllib`")
    fake = FakeTune(stop_after=1)
    monkeypatch.setattr(ray, "tune", fake, raising=False)
    with pytest.raises(SystemExit):
        trial({"lr": 1e-5}, fixed)
    (row,) = table_rows([SimpleNamespace(metrics=fake.reports[-1], config={"lr": 1e-5}, error=None)])
    printed = table([row]).splitlines()[-1]
    assert printed.startswith("evaluate the best trial in Real: worldgym eval --policy sft ")
    typed = [*shlex.split(printed.partition("worldgym ")[2]), "--bundle", str(bundle), "--episodes", "2"]
    typed += ["--workers", "0", "--horizon", "5", "--out", fixed["sweep"] + "/eval.json"]
    assert main(typed) == 0
    assert row["policy"] in json.loads(Path(fixed["sweep"], "eval.json").read_text())["policies"]


def test_a_resumed_trial_reports_what_an_uninterrupted_one_does(fixed, monkeypatch, tmp_path):
    ray = pytest.importorskip("ray", reason="needs the extra `rllib`")
    whole, first, second, third = FakeTune(), FakeTune(stop_after=1), FakeTune(), FakeTune()
    monkeypatch.setattr(ray, "tune", whole, raising=False)
    trial({"lr": 1e-5}, {**fixed, "sweep": str(tmp_path / "whole")})
    monkeypatch.setattr(ray, "tune", first)
    with pytest.raises(SystemExit):
        trial({"lr": 1e-5}, fixed)
    monkeypatch.setattr(ray, "tune", second)
    trial({"lr": 1e-5}, fixed)

    def told(fake):
        return [(row["iteration"], row[METRIC]) for row in fake.reports]

    assert told(whole) == told(first) + told(second)
    weights = [
        Path(row["policy"], "model.safetensors").read_bytes()
        for row in (whole.reports[-1], second.reports[-1])
    ]
    assert weights[0] == weights[1]
    folder = tmp_path / "trials" / "one" / "state" / "settings.json"
    facts = files.read_sealed(folder, "")
    files.write_sealed(folder, {**facts, "finished": False})  # killed before Ray had noted the last round
    monkeypatch.setattr(ray, "tune", third)
    trial({"lr": 1e-5}, fixed)
    assert told(third) == told(second)[-1:]


def test_a_sweep_names_only_policies_that_are_there(tmp_path):
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "config.json").write_text("{}")
    results = [
        SimpleNamespace(metrics=metrics, config={"lr": lr}, error=None)
        for lr, metrics in (
            (1, {METRIC: 0.9, "policy": str(tmp_path / "gone"), "iteration": 1.0}),
            (2, {METRIC: float("nan"), "policy": str(tmp_path / "policy")}),
            (3, {METRIC: 0.5, "policy": str(tmp_path / "policy"), "iteration": 2.0}), (4, None),
        )
    ]  # fmt: skip
    rows = table_rows(results)
    assert [row["setting"]["lr"] for row in rows] == [1, 3, 2, 4] and rows[0]["policy"] is None
    assert table(rows).splitlines()[-1] == (
        f"evaluate the best trial with a saved policy in Real: worldgym eval --policy sft {tmp_path / 'policy'}"
    )


@pytest.mark.slow  # a process a trial
def test_two_trials_run_are_ranked_and_can_be_gone_on_with(bundle, tmp_path, capsys):
    pytest.importorskip("ray", reason="needs the extra `rllib`")
    command = [
        "sweep",
        "--bundle",
        str(bundle),
        "--out",
        str(tmp_path / "sweep"),
        "--quick",
        "--space",
        "lr=1e-5,1e-4",
    ]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "lr=1e-05" in said and "lr=0.0001" in said and "worldgym eval" in said
    rows = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [row["rounds"] for row in rows] == [2.0, 2.0] and not any(row["error"] for row in rows)
    assert main(command) == 2 and "--resume" in capsys.readouterr().err
    assert main(["sweep", "--resume", "--out", str(tmp_path / "sweep"), "--iterations", "3"]) == 2
    assert "iterations: there 20, here 3" in capsys.readouterr().err
    assert main(["sweep", "--resume", "--out", str(tmp_path / "sweep"), "--concurrent", "1"]) == 0
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text()) == rows
