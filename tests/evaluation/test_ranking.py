"""Ranking agreement: known answers, invariances, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from worldgym.evaluation.ranking import agreement, mmrv, pearson, spearman

RATES = st.lists(st.integers(0, 20), min_size=3, max_size=8)


@given(RATES, st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_correlations_agree_with_scipy(x, seed):
    y = np.random.default_rng(seed).integers(0, 20, len(x))
    if len(set(x)) < 2 or len(set(y.tolist())) < 2:
        assert np.isnan(pearson(x, y))
        return
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-9)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)


def test_rank_violation_is_the_true_gap_of_what_was_swapped():
    true = [0.1, 0.5, 0.9]
    assert mmrv([1, 2, 3], true) == 0
    assert mmrv([2, 1, 3], true) == pytest.approx((0.4 + 0.4 + 0) / 3)
    assert mmrv([3, 2, 1], true) == pytest.approx((0.8 + 0.4 + 0.8) / 3)


def test_an_evaluator_that_is_right_ranks_perfectly_and_its_interval_says_how_sure():
    rng = np.random.default_rng(0)
    u = rng.random(60)
    true = np.stack([u < rate for rate in (0.1, 0.3, 0.5, 0.7)])
    result = agreement(true, true, resamples=200)
    assert result["pearson"]["mean"] == pytest.approx(1) and result["mmrv"]["mean"] == 0
    guess = rng.random((4, 60)) < 0.5
    blind = agreement(guess, true, resamples=200)
    assert blind["pearson"]["low"] < 0 < blind["pearson"]["high"] or blind["pearson"]["mean"] < 0.9


@given(st.integers(0, 1000), st.floats(0, 0.3))
@settings(max_examples=25, deadline=None)
def test_an_interval_holds_its_estimate_and_stays_in_range(seed, errors):
    rng = np.random.default_rng(seed)
    true = rng.random((12, 80)) < np.linspace(0.1, 0.9, 12)[:, None]
    said = true ^ (rng.random(true.shape) < errors)
    for name, row in agreement(said, true, resamples=60).items():
        assert row["low"] <= row["mean"] <= row["high"] and row["policies"] == 12
        assert (0 if name == "mmrv" else -1) <= row["low"] and (name == "mmrv" or row["high"] <= 1)


def test_intervals_hold_the_correlation_of_endless_starts_about_as_often_as_they_say():
    rates = np.linspace(0.3, 0.8, 8)
    leniency = np.array([0.05, -0.1, 0.1, 0, -0.05, 0.1, 0, -0.1])  # what no number of starts averages away
    wanted, held = pearson(rates + leniency, rates), 0
    for seed in range(60):
        u = np.random.default_rng(seed).random(100)
        row = agreement(u < (rates + leniency)[:, None], u < rates[:, None], resamples=100)["pearson"]
        held += row["low"] <= wanted <= row["high"]
    assert held >= 50, held


def test_two_policies_are_no_ranking():
    with pytest.raises(ValueError, match="at least 3"):
        agreement(np.ones((2, 5), bool), np.ones((2, 5), bool))
