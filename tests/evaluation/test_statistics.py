"""Intervals: known values, coverage of edge cases, and symmetry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldgym.evaluation.statistics import (
    Confusion,
    mean_interval,
    paired_bootstrap,
    seeds_bootstrap,
    seeds_ratio,
    wilson,
)


def test_wilson_matches_the_textbook_value():
    interval = wilson(81, 263)
    assert interval.mean == pytest.approx(0.30799, abs=1e-4)
    assert interval.low == pytest.approx(0.2553, abs=1e-3)
    assert interval.high == pytest.approx(0.3662, abs=1e-3)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_stays_in_the_unit_range_around_the_mean(case):
    successes, n = case
    interval = wilson(successes, n)
    assert 0 <= interval.low <= interval.mean <= interval.high <= 1
    assert interval.high > interval.low
    mirrored = wilson(n - successes, n)
    assert mirrored.low == pytest.approx(1 - interval.high)


@pytest.mark.parametrize("case", [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_impossible_counts(case):
    with pytest.raises(ValueError, match="wilson needs"):
        wilson(*case)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_paired_difference_is_antisymmetric_and_contains_its_mean(pairs):
    a, b = np.array(pairs, dtype=float).T
    forward, backward = paired_bootstrap(a, b, n_boot=2000), paired_bootstrap(b, a, n_boot=500)
    assert forward.mean == pytest.approx(-backward.mean)
    assert forward.low <= forward.mean <= forward.high
    assert forward.n == len(pairs)


def test_equal_outcomes_have_no_difference_and_a_clear_gain_excludes_zero():
    outcomes = np.tile([0.0, 1.0], 100)
    assert not paired_bootstrap(outcomes, outcomes).excludes(0)
    better = np.maximum(outcomes, np.arange(200) % 10 == 0)
    assert paired_bootstrap(better, outcomes).low > 0


def test_the_interval_agrees_with_the_plain_bootstrap():
    rng = np.random.default_rng(3)
    a, b = rng.random(150) < 0.6, rng.random(150) < 0.45
    fast = paired_bootstrap(a, b, seed=1)
    plain = (a.astype(float) - b)[rng.integers(0, 150, (20_000, 150))].mean(1)
    assert fast.low == pytest.approx(np.quantile(plain, 0.025), abs=0.01)
    assert fast.high == pytest.approx(np.quantile(plain, 0.975), abs=0.01)


def test_a_seed_fixes_the_interval():
    a, b = np.arange(50) % 3 == 0, np.arange(50) % 4 == 0
    assert paired_bootstrap(a, b, seed=7) == paired_bootstrap(a, b, seed=7)


@pytest.mark.parametrize("pair", [([1, 0], [1]), ([], []), ([np.nan], [0.0])])
def test_unpaired_empty_or_broken_outcomes_are_refused(pair):
    with pytest.raises(ValueError, match="paired_bootstrap"):
        paired_bootstrap(*pair)


def test_confusion_counts_and_rates():
    table = Confusion.of([1, 1, 1, 0, 0], [1, 1, 0, 1, 0])
    assert (table.fp, table.tp, table.fn, table.tn) == (1, 2, 1, 1)
    assert table.precision.mean == pytest.approx(2 / 3) and table.recall.mean == pytest.approx(2 / 3)
    assert next(iter(table.to_dict())) == "fp"
    assert (table + table).n == 10


def test_rates_without_a_denominator_are_none_not_zero():
    table = Confusion.of([False, False], [False, False])
    assert table.precision is None and table.recall is None
    assert table.to_dict()["precision"] is None


def test_progress_gets_a_bootstrap_interval():
    interval = mean_interval(np.linspace(0, 1, 101))
    assert interval.low < 0.5 < interval.high


@given(st.integers(1, 4), st.integers(20, 60), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_seeds_and_starts_are_both_resampled(seeds, starts, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.random((seeds, starts)) < 0.6, rng.random((seeds, starts)) < 0.5
    found = seeds_bootstrap(a, b, n_boot=2000)
    assert found.low <= found.mean <= found.high and found.mean == pytest.approx(a.mean() - b.mean())
    if seeds == 1:
        usual = paired_bootstrap(a[0], b[0])
        assert abs(found.low - usual.low) < 0.11 and abs(found.high - usual.high) < 0.11


def test_seeds_that_disagree_widen_the_interval_and_a_seedless_arm_is_paired_with_each():
    starts = np.arange(100) < 50
    same = seeds_bootstrap(np.stack([starts] * 3), np.zeros((1, 100)))
    apart = seeds_bootstrap(np.stack([starts, starts & False, starts | True]), np.zeros((1, 100)))
    assert same.mean == apart.mean == pytest.approx(0.5)
    assert apart.high - apart.low > 2 * (same.high - same.low)
    with pytest.raises(ValueError, match="over the same starts"):
        seeds_bootstrap(np.zeros((2, 3)), np.zeros((3, 3)))


@given(st.integers(1, 4), st.integers(20, 60), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_a_ratio_lies_in_its_interval_and_agrees_with_the_difference_on_who_is_ahead(seeds, starts, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.random((seeds, starts)) < 0.9, rng.random((1, starts)) < 0.4
    if not b.any():
        b[0, 0] = True
    found, apart = seeds_ratio(a, b, n_boot=2000), seeds_bootstrap(a, b, n_boot=2000)
    assert found.low <= found.mean <= found.high
    assert found.mean == pytest.approx(a.mean() / b.mean())
    assert (found.low > 1 + 1e-9) == (apart.low > 1e-9), "the same resamples"


def test_a_ratio_to_nothing_is_refused():
    assert seeds_ratio(np.ones((2, 50)), np.eye(1, 50)).high == float("inf"), (
        "some resamples miss the only success"
    )
    with pytest.raises(ValueError, match="report the difference"):
        seeds_ratio(np.ones((2, 3)), np.zeros((1, 3)))
