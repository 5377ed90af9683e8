"""The gate: a faithful world passes it, a flattering one fails on precision, a gloomy one on recall."""

from __future__ import annotations

import json

import numpy as np
import pytest
from point_world import PointEnv, PointJudge, PointPolicy, PointWorld

from worldgym.evaluation.closed_loop import run_closed_loop
from worldgym.evaluation.rollouts import make_starts

STARTS = make_starts(["a", "b"], per_task=20)


def gate(gain=1.0, skill=1.0, **kwargs):
    settings = {"horizon": 20, "batch": 7, **kwargs}
    judge = settings.pop("judge", PointJudge())
    return run_closed_loop(PointPolicy(skill), PointWorld(gain), judge, PointEnv(), STARTS, **settings)


def test_a_faithful_world_passes():
    result = gate(skill=0.35, temperature=1.0, seed=2)
    assert result.confusion.n == 40 and 5 < result.confusion.tp < 40
    assert result.confusion.accuracy.mean >= 0.9
    assert result.passes(0.8)
    assert sum(result.by_task().values(), start=type(result.confusion)()) == result.confusion


def test_a_flattering_world_shows_false_positives():
    result = gate(gain=3.0, skill=0.5)
    assert result.confusion.fp > 20 and not result.passes(0.8)
    assert result.imagined_rate().mean > result.real_rate().mean


def test_a_gloomy_world_shows_false_negatives():
    result = gate(gain=0.1)
    assert result.confusion.fn == 40 and result.confusion.precision is None
    assert not result.passes(0.8)


def test_actions_stop_at_the_imagined_success_and_at_the_horizon():
    assert (gate(gain=3.0).steps <= 5).all()
    assert (gate(gain=0.1, horizon=12).steps == 12).all()


def test_the_first_episodes_are_recorded_side_by_side():
    result = gate(clips=3)
    assert len(result.clips) == 3
    clip = result.clips[0]
    assert clip.start == STARTS[0] and clip.verdict == "tp"
    assert clip.imagined.shape[1:] == clip.real.shape[1:] == (8, 32, 3)
    assert np.array_equal(clip.imagined[0], clip.real[0])
    assert len(clip.imagined) == result.steps[0] + 1
    assert np.array_equal(gate().imagined, result.imagined), "recording must not change greedy outcomes"


def test_a_failing_judge_drops_episodes_instead_of_scoring_zero():
    result = gate(judge=PointJudge(fails_on="go left"))
    assert 0 < result.invalid.sum() < 40
    assert result.confusion.n == 40 - result.invalid.sum()


def test_episodes_of_which_the_world_model_is_unsure_are_dropped():
    plain, sure, unsure = gate(), gate(max_uncertainty=1e9), gate(max_uncertainty=-1.0)
    assert not sure.invalid.any() and np.array_equal(sure.imagined, plain.imagined)
    assert unsure.invalid.all() and unsure.confusion.n == 0 and not unsure.passes(0.8)


def test_results_are_json_with_false_positives_first():
    data = json.loads(json.dumps(gate().to_dict()))
    assert next(iter(data["confusion"])) == "fp" and data["judge"] == "point"
    assert len(data["outcomes"]["real"]) == 40


def test_no_starts_is_an_error():
    with pytest.raises(ValueError, match="make_starts"):
        run_closed_loop(PointPolicy(), PointWorld(), PointJudge(), PointEnv(), [])


def test_success_may_have_to_be_confirmed_at_a_second_chunk_end():
    once, twice = gate(gain=3.0), gate(gain=3.0, confirm=2)
    assert (twice.steps >= once.steps + 5).all()


def test_the_judge_decides_its_threshold_unless_told():
    judge = PointJudge()
    judge.threshold = 1.1
    assert not gate(judge=judge).imagined.any()
    assert gate(judge=judge, threshold=0.5).imagined.all()


@pytest.mark.parametrize("trouble", ["nan", "invalid", "timeout", "refused"])
def test_a_row_without_a_verdict_is_invalid_and_never_a_failure(trouble):
    import torch

    from worldgym.protocols import Judgement, settled

    class Judge:
        name = "odd"

        def score(self, frames, instructions):
            if trouble in ("timeout", "refused"):
                raise (TimeoutError if trouble == "timeout" else ConnectionError)("no answer")
            p = torch.tensor([0.9, float("nan") if trouble == "nan" else 0.9])
            return Judgement(p, None, torch.tensor([True, trouble == "nan"]))

    verdict = settled(Judge(), torch.zeros(2, 1, 4, 4, 3, dtype=torch.uint8), ["a", "b"], None)
    whole = trouble in ("timeout", "refused")
    assert verdict.valid.tolist() == [not whole, False] and verdict.p_success[1] == 0
