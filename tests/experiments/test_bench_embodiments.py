"""A world model of several robots beside one of each, at toy size."""

from __future__ import annotations

import json

import pytest

from experiments.cli import main


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    root = tmp_path_factory.mktemp("robots")
    for name, seed in (("one", "0"), ("two", "100")):
        assert main(["collect", "--out", str(root / name), "--episodes", "3", "--workers", "0", "--horizon", "6",
                     "--mix", "random=1", "--seed", seed]) == 0  # fmt: skip
    return root


def typed(datasets, tmp_path, *more):
    sizes = ["--train", "2", "--left-out", "1", "--tokenizer-steps", "2", "--steps", "5", "--preset", "tiny"]
    where = ["--out", str(tmp_path / "run"), "--json", str(tmp_path / "found.json")]
    data = [f"{name}={datasets / name}" for name in ("one", "two")]
    return ["bench", "embodiments", "--data", *data, *sizes, "--seeds", "0", "1", *where, *more]


@pytest.mark.slow
def test_all_models_are_measured_on_the_same_episodes_left_out(datasets, tmp_path, capsys):
    assert main(typed(datasets, tmp_path)) == 0
    facts = json.loads((tmp_path / "found.json").read_text())
    assert set(facts["results"]["together"]) == {"one", "two"} and set(facts["results"]["one"]) == {"one"}
    assert [row["windows"] for row in facts["results"]["together"]["two"]] == [1, 1]
    for row in facts["together_minus_alone"].values():
        assert row["low"] <= row["mean"] <= row["high"]
    assert "together - alone" in capsys.readouterr().out
    models = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("model.safetensors")}
    assert len(models) == 6 and main(typed(datasets, tmp_path)) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in models.items()), "finished models are kept"
    assert main(typed(datasets, tmp_path, "--steps", "6")) == 2
    assert "other settings" in capsys.readouterr().err


@pytest.mark.parametrize("data", [["one=a"], ["one=a", "one=b"], ["a", "b"], ["together=a", "one=b"]])
def test_two_names_are_needed(data, capsys):
    assert main(["bench", "embodiments", "--data", *data]) == 2
    assert "at least two datasets with different names" in capsys.readouterr().err
