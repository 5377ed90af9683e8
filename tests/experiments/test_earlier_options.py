"""Options under their earlier names: they work, are named once in a warning, and are not in the help."""

from __future__ import annotations

import dataclasses
import importlib

import pytest

from experiments import cli
from experiments.commands.rl import RlConfig
from experiments.earlier_options import RENAMED, current_options


@pytest.mark.parametrize("form", [["--hesitation", "3"], ["--hesitation=3"]])
def test_an_earlier_option_is_read_and_said_once(form):
    said: list[str] = []
    now = current_options(RlConfig, ["--starts", "2", *form], said.append)
    assert now == ["--starts", "2", *[word.replace("--hesitation", "--start-oversampling") for word in form]]
    assert len(said) == 1 and "--start-oversampling" in said[0]


def test_an_earlier_value_is_read():
    said: list[str] = []
    assert current_options(RlConfig, ["--learn", "pointer"], said.append) == ["--learn", "goal"]
    assert current_options(RlConfig, ["--learn=pointer"], said.append) == ["--learn=goal"]


def test_other_words_stay_as_they_are():
    words = ["--tasks", "push", "--batch", "--kind=x", "kind", "-h"]
    assert current_options(RlConfig, words, pytest.fail) == words  # `rl` has neither option


def test_every_new_name_is_an_option_of_some_command():
    options = set()
    for command in cli.COMMANDS.values():
        config = getattr(importlib.import_module(f"experiments.commands.{command.module}"), command.config)
        options |= {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(config)}
    assert set(RENAMED.values()) <= options and not set(RENAMED) & options


def test_help_shows_the_new_names_only(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "judge", "--help"])
    shown = capsys.readouterr().out
    assert "--imagined-episodes" in shown and "--dream-episodes" not in shown
