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


def test_two_policies_are_no_ranking():
    with pytest.raises(ValueError, match="at least 3"):
        agreement(np.ones((2, 5), bool), np.ones((2, 5), bool))
