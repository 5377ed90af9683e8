"""Every command refuses values that it cannot use: one message, with a remedy that can be typed, and exit code 2."""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
from pathlib import Path
from typing import Any

import foreign
import pytest

from experiments.cli import COMMANDS, main
from experiments.pipelines.checks import check_numbers, expand_home
from worldgym.errors import ConfigError

TRAINERS = ("tokenizer", "world-model", "judge", "policy")
NUMBERS = [
    (option, value)
    for option in ("--steps", "--batch-size", "--batch", "--limit")
    for value in ("0", "-1")
] + [("--lr", "nan"), ("--lr", "0"), ("--lr", "-1"), ("--lr", "inf"), ("--seed", "-1")]  # fmt: skip
OTHERS = [
    ("tokenizer", ["--minutes", "0"]),
    ("tokenizer", ["--minutes", "nan"]),
    ("world-model", ["--minutes", "-2"]),
    ("world-model", ["--window", "0"]),
    ("world-model", ["--shift-steps", "0"]),
    ("world-model", ["--processes", "0"]),
    ("world-model", ["--contact-odds", "0"]),
    ("judge", ["--near-share", "2"]),
    ("judge", ["--max-fpr", "0"]),
    ("judge", ["--hard-share", "0.5"]),
    ("judge", ["--imagined-episodes", "-1"]),
    ("judge", ["--type", "latent"]),
    ("judge", ["--batch-size", "1"]),
    ("policy", ["--epochs", "0"]),
    ("policy", ["--demos-per-task", "0"]),
    ("policy", ["--patience", "-1"]),
    ("policy", ["--finish-steps", "-1"]),
    ("policy", ["--behaviour", "wizard"]),
    *[(name, ["--preset", "huge"]) for name in TRAINERS],
]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return foreign.write(tmp_path_factory.mktemp("small") / "data", 2, 2)


@pytest.fixture(scope="module")
def tokenizer(small, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer")
    line = ["train", "tokenizer", "--data", str(small), "--out", str(out), "--preset", "tiny", "--steps", "1"]
    assert main([*line, "--batch-size", "2"]) == 0
    return out


def refused(line: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is said of a command line that ends with 2, and only that."""
    assert main(line) == 2, line
    said = capsys.readouterr().err
    assert "Traceback" not in said and said.startswith("worldgym "), said
    for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", said):  # every remedy exists
        assert option in known_options(line) or "worldgym " in said.split(option)[0].split(":", 1)[1], (
            option,
            said,
        )
    return said


def known_options(line: list[str]) -> set[str]:
    words = next(words for words in COMMANDS if tuple(line[: len(words)]) == words)
    command = COMMANDS[words]
    config = getattr(importlib.import_module(f"experiments.commands.{command.module}"), command.config)
    names = {"--" + field.name.replace("_", "-") for field in dataclasses.fields(config)}
    return names | {"--batch"} | {"--no-" + name[2:] for name in names}


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize(("option", "value"), NUMBERS)
def test_trainers_refuse_numbers_that_cannot_work(small, tmp_path, capsys, name, option, value):
    line = ["train", name, "--data", str(small), "--out", str(tmp_path / "out"), "--preset", "tiny"]
    said = refused([*line, option, value], capsys)
    assert "--batch-size" in said if option == "--batch" else option in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "more"), OTHERS)
def test_trainers_refuse_other_values(small, tmp_path, capsys, name, more):
    line = ["train", name, "--data", str(small), "--out", str(tmp_path / "out"), *more]
    said = refused(line, capsys)
    if more[0] == "--preset":
        assert "small, tiny" in said


@pytest.mark.parametrize(
    "more", [["--steps", "0"], ["--batch", "0"], ["--episodes", "1"], ["--tasks", "fly"]]
)
def test_the_probe_refuses_them_too(tmp_path, capsys, more):
    assert more[0] in refused(["train", "probe", "--out", str(tmp_path / "out"), *more], capsys).replace(
        "--batch-size", "--batch"
    )


@pytest.mark.parametrize(
    "more",
    [["--steps", "0"], ["--folds", "0"], ["--preset", "huge"], ["--image-size", "50"], ["--seed", "-1"]],
)
def test_bench_video_refuses_them_too(small, capsys, more):
    refused(["bench", "video", "--source", str(small), *more], capsys)


@pytest.mark.parametrize("name", TRAINERS)
def test_an_out_that_is_a_file_is_refused_and_kept(small, tokenizer, tmp_path, capsys, name):
    out = tmp_path / "file"
    out.write_text("mine")
    more = ["--tokenizer", str(tokenizer)] if name == "world-model" else []
    said = refused(
        ["train", name, "--data", str(small), "--out", str(out), "--preset", "tiny", *more], capsys
    )
    assert "is a file" in said and out.read_text() == "mine"


@pytest.mark.parametrize("name", TRAINERS)
def test_a_folder_without_a_dataset_is_refused(tmp_path, capsys, name):
    more = ["--tokenizer", "x"] if name == "world-model" else []
    assert "no dataset" in refused(["train", name, "--data", str(tmp_path / "none"), *more], capsys)


def test_parts_of_another_size_are_refused(tokenizer, tmp_path, capsys):
    larger = foreign.write(tmp_path / "larger", 2, 2, size=64)
    line = ["--data", str(larger), "--out", str(tmp_path / "out"), "--preset", "tiny"]
    for command in (["world-model", "--tokenizer", str(tokenizer)], ["judge", "--tokenizer", str(tokenizer)]):
        said = refused(["train", *command, *line], capsys)
        assert "64 pixels" in said and "--image-size 32" in said
    bundled = ["train", "tokenizer", "--initial", "tabletop-small"]
    small = foreign.write(tmp_path / "small", 2, 2, size=32)
    assert "takes 64" in refused([*bundled, "--data", str(small), "--out", str(tmp_path / "t")], capsys)
    said = refused(["train", "world-model", "--type", "chunk", "--initial", "tabletop-small", *line], capsys)
    assert "the world model tabletop-small" in said and "state" in said
    said = refused(["train", "world-model", "--initial", "tabletop-small", *line], capsys)
    assert "expected a world model of type video" in said and "leave --initial out" in said


def test_a_preset_of_other_latent_channels_takes_the_tokenizers(small, tokenizer, tmp_path):
    from worldgym.models import load_world_model

    line = ["train", "world-model", "--data", str(small), "--tokenizer", str(tokenizer), "--preset", "small"]
    out = ["--out", str(tmp_path / "w"), "--steps", "1", "--batch", "1", "--window", "1"]
    assert main([*line, *out]) == 0
    assert load_world_model(tmp_path / "w" / "export").config.dynamics.latent_channels == 8


@pytest.mark.parametrize("damage", ["missing", "no json", "cut", "key"])
def test_a_damaged_tokenizer_is_named(small, tmp_path, capsys, damage):
    folder = tmp_path / "t"
    folder.mkdir()
    if damage != "missing":
        (folder / "tokenizer.safetensors").write_bytes(b"x")
    if damage in ("cut", "key"):
        (folder / "tokenizer.json").write_text("{" if damage == "cut" else '{"imagesize": 32}')
    assert "tokenizer" in refused(
        ["train", "world-model", "--data", str(small), "--tokenizer", str(folder)], capsys
    )


@pytest.mark.parametrize("words", sorted(COMMANDS), ids="-".join)
def test_no_command_takes_a_number_that_is_not_finite(words):
    command = COMMANDS[words]
    config: Any = getattr(importlib.import_module(f"experiments.commands.{command.module}"), command.config)
    fields = [f for f in dataclasses.fields(config) if f.default is not dataclasses.MISSING]
    for field in fields:
        if isinstance(field.default, float):
            made = dataclasses.make_dataclass("C", [(field.name, float, math.nan)])()
            with pytest.raises(ConfigError, match="--" + field.name.replace("_", "-")):
                check_numbers(made)
    values = dataclasses.make_dataclass("Defaults", [(f.name, Any, f.default) for f in fields])()
    check_numbers(values)  # the defaults of every command pass


def test_tilde_is_the_home_folder_in_every_form(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    given = ["--data", "~/a", "--out=~/b", "~/c", "a~b", "--x", "a/~"]
    assert expand_home(given) == [
        "--data", "/home/someone/a", "--out=/home/someone/b", "/home/someone/c", "a~b", "--x", "a/~",
    ]  # fmt: skip


def test_old_names_of_options_are_kept(small, tmp_path):
    line = ["train", "tokenizer", "--data", str(small), "--preset", "tiny", "--steps", "1"]
    assert main([*line, "--out", str(tmp_path / "a"), "--batch", "2"]) == 0
    assert main([*line, "--out", str(tmp_path / "b"), "--batch-size", "2"]) == 0


def test_a_policy_may_be_given_steps_in_place_of_epochs(small, tmp_path, caplog):
    import json

    line = ["train", "policy", "--data", str(small), "--preset", "tiny", "--finish-steps", "0"]
    assert main([*line, "--out", str(tmp_path / "p"), "--steps", "5", "--batch-size", "4"]) == 0
    facts = json.loads((tmp_path / "p" / "training.json").read_text())
    assert facts["settings"]["epochs"] == 3 and facts["history"]["frames"] <= 10
