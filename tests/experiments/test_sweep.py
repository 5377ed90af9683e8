"""`worldgym sweep`: the space is that of the settings, trials are reported, a stopped sweep goes on."""

from __future__ import annotations

import json

import pytest

from experiments.cli import main
from experiments.commands.sweep import SweepConfig, parse_space
from worldgym.errors import ConfigError


def test_the_space_has_the_names_and_types_of_the_settings():
    texts = (
        "lr=1e-5,2e-5",
        "group=4,8",
        "learn=all,pointer",
        "threshold=0.5,none",
        "practise=reach+push,reach",
    )
    assert parse_space(texts) == {
        "lr": [1e-5, 2e-5],
        "group": [4, 8],
        "learn": ["all", "pointer"],
        "threshold": [0.5, None],
        "practise": [("reach", "push"), ("reach",)],
    }
    assert parse_space(("lr=loguniform(1e-6, 1e-3)",)) == {"lr": ("loguniform", 1e-6, 1e-3)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr", "name=value"),
        ("rate=1", "known: seed"),
        ("group=many", "invalid literal"),
        ("learn=some", "none of pointer, all"),
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
    assert main([*command, "--resume"]) == 0
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text()) == rows
