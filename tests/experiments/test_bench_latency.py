"""Times of chunks and success, for policies and for the samplers of a joint model."""

from __future__ import annotations

import json

import numpy as np
import pytest

from agents.policies.joint import JointPolicy
from experiments.cli import main
from experiments.commands.bench_latency import AS_SAVED, INT8, compared, samplers, table
from worldgym.evaluation import EvalResult, make_starts
from worldgym.models import load_world_model
from worldgym.models.joint import JointConfig
from worldgym.pretrained import DEFAULT


@pytest.fixture
def wam(tmp_path):
    """A joint model with random weights for the bundle's frames."""
    bundled = load_world_model(DEFAULT)
    states = np.random.default_rng(0).normal(size=(20, bundled.state_dim)).astype(np.float32)
    config = JointConfig.preset("tiny", "gigaworld").for_data(states, bundled.specs)
    return JointPolicy(config).save_pretrained(tmp_path / "wam")


def test_a_joint_model_is_measured_with_every_sampler_and_other_policies_as_they_are(wam, tmp_path, capsys):
    words = ["bench", "latency", "--policies", "sft", str(wam), "--episodes", "3", "--repeats", "2", "--workers", "0",
             "--horizon", "5", "--json", str(tmp_path / "latency.json")]  # fmt: skip
    assert main(words) == 0
    found = json.loads((tmp_path / "latency.json").read_text())
    rows = found["rows"]
    assert [row["sampler"] for row in rows] == [AS_SAVED, *(label for label, _ in samplers(1.0)), INT8, AS_SAVED]
    assert len(samplers(5.0)) == len(samplers(1.0)) + 1  # guidance changes nothing where no video is sampled
    assert all(row["ms"] > 0 and row["ms_p95"] >= row["ms"] for row in rows) and found["episodes"] == 3
    assert rows[0]["difference"]["mean"] == rows[1]["difference"]["mean"] == 0
    assert "| as saved | " in capsys.readouterr().out


def test_times_alone_need_no_episodes(wam, tmp_path, capsys):
    words = ["bench", "latency", "--policies", str(wam), "--episodes", "0", "--repeats", "1", "--no-stack",
             "--json", str(tmp_path / "latency.json")]  # fmt: skip
    assert main(words) == 0
    (row,) = json.loads((tmp_path / "latency.json").read_text())["rows"]
    assert row["sampler"] == AS_SAVED and "success" not in row


def test_each_row_is_also_measured_with_its_own_latency(wam, tmp_path, capsys):
    words = ["bench", "latency", "--policies", "sft", str(wam), "--episodes", "3", "--repeats", "2", "--workers", "0",
             "--horizon", "6", "--no-stack", "--execution", "blocking", "asynchronous", "--hz", "1e-3",
             "--json", str(tmp_path / "latency.json")]  # fmt: skip
    assert main(words) == 0
    found = json.loads((tmp_path / "latency.json").read_text())
    assert found["hz"] == 1e-3 and "blocking: steps" in capsys.readouterr().out
    for row in found["rows"]:
        assert row["blocking"]["steps"] == row["asynchronous"]["steps"] == 1  # any time is one step of 1000 seconds
        assert row["blocking"]["success"]["episodes"] == 3
    assert main([*words[:-1], str(tmp_path / "no.json"), "--hz", "1e5"]) == 0
    row = json.loads((tmp_path / "no.json").read_text())["rows"][0]
    assert "success" not in row["asynchronous"], "no action is left when a chunk arrives"
    assert row["blocking"]["success"]["mean"] == 0, "the episode ends before the first chunk arrives"


def test_no_row_is_compared_with_a_base_that_could_not_be_measured():
    result = EvalResult(
        tuple(make_starts(["a"], 4)), np.array([True, False, True, True]), np.ones(4), np.ones(4, int),
        ("",) * 4, 0.0, 0, 1.0,
    )  # fmt: skip
    bases = {}
    assert compared(None, bases, ("a", "asynchronous")) == {}
    assert set(compared(result, bases, ("a", "asynchronous"))) == {"success"}
    assert compared(result, bases, ("a", ""))["difference"]["mean"] == 0


def test_speed_is_relative_to_the_models_own_slow_sampler():
    rows = [
        {"policy": "a", "sampler": "slow", "ms": 80.0, "ms_p95": 90.0},
        {"policy": "b", "sampler": "", "ms": 5.0, "ms_p95": 6.0},
        {"policy": "a", "sampler": "fast", "ms": 10.0, "ms_p95": 11.0},
    ]
    assert [line.split(" | ")[3] for line in table(rows).splitlines()[2:]] == ["1.0 x", "1.0 x", "8.0 x"]


@pytest.mark.parametrize(
    ("more", "message"),
    [(["--policies"], "no policies"), (["--repeats", "0"], "repeats"), (["--episodes", "-1"], "episodes"),
     (["--hz", "0"], "hz"), (["--execution", "blocking", "--episodes", "0"], "episodes")],
)
def test_numbers_that_cannot_be_are_refused(more, message, capsys):
    assert main(["bench", "latency", *more]) == 2
    assert message in capsys.readouterr().err
