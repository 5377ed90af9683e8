"""`worldgym coevolve`: a run in rounds, what stops it, and what its recipes ask for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.cli import main
from experiments.pipelines.coevolution_facts import decide
from experiments.pipelines.coevolve import RECIPES, Coevolution, CoevolveSettings
from experiments.reports.coevolution import write_coevolution_report
from worldgym.errors import ConfigError
from worldgym.utils.files import read_sealed
from worldgym.utils.tensors import load_tensors


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs") / "data"
    line = ["--episodes", "12", "--tasks", "reach", "push", "--workers", "0", "--horizon", "12"]
    assert main(["collect", "--out", str(folder), *line]) == 0
    return folder


def line(bundle: Path, logs: Path, out: Path, *more: str) -> list[str]:
    few = ["--episodes", "4", "--final-episodes", "4", "--workers", "0", "--rounds", "1", "--preset", "tiny"]
    return ["coevolve", "--bundle", str(bundle), "--data", str(logs), "--out", str(out), *few, *more]


@pytest.mark.usefixtures("stages_in_this_process")
def test_a_round_is_collected_trained_measured_and_the_best_one_is_kept(bundle, logs, tmp_path, capfd):
    out = tmp_path / "run"
    assert main(line(bundle, logs, out, "--recipe", "vlaw")) == 0
    shown = capfd.readouterr().out
    assert "stopped: all 1 rounds are done" in shown and "4 episodes in Real, true success" in shown
    before, after = (read_sealed(out / f"round-0{n}" / "round.json", "") for n in (0, 1))
    assert (before["real_episodes"], after["real_episodes"]) == (0, 4)
    assert sum(after["world_model"]["after"][name] for name in ("fp", "tp", "fn", "tn")) == 4
    assert after["parts"]["policy"].endswith("practice/policy") and after["world_model"]["before"]["psnr"] > 0
    result = read_sealed(out / "result.json", "")
    assert result["best"] in (0, 1) and result["final"]["first"]["episodes"] == 4
    assert (out / "policy" / "config.json").is_file() and "Co-evolution" in (out / "report.html").read_text()
    assert len(list((logs / "meta").glob("collect-*.json"))) == 1  # the given logs did not grow
    # the same command changes nothing, and another seed is refused
    weights = (out / "policy" / "model.safetensors").read_bytes()
    assert main(line(bundle, logs, out, "--recipe", "vlaw")) == 0
    assert "[round" not in capfd.readouterr().out
    assert (out / "policy" / "model.safetensors").read_bytes() == weights
    assert main(line(bundle, logs, out, "--recipe", "vlaw", "--seed", "1")) == 2
    assert "--seed" in capfd.readouterr().err


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_ends_as_an_uninterrupted_one(bundle, logs, tmp_path):
    """SIGKILL after a random time, each time; a killed run may have finished before."""
    rng = np.random.default_rng(0)
    runs = {name: line(bundle, logs, tmp_path / name, "--recipe", "dyna") for name in ("whole", "killed")}
    assert main(runs["whole"]) == 0
    kills = 0
    while kills < 20:
        process = subprocess.Popen([sys.executable, "-m", "worldgym", *runs["killed"]], stdout=subprocess.DEVNULL)
        try:
            assert process.wait(float(rng.uniform(3, 25))) == 0
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    assert main(runs["killed"]) == 0
    assert kills > 3
    for part in ("policy", "round-01/world_model/export", "round-01/judge", "round-01/practice/policy"):
        whole, again = (load_tensors(tmp_path / name / part / "model.safetensors") for name in runs)
        assert whole.keys() == again.keys()
        assert all(torch.equal(whole[key], again[key]) for key in whole), part
    kept = ("true", "imagined", "by_task", "real_episodes", "world_model")
    rows = [read_sealed(tmp_path / name / "round-01" / "round.json", "") for name in runs]
    assert [rows[0][key] for key in kept] == [rows[1][key] for key in kept]


@pytest.mark.parametrize("recipe", sorted(file.stem for file in RECIPES.glob("*.yaml")))
@pytest.mark.parametrize("preset", ["small", "tiny"])
def test_every_command_of_a_recipe_can_be_parsed(logs, tmp_path, recipe, preset):
    from experiments.commands.build import parse

    given = CoevolveSettings(recipe, "tabletop-small", logs, tmp_path / "run", preset=preset)
    coevolution = Coevolution(given)
    coevolution.check(parse)
    stages = coevolution.recipe(1).stages
    assert stages[0].words == ("collect",) and stages[-1].words == ("bench", "closed-loop")
    assert not (tmp_path / "run").exists()


def test_a_head_on_the_latents_needs_a_world_model_that_can_have_one(bundle, logs, tmp_path, capsys):
    assert main(line(bundle, logs, tmp_path / "run", "--recipe", "world-vla-loop", "--dry-run")) == 2
    assert "--success-head is for --type chunk, got --type video" in capsys.readouterr().err


def row(number: int, successes: int, gap: float | None, of: int = 100) -> dict:
    outcomes = [n < successes for n in range(of)]
    rate = {"mean": successes / of, "low": 0.0, "high": 1.0, "outcomes": outcomes}
    counts = {"fp": 1, "tp": 2, "fn": 3, "tn": 4}
    return {
        "round": number, "true": rate, "imagined": None if gap is None else 0.5 + gap, "executed": 0.5, "gap": gap,
        "precision": 0.5, "recall": None, "confusion": counts, "by_task": {"reach": counts}, "stop": None,
        "real_episodes": 50 * number,
        "world_model": {when: {"psnr": 20.0, **counts} for when in ("before", "after")} if number else None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("successes", "gap", "said"),
    [
        (60, 0.10, None), (60, 0.24, "the gap between imagined and true success grew by 19.0 points in round 1"),
        (44, 0.05, "true success fell by 6.0 points"), (47, 0.05, None), (47, None, None),
    ],
)  # fmt: skip
def test_a_run_stops_when_true_success_falls_or_the_gap_grows(successes, gap, said):
    found = decide(row(0, 50, 0.05), row(1, successes, gap), gap_bound=0.1, fall_bound=0.05)
    assert found is None if said is None else said in found


def test_a_significant_fall_ends_a_run_however_small():
    before, after = row(0, 5000, 0.0, of=10_000), row(1, 4950, 0.0, of=10_000)
    assert "true success fell by 0.5 points" in decide(before, after, gap_bound=1.0, fall_bound=1.0)


def test_the_best_round_is_the_earliest_with_the_highest_true_success(bundle, tmp_path):
    coevolution = Coevolution(CoevolveSettings(bundle=str(bundle), out=tmp_path))
    coevolution.rows = [
        row(0, 50, 0.0),
        row(1, 60, 0.1),
        row(2, 60, 0.2),
        {**row(3, 55, 0.3), "stop": "it fell"},
    ]
    assert coevolution.best["round"] == 1 and coevolution.reason_to_stop() == "it fell"
    page = write_coevolution_report(coevolution.rows, tmp_path / "report.html", "vlaw").read_text()
    assert "it fell" in page and "measured before the first round" in page and page.count("20.00") == 6


def test_wrong_settings_are_explained(bundle, logs, tmp_path, capsys):
    for more, said in {
        ("--recipe", "vlew"): "there is no recipe 'vlew'; there are dyna, vlaw, world-vla-loop",
        ("--seed", "7"): "seed is 7, expected 0 to 4",
        ("--set", "policy=x"): "--set policy is set by the run itself",
        ("--set", "colour=1"): "has no values ['colour']",
        ("--gap-bound", "2"): "gap_bound and fall_bound are rates",
    }.items():
        assert main(line(bundle, logs, tmp_path / "run", *more)) == 2
        assert said in capsys.readouterr().err
    mine = tmp_path / "mine.yaml"
    mine.write_text(json.dumps({"stages": [{"info": {}}], "results": {"friend": "$out/x"}, "values": {}}))
    with pytest.raises(ConfigError, match="'friend', expected some of policy, world_model, judge, bundle"):
        Coevolution(CoevolveSettings(str(mine), str(bundle), logs, tmp_path / "other")).recipe(1)
