"""The audit: what judges said at every look, against Real; it agrees with the loop that stops, and with arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from point_world import PointEnv, PointJudge, PointPolicy, PointWorld

from worldgym.evaluation.closed_loop import run_closed_loop
from worldgym.evaluation.judge_audit import JudgeAudit, balanced_accuracy, watch
from worldgym.evaluation.rollouts import make_starts

STARTS = make_starts(["a", "b"], per_task=20)


def seen(gain=1.0, skill=0.35, judges=None, **kwargs) -> JudgeAudit:
    judges = judges or {"point": PointJudge()}
    return watch(PointPolicy(skill), PointWorld(gain), judges, PointEnv(), STARTS, horizon=20, **kwargs)


@pytest.mark.parametrize("gain", [0.5, 1.0, 3.0])
def test_nothing_stops_and_yet_the_counts_are_those_of_the_loop_that_stops(gain):
    looks = seen(gain)
    stopped = run_closed_loop(
        PointPolicy(0.35), PointWorld(gain), PointJudge(), PointEnv(), STARTS, horizon=20
    )
    assert looks.scores["point"].shape == looks.by_then.shape == (40, 4)
    assert (looks.by_then[:, 1:] >= looks.by_then[:, :-1]).all()  # what had succeeded stays so
    success, real, valid = looks.outcomes("point", 0.5)
    assert np.array_equal(success, stopped.imagined) and np.array_equal(real, stopped.real) and valid.all()
    assert looks.confusion("point", 0.5) == stopped.confusion
    assert {task: looks.confusion("point", 0.5, task) for task in ("a", "b")} == stopped.by_task()


def test_a_flattering_world_imagines_more_than_is_true_and_its_judge_is_right_on_real_frames():
    looks = seen(gain=3.0, real_frames=True)
    gap = looks.imagined_minus_true("point", 0.5)
    assert gap.low > 0.2
    assert balanced_accuracy(looks.real_scores["point"] >= 0.5, looks.now) > 0.95
    assert balanced_accuracy(looks.scores["point"] >= 0.5, looks.now) < 0.8
    assert looks.frames.shape == (40, 4, 8, 32, 3) and looks.states.shape == (40, 4, 4)


def test_a_judge_that_fails_is_not_counted_and_takes_no_other_with_it():
    looks = seen(judges={"good": PointJudge(), "bad": PointJudge(fails_on="go left")})
    _, _, valid = looks.outcomes("bad", 0.5)
    left = np.array([text == "go left" for text in looks.instructions])
    assert np.array_equal(valid, ~left) and 0 < left.sum() < 40
    assert looks.confusion("bad", 0.5).n == (~left).sum() and looks.confusion("good", 0.5).n == 40
    assert looks.agreement("good", "bad", (0.5, 0.5)) == 1.0
    assert set(looks.seconds) == {"good", "bad"}


def by_hand(said, now):
    said, now = np.array(said, np.float32), np.array(now, bool)
    return JudgeAudit(
        tuple(STARTS[: len(said)]),
        ["x"] * len(said),
        {"a": said, "b": 1 - said},
        now,
        np.maximum.accumulate(now, 1),
    )


def test_outcomes_stop_at_the_first_success_and_a_failure_after_it_does_not_matter():
    nan = np.nan
    looks = by_hand([[0.1, 0.9, nan], [0.1, nan, 0.9], [0.2, 0.3, 0.1]], [[0, 0, 1], [0, 1, 1], [1, 0, 0]])
    success, real, valid = looks.outcomes("a", 0.5)
    assert success.tolist() == [True, True, False]
    assert real.tolist() == [False, True, True]  # by the second look, by the third, by the end
    assert valid.tolist() == [True, False, True]


def test_agreement_and_calibration_by_hand():
    looks = by_hand([[0.05, 0.95], [0.95, np.nan]], [[0, 1], [0, 0]])
    assert looks.agreement("a", "b", (0.5, 0.5)) == 0.0 and looks.agreement(
        "a", "a", (0.5, 0.99)
    ) == pytest.approx(1 / 3)
    low, high = looks.calibration("a", bins=2)
    assert low == {"stated": pytest.approx(0.05), "true": 0.0, "count": 1}
    assert high == {"stated": pytest.approx(0.95), "true": 0.5, "count": 2}


def test_balanced_accuracy_needs_both_kinds():
    assert balanced_accuracy([1, 1, 0, 0], [1, 0, 0, 0]) == pytest.approx((1 + 2 / 3) / 2)
    assert np.isnan(balanced_accuracy([1, 0], [1, 1]))


def test_watching_nothing_is_an_error():
    with pytest.raises(ValueError, match="starts and judges"):
        watch(PointPolicy(), PointWorld(), {}, PointEnv(), STARTS)


def test_earlier_names_of_an_audit_warn_and_work():
    audit = JudgeAudit((), [], {"a": np.zeros((0, 1))}, np.zeros((0, 1), bool), np.zeros((0, 1), bool))
    with pytest.warns(DeprecationWarning, match="now JudgeAudit.scores"):
        assert audit.said is audit.scores
    with pytest.raises(AttributeError, match="no attribute 'heard'"):
        audit.heard  # noqa: B018
