"""Errors of predicted frames in the real domain, compared at equal times."""

from __future__ import annotations

import json

import numpy as np
import pytest

from agents.loading import load_policy
from experiments.cli import main
from experiments.suites import chosen_suite, real_env
from worldgym import pretrained
from worldgym.evaluation import make_starts
from worldgym.evaluation.surprise import Watched, watch
from worldgym.models import load_world_model
from worldgym.pretrained import DEFAULT

NAN = np.nan


def watched(errors, success) -> Watched:
    starts = make_starts(["reach"], len(success), 10_000_000)
    errors = np.array(errors, float)
    return Watched(tuple(starts), np.array(success), errors, np.ones_like(errors))


def test_only_episodes_whose_outcome_is_open_count():
    found = watched([[1, NAN, NAN], [1, 9, NAN], [1, 2, 3], [5, 6, 7]], [True, True, True, False])
    assert found.running(1).tolist() == [False, True, True, True]
    assert found.running(2).tolist() == [False, False, True, True]
    value = found.auroc(1)
    assert value.mean == 1.0 and value.n == 3  # 5 against 1 and 1
    assert found.auroc(2).mean == 1.0 and found.auroc(2, control=True).mean == 0.5
    assert found.auroc(3) is None  # nobody goes on


def test_a_score_is_the_mean_error_of_the_first_chunks():
    found = watched([[1, 3, NAN], [4, 0, 9]], [True, False])
    assert found.scores(2).tolist() == [2.0, 2.0] and found.scores(1).tolist() == [1.0, 4.0]


@pytest.fixture(scope="module")
def bundled():
    return load_policy(pretrained.path(DEFAULT) / "policy_sft"), load_world_model(DEFAULT)


def test_frames_are_predicted_for_the_chunks_that_were_executed(bundled):
    policy, model = bundled
    env = real_env(chosen_suite(None, DEFAULT), horizon=12)
    starts = make_starts(["reach", "push"], 2, 10_000_000)
    done = []
    found = watch(policy, model, env, starts, horizon=12, progress=lambda i, n: done.append((i, n)))
    again = watch(policy, model, env, starts[::-1], horizon=12)
    env.close()
    assert found.errors.shape == (4, 3) and done[-1] == (4, 4)
    assert np.isfinite(found.errors[:, 0]).all() and (np.nanmax(found.errors) < np.nanmax(found.changes) * 2)
    for errors in found.errors:  # an episode that ended has no later chunks
        known = np.isfinite(errors)
        assert not known[int(known.sum()) :].any()
    np.testing.assert_allclose(found.errors, again.errors[::-1], rtol=0.05, atol=1e-5)


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    words = [
        "bench",
        "surprise",
        "--episodes",
        "3",
        "--horizon",
        "10",
        "--chunks",
        "1",
        "--json",
        str(tmp_path / "s.json"),
    ]
    assert main(words) == 0
    (row,) = json.loads((tmp_path / "s.json").read_text())["rows"]
    assert row["chunks"] == 1 and row["running"] <= 3 and "| after chunks |" in capsys.readouterr().out


def test_numbers_that_cannot_be_are_refused(capsys):
    assert main(["bench", "surprise", "--chunks", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err
