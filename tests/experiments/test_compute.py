"""`--device` and `--dtype`: on every command that computes, checked first, and no part of what makes a run the same."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import pytest
import torch
from experiments.demo_settings import DemoSettings
from experiments.policies import PolicyChoice
from experiments.training_run import identity

from experiments.bundle import Bundle
from experiments.cli import COMMANDS, main
from experiments.commands.info import as_text, gather
from experiments.commands.rl import RlConfig
from experiments.commands.train_tokenizer import TrainTokenizerConfig
from experiments.compute import SETTINGS, Placing, placing
from worldgym.errors import ConfigError
from worldgym.utils.devices import bfloat16_pays

NO_NETWORK = {
    ("info",), ("list",), ("import",), ("data", "check"), ("bundle",), ("card",), ("build",), ("coevolve",),
    ("claims", "list"), ("claims", "report"), ("bench", "gap"), ("cost",),
}  # fmt: skip
nowhere = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


@pytest.mark.parametrize("words", [words for words in COMMANDS if words not in NO_NETWORK], ids=" ".join)
def test_every_command_that_computes_has_both_options(words):
    command = COMMANDS[words]
    config = getattr(importlib.import_module(f"experiments.commands.{command.module}"), command.config)
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    assert {name: defaults.get(name) for name in SETTINGS} == {"device": "auto", "dtype": "auto"}


@nowhere
def test_a_device_that_is_not_there_is_said_before_anything_is_written(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["rl", "--out", str(out), "--device", "cuda", "--quick"]) == 2
    assert "finds 0 CUDA devices here; type --device cpu" in capsys.readouterr().err and not out.exists()
    assert main(["eval", "--device", "tpu"]) == 2
    assert "expected auto, cpu, cuda" in capsys.readouterr().err


def test_where_a_run_computes_is_no_part_of_what_it_is(tmp_path):
    for settings in (DemoSettings, RlConfig):
        assert settings().key() == settings(device="cpu", dtype="float32").key()
        assert not set(settings().key()) & set(SETTINGS)  # runs of earlier versions have none
    config = TrainTokenizerConfig(Path("data"), device="cpu", dtype="float32")
    assert identity(config) == identity(TrainTokenizerConfig(Path("data")))


def test_a_bundle_is_loaded_where_it_is_asked_for():
    here = placing(DemoSettings(device="cpu", dtype="float32"))
    assert here == Placing("cpu", "float32") and here.device == torch.device("cpu")
    model = Bundle.find("tabletop-small", here).world_model()
    assert model.dtype == "float32"
    usual = Bundle.find("tabletop-small").world_model()
    assert usual.dtype == ("bfloat16" if bfloat16_pays("cpu") else "float32") and usual.config.dtype == "bfloat16"
    choice = PolicyChoice.parse("sft@0.5", "tabletop-small", device="cpu")
    assert choice.ref.device == "cpu" and next(choice.ref.load().parameters()).device.type == "cpu"


def test_another_precision_is_refused():
    with pytest.raises(ConfigError, match="--dtype 'float16'"):
        placing(dataclasses.replace(DemoSettings(), dtype="float16"))


def test_info_says_which_devices_there_are():
    info = gather()
    assert info["torch"]["auto"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert len(info["torch"]["cuda"]) == torch.cuda.device_count()
    assert f"--device auto is {info['torch']['auto']}" in as_text(info)
