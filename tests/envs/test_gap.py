"""The frozen gap: fixed by experts, and what it stands for has not changed since."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from envs.gap import GAP_SEED0, WANTED_REPLAY
from envs.tabletop.gap import freeze, frozen, measure_gap
from envs.tabletop.scene import Physics
from experiments.cli import main
from experiments.commands.bench_gap import BenchGapConfig
from worldgym.errors import ConfigError


def row(gap, replay, soft=1.0):
    return {"gap": gap, "tasks": {"reach": {"real": 1.0, "soft": soft, "replay": replay}}, "episodes": 1}


def test_what_is_frozen_follows_from_its_measurements_and_the_physics_are_those():
    facts = frozen()
    assert freeze(facts["measured"])["gap"] == facts["gap"]
    now = {
        k: list(v) if isinstance(v, tuple) else v
        for k, v in dataclasses.asdict(Physics().softened(1.0)).items()
    }
    assert set(facts["physics_at_gap_1"]) == set(now)
    for name, value in facts["physics_at_gap_1"].items():
        assert value == pytest.approx(now[name]), (
            f"{name} changed: measure again (worldgym bench gap), then freeze()"
        )
    assert min(t["real"] for r in facts["measured"] for t in r["tasks"].values()) >= 0.9


def test_the_gap_nearest_to_the_wanted_replays_is_taken_among_those_that_experts_solve():
    assert freeze([row(0.25, 0.9), row(0.5, 0.45), row(1.0, WANTED_REPLAY, soft=0.5)])["gap"] == 0.5
    with pytest.raises(ValueError, match="at no gap"):
        freeze([row(0.5, 0.4, soft=0.2)])


def test_without_a_gap_replays_succeed_as_they_did():
    found = measure_gap(0.0, tasks=("reach",), episodes=3)["tasks"]["reach"]
    assert found["soft"] == found["real"] == found["replay"]
    assert GAP_SEED0 >= 10_000_000


def test_the_command_prints_and_writes(tmp_path, capsys):
    out = tmp_path / "gap.json"
    assert main(["bench", "gap", "--gaps", "0.5", "--episodes", "1", "--json", str(out)]) == 0
    assert "frozen gap: 0.5" in capsys.readouterr().out
    tasks = json.loads(out.read_text())[0]["tasks"]
    assert (
        set(tasks) == {"reach", "push", "pick_place"} and np.isin(list(tasks["reach"].values()), (0, 1)).all()
    )
    with pytest.raises(ConfigError, match=r"gaps must lie in \[0, 1\]"):
        BenchGapConfig(gaps=(2.0,))
