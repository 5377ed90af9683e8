"""The environment bench, whole at toy size."""

from __future__ import annotations

import json

import pytest

from experiments.cli import main
from experiments.commands.bench_env import BenchEnvConfig
from worldgym.errors import ConfigError


def test_the_bench_runs_and_writes_what_it_says(bundle, tmp_path, capsys):
    out = tmp_path / "env.json"
    few = "--seconds 0.05 --rounds 2 --batches 1 3 --branches 4 --threads 1".split()
    assert main(["bench", "env", "--bundle", str(bundle), "--json", str(out), *few]) == 0
    facts = json.loads(out.read_text())
    assert set(facts["overhead"]) == {"1", "3"} and facts["overhead"]["3"]["direct_ms"] > 0
    assert facts["branches"]["count"] == 4 and facts["branches"]["fork_over_resets"] > 0
    assert 0 < facts["import_seconds"] < 5
    said = capsys.readouterr().out
    assert "4 branches from mid-episode" in said and str(out) in said


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        BenchEnvConfig(branches=0)
    with pytest.raises(ConfigError, match="at least 1"):
        BenchEnvConfig(batches=())


@pytest.mark.slow  # Ray's workers import everything again
def test_ray_workers_are_measured_and_soaked(bundle, tmp_path, capsys):
    pytest.importorskip("ray", reason="needs the extra `rllib`")
    out = tmp_path / "env.json"
    few = "--seconds 0.05 --rounds 1 --batches 1 --branches 2 --threads 1 --workers 2 --soak 10".split()
    assert main(["bench", "env", "--bundle", str(bundle), "--json", str(out), *few]) == 0
    facts = json.loads(out.read_text())
    assert facts["ray"]["efficiency"] > 0 and facts["ray"]["bytes_per_step"] > 100
    assert len(facts["soak"]["driver_mb"]) == 5 and min(facts["soak"]["workers_mb"]) > 50
    assert "memory over 10 rounds" in capsys.readouterr().out


def test_a_soak_without_workers_is_refused():
    with pytest.raises(ConfigError, match="--workers 2"):
        BenchEnvConfig(soak=10)
