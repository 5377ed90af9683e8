"""Run folders of trainers: the same command goes on, another one is refused, `--fresh` removes only what is theirs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import foreign
import pytest

from experiments.cli import main
from experiments.pipelines.training_run import arrays_hash, claim, content_of
from worldgym.errors import CheckpointError, ConfigError


@pytest.fixture(autouse=True)
def _few_pairs(monkeypatch):
    foreign.few_pairs(monkeypatch)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    foreign.write(folder / "a", 3, 4, seed=1, episodes=4)
    foreign.write(folder / "b", 3, 4, seed=2, episodes=4)
    line = [
        "train",
        "tokenizer",
        "--data",
        folder / "a",
        "--out",
        folder / "t",
        "--preset",
        "tiny",
        "--steps",
        "1",
    ]
    assert main([str(word) for word in [*line, "--batch-size", "2"]]) == 0
    return folder


LINES = {
    "tokenizer": ["--steps", "2", "--batch-size", "2"],
    "world-model": ["--steps", "2", "--batch-size", "1", "--window", "2", "--shift-steps", "1"],
    "judge": ["--steps", "2", "--batch-size", "4"],
    "policy": ["--epochs", "1", "--batch-size", "8", "--finish-steps", "0"],
}


def line(root: Path, name: str, out: Path, data: str = "a", *more: str) -> list[str]:
    words = ["train", name, "--data", root / data, "--out", out, "--preset", "tiny", *LINES[name]]
    words += ["--tokenizer", root / "t"] if name == "world-model" else []
    return [str(word) for word in [*words, *more]]


def content(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.mark.parametrize("name", LINES)
def test_a_run_with_other_data_or_settings_is_refused_and_kept(root, tmp_path, capsys, name):
    out = tmp_path / "out"
    assert main(line(root, name, out)) == 0
    before = content(out)
    capsys.readouterr()
    for other, words in (("b", ()), ("a", ("--seed", "1")), ("a", ("--lr", "0.01"))):
        assert main(line(root, name, out, other, *words)) == 2
        said = capsys.readouterr().err
        assert (words[0] if words else "--data") in said and "--fresh" in said
        assert content(out) == before
    assert main(line(root, name, out)) == 0  # the same goes on, or is repeated


@pytest.mark.parametrize("name", LINES)
def test_fresh_starts_over_and_leaves_what_is_not_its_own(root, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert main(line(root, name, out)) == 0
    first = json.loads((out / "run.json").read_text())
    assert main(line(root, name, out, "b", "--fresh")) == 0
    again = json.loads((out / "run.json").read_text())
    assert (out / "notes.txt").read_text() == "mine"
    assert first["facts"]["--data"] != again["facts"]["--data"]


def test_a_longer_run_goes_on(root, tmp_path, caplog):
    out = tmp_path / "out"
    assert main(line(root, "tokenizer", out)) == 0
    with caplog.at_level("INFO"):
        assert main([*line(root, "tokenizer", out), "--steps", "3"]) == 0
    assert "resumed" in caplog.text and "at step 2" in caplog.text


def test_models_are_known_by_content_not_by_name(root, tmp_path, capsys):
    out, copy = tmp_path / "out", tmp_path / "copy"
    assert main(line(root, "world-model", out)) == 0
    copy.mkdir()
    for name in ("tokenizer.json", "tokenizer.safetensors"):
        (copy / name).write_bytes((root / "t" / name).read_bytes())
    words = line(root, "world-model", out)
    words[words.index("--tokenizer") + 1] = str(copy)
    assert main(words) == 0
    other = tmp_path / "other"
    assert main(line(root, "tokenizer", other, "b")) == 0
    words[words.index("--tokenizer") + 1] = str(other)
    capsys.readouterr()
    assert main(words) == 2
    assert "--tokenizer" in capsys.readouterr().err


def test_a_folder_is_claimed_by_one_command(tmp_path):
    claim(tmp_path / "x", "train judge", {"a": 1}, own=("checkpoint",))
    with pytest.raises(ConfigError, match="worldgym train judge"):
        claim(tmp_path / "x", "train policy", {"a": 1}, own=("checkpoint",))


def test_fresh_removes_nothing_that_no_run_has_noted(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "precious").write_text("x")
    with pytest.raises(ConfigError, match="nothing was removed"):
        claim(tmp_path, "train judge", {"a": 1}, own=("checkpoint", "export"), fresh=True)
    claim(tmp_path, "train judge", {"a": 1}, own=("checkpoint", "export"))
    (tmp_path / "export").mkdir()
    with pytest.raises(ConfigError, match="checkpoint"):
        claim(tmp_path, "train judge", {"a": 2}, own=("checkpoint", "export"), fresh=True)
    assert (tmp_path / "checkpoint" / "precious").exists() and not (tmp_path / "export").exists()


def test_fresh_removes_nothing_outside_the_folder(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    claim(tmp_path / "run", "train judge", {}, own=("../elsewhere",))
    claim(tmp_path / "run", "train judge", {"a": 1}, own=("checkpoint",), fresh=True)
    assert (tmp_path / "elsewhere").is_dir()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"command": "train judge", "facts": 1}'])
def test_a_damaged_marker_is_named(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(CheckpointError, match="run.json"):
        claim(tmp_path, "train judge", {}, own=())


def test_hashes_follow_the_content(tmp_path):
    import numpy as np

    a = np.zeros((2, 3), np.float32)
    assert arrays_hash(a) == arrays_hash(a.copy()) != arrays_hash(a.reshape(3, 2)) != arrays_hash(a + 1)
    assert content_of("tabletop-small") == "tabletop-small"
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = content_of(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert content_of(tmp_path) != first
