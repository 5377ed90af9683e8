"""`worldgym bench best-of`: choosing among attempts, and what it does to a judge that is gamed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.cli import main
from experiments.commands.bench_best_of import BenchBestOfConfig, choices, curve
from worldgym.errors import ConfigError
from worldgym.evaluation import Start
from worldgym.evaluation.judge_audit import JudgeAudit


def watched(said, true, doubt=None):
    """One look an episode."""
    n = len(true)
    looks = {k: np.asarray(v, np.float32)[:, None] for k, v in said.items()}
    won, unsure = np.asarray(true)[:, None], None if doubt is None else np.asarray(doubt)[:, None]
    return JudgeAudit(tuple(Start("reach", i) for i in range(n)), ["x"] * n, looks, won, won, uncertainty=unsure)


def test_the_attempt_that_both_like_is_chosen_and_doubtful_ones_are_left_out():
    seen = [
        watched(
            {"a": [0.99, 0.6, 0.2, 0.9], "b": [0.1, 0.7, 0.9, 0.9]}, [False, True, False, True], [1, 1, 9, 1]
        )
    ]
    levels = {"a": 0.5, "b": 0.5}
    margin, imagined, true = choices(seen, "a", levels, 2)
    assert margin.argmax(1).tolist() == [0, 1] and imagined.tolist() == [[True, True], [False, True]]
    both, agreed, _ = choices(seen, "a+b", levels, 2)
    assert both.argmax(1).tolist() == [1, 1] and agreed.tolist() == [[False, True], [False, True]]
    sure, left, _ = choices(seen, "b~0.25", levels, 2)
    assert np.isneginf(sure[1, 0]) and not left[1, 0] and sure[1].argmax() == 1
    assert true.tolist() == [[False, True], [False, True]]


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_a_gamed_judge_shows_and_an_honest_one_does_not(seed):
    rng = np.random.default_rng(seed)
    true = rng.random((60, 16)) < 0.4
    honest = np.where(true, 1.0, -1.0) + 0.01 * rng.random(true.shape)
    found = curve(honest, honest > 0, true)
    assert found["n"] == [1, 2, 4, 8, 16] and found["true"] == pytest.approx(found["imagined"])
    assert found["true"][-1] > 0.95 and abs(found["gap_grew"]["mean"]) < 1e-9
    fooled = np.where(
        rng.random(true.shape) < 0.3, 3.0, honest
    )  # loves three attempts in ten whatever they are
    found = curve(fooled, fooled > 0, true)
    assert found["imagined"][-1] > 0.95 and found["gap_grew"]["low"] > 0 and found["true"][-1] < 0.7


def test_the_command_writes_figures_and_a_picture(bundle, tmp_path, capsys):
    out = tmp_path / "best.json"
    typed = [
        "bench",
        "best-of",
        "--bundle",
        str(bundle),
        "--judges",
        "bundled",
        "bundled+bundled~0.5",
        "--attempts",
        "4",
    ]
    typed += ["--starts", "4", "--seeds", "0", "1", "--horizon", "10", "--threads", "1", "--json", str(out)]
    assert main(typed) == 0
    facts = json.loads(out.read_text())
    assert facts["starts"] == 8 and set(facts["judges"]) == {"bundled", "bundled+bundled~0.5"}
    row = facts["judges"]["bundled"]
    assert row["n"] == [1, 2, 4] and row["imagined"] == sorted(row["imagined"]), (
        "more to choose from, more liked"
    )
    assert out.with_suffix(".png").stat().st_size > 5000 and "gap grew by" in capsys.readouterr().out


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(ConfigError, match="share of uncertain"):
        BenchBestOfConfig(judges=("bundled~2",))
    with pytest.raises(ConfigError, match="attempts"):
        BenchBestOfConfig(attempts=1)
