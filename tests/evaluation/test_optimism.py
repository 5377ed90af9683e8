"""Optimism: shares, AUROC and gap with intervals over starts."""

from __future__ import annotations

import numpy as np
import pytest

from worldgym.evaluation.optimism import Optimism


def some(scores, true, starts=None, families=None) -> Optimism:
    n = len(scores)
    starts = np.arange(n) if starts is None else np.asarray(starts)
    families = ("frozen",) * n if families is None else tuple(families)
    return Optimism(starts, families, np.ones(n), np.asarray(scores, float), np.asarray(true, bool), 0.5)


def test_shares_auroc_and_gap_are_those_of_their_definitions():
    found = some([0.9, 0.7, 0.6, 0.2, 0.4, 0.8], [True, True, False, False, True, False])
    assert found.optimism().mean == pytest.approx(2 / 3) and found.optimism().n == 3
    assert found.recognised().mean == pytest.approx(2 / 3)
    assert found.gap().mean == pytest.approx(2 / 3 - 1.6 / 3)
    pairs = [a > b for a in (0.9, 0.7, 0.4) for b in (0.6, 0.2, 0.8)]
    assert found.auroc().mean == pytest.approx(np.mean(pairs))


def test_intervals_resample_starts_and_not_sequences():
    rng = np.random.default_rng(0)
    lucky = rng.random(20) < 0.5
    once = some(np.where(lucky, 0.9, 0.1), np.zeros(20))
    often = some(np.repeat(np.where(lucky, 0.9, 0.1), 15), np.zeros(300), np.repeat(np.arange(20), 15))
    width = [rate.high - rate.low for rate in (once.optimism(), often.optimism())]
    assert width[1] == pytest.approx(width[0], abs=0.06), "fifteen equal sequences of a start say no more than one"


def test_a_model_that_shows_success_for_everything_is_told_from_a_true_one():
    true = np.arange(40) % 2 == 0
    blind, good = some(np.full(40, 0.9), true), some(np.where(true, 0.9, 0.1), true)
    assert blind.optimism().mean == 1 and blind.auroc().mean == 0.5 and blind.gap().mean == 0
    assert good.optimism().mean == 0 and good.auroc().mean == 1 and good.gap().low > 0.7


def test_undefined_figures_are_none_and_families_are_selected():
    found = some([0.9, 0.1], [True, True], families=("none", "frozen"))
    assert found.optimism() is None and found.auroc() is None and found.gap() is None
    assert found.of("none").recognised().mean == 1 and found.of("frozen", 2.0).recognised() is None
    with pytest.raises(ValueError, match="not finite"):
        some([np.nan], [True])
    with pytest.raises(ValueError, match="one value per sequence"):
        some([0.5, 0.5], [True])
