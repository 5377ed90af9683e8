"""Calibration makes stated probabilities true, keeps the order of verdicts, and keeps a stated false-positive rate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import (
    CalibratedJudge,
    Calibration,
    ComposedJudge,
    LearnedJudge,
    LearnedJudgeConfig,
    Term,
    load_judge,
)
from worldgym.errors import CheckpointError, ConfigError
from worldgym.protocols import Judgement, Reads


def overconfident(count=4000, seed=0):
    """Verdicts that are three times too sure: what happened, and what was said of it."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 1.5, count)
    truth = rng.random(count) < 1 / (1 + np.exp(-z))
    return 1 / (1 + np.exp(-3 * z - 1)), truth


def calibration_error(said, truth, bins=10):
    """Mean gap between stated and true share (Guo et al. 2017, equation 3)."""
    at = np.minimum((said * bins).astype(int), bins - 1)
    return sum(abs(said[at == i].mean() - truth[at == i].mean()) * (at == i).mean() for i in np.unique(at))


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_a_stated_probability_becomes_the_true_share(method):
    fitted = Calibration.fit(*overconfident(), method=method)
    fresh, happened = overconfident(seed=1)
    assert calibration_error(fitted.apply(fresh), happened) < 0.03 < 0.1 < calibration_error(fresh, happened)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["temperature", "isotonic"]), st.floats(0.01, 0.5))
def test_order_is_kept_and_so_is_the_false_positive_rate(seed, method, max_fpr):
    said, truth = overconfident(300, seed)
    fitted = Calibration.fit(said, truth, method=method, max_fpr=max_fpr)
    mapped = fitted.apply(said)
    order = np.argsort(said)
    assert (np.diff(mapped[order]) >= -1e-9).all() and (mapped >= 0).all() and (mapped <= 1).all()
    assert (mapped[~truth] >= fitted.threshold).mean() <= max_fpr + 1e-9


def test_what_gave_no_verdict_is_left_out_and_stays_unsaid():
    said, truth = overconfident(100)
    holes = np.concatenate([said, [np.nan] * 5])
    fitted = Calibration.fit(holes, np.concatenate([truth, [True] * 5]))
    assert fitted.count == 100 and np.isnan(fitted.apply(np.array([np.nan]))).all()


@pytest.mark.parametrize("truth", [np.ones(20, bool), np.zeros(20, bool)])
def test_one_kind_alone_calibrates_nothing(truth):
    with pytest.raises(ConfigError, match="of both kinds"):
        Calibration.fit(np.linspace(0, 1, 20), truth)


class Says:
    name, threshold, reads = "says", 0.5, Reads(state=True)

    def score(self, frames, instructions, states):
        return Judgement(states[:, 0], None, torch.tensor([True, False]), ["a", "b"])


def test_the_judge_is_asked_as_it_wants_and_failures_stay_failures():
    judge = CalibratedJudge(Says(), Calibration((0.0, 1.0), (0.0, 0.5), 0.4))
    verdict = judge.score(
        torch.zeros(2, 1, 8, 8, 3, dtype=torch.uint8), ["x", "y"], torch.tensor([[0.8], [0.2]])
    )
    assert verdict.p_success.tolist() == pytest.approx([0.4, 0.1])
    assert verdict.valid.tolist() == [True, False] and verdict.raw == ["a", "b"]
    assert judge.reads == Reads(state=True) and judge.threshold == 0.4


def test_calibrated_and_composed_judges_come_back_from_disk(tmp_path):
    tiny = LearnedJudge(LearnedJudgeConfig.preset("tiny", image_size=16)).eval()
    calibrated = CalibratedJudge(tiny, Calibration((0.0, 0.5, 1.0), (0.0, 0.2, 0.9), 0.3, "isotonic", 50))
    both = ComposedJudge({"own": Term(tiny), "true": Term(calibrated, 2.0)}, threshold=0.4)
    both.save_pretrained(tmp_path / "both")
    again = load_judge(tmp_path / "both")
    frames = torch.randint(0, 256, (3, 1, 16, 16, 3), dtype=torch.uint8)
    words = ["push the red cube to the left"] * 3
    assert torch.equal(again.score(frames, words).p_success, both.score(frames, words).p_success)
    assert again.name == both.name and again.threshold == 0.4
    with pytest.raises(CheckpointError, match="no folder"):
        load_judge(tmp_path / "nothing")
    (tmp_path / "both" / "composed.json").write_text("{")
    with pytest.raises(CheckpointError, match="no composed judge"):
        load_judge(tmp_path / "both")
