"""Paired evaluation: same starts for everybody, order kept, same numbers for any number of workers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from point_world import PointEnv, PointPolicy

from worldgym.errors import CheckpointError
from worldgym.evaluation.rollouts import (
    EvalResult,
    EvaluationPool,
    PolicyRef,
    evaluate_policy,
    make_starts,
    resolve,
    shuffle_instructions,
)
from worldgym.protocols import Policy

STARTS = make_starts(["a", "b"], per_task=11)


def test_the_stand_in_policy_obeys_the_protocol():
    assert isinstance(PointPolicy(), Policy)


def test_starts_are_the_same_every_time_and_outside_the_training_seeds():
    assert make_starts(["a", "b"], 11) == STARTS
    assert len({start.seed for start in STARTS}) == 22
    assert min(start.seed for start in STARTS) >= 10_000_000
    with pytest.raises(ValueError, match="trained on"):
        make_starts(["a"], 2, seed0=5)
    with pytest.raises(ValueError, match="per_task"):
        make_starts(["a"], 0)


def test_a_good_policy_succeeds_and_a_bad_one_does_not():
    good = evaluate_policy(PointPolicy(), PointEnv, STARTS, workers=0)
    bad = evaluate_policy(PointPolicy(skill=-1), PointEnv, STARTS, workers=0)
    assert good.rate().mean == 1 and bad.rate().mean == 0
    assert (good.steps < 20).all() and (bad.steps == 20).all()
    assert set(good.by_task()) == {"a", "b"} and good.by_task()["a"].n == 11
    assert bad.mean_progress().mean < 0.3


def test_sampling_is_fixed_by_the_seed_and_differs_between_seeds():
    def run(seed):
        return evaluate_policy(
            PointPolicy(0.35), PointEnv, STARTS, temperature=1.0, seed=seed, workers=0, block=8
        )

    assert np.array_equal(run(1).steps, run(1).steps)
    assert not np.array_equal(run(1).steps, run(2).steps)


def test_worker_processes_give_the_numbers_of_this_process(tmp_path):
    policy = PointPolicy(0.35)
    policy.save_pretrained(tmp_path)
    ref = PolicyRef(str(tmp_path), "point_world:PointPolicy")
    here = evaluate_policy(policy, PointEnv, STARTS, temperature=1.0, seed=3, workers=0, block=4)
    seen = []
    with EvaluationPool("point_world:PointEnv", workers=2, block=4, env_kwargs={"domain": "real"}) as pool:
        there = pool.evaluate(ref, STARTS, temperature=1.0, seed=3, progress=lambda *at: seen.append(at))
        again = pool.evaluate(policy, STARTS, temperature=1.0, seed=3)
        PointPolicy(-1).save_pretrained(tmp_path)
        overwritten = pool.evaluate(ref, STARTS, seed=3)
    for other in (there, again):
        assert np.array_equal(other.success, here.success) and np.array_equal(other.steps, here.steps)
        assert other.instructions == here.instructions
    assert seen[-1] == (22, 22)
    assert overwritten.rate().mean == 0, "a worker must notice that the files changed"


def test_a_policy_told_the_wrong_instruction_fails():
    truth = evaluate_policy(PointPolicy(), PointEnv, STARTS, workers=0)
    blind = shuffle_instructions(truth, seed=0)
    assert all(start.instruction != own for start, own in zip(blind, truth.instructions, strict=True))
    result = evaluate_policy(PointPolicy(), PointEnv, blind, workers=0)
    assert result.rate().mean == 0
    assert result.instructions == truth.instructions, "the environment still judges the true instruction"


def test_results_survive_json():
    result = evaluate_policy(PointPolicy(0.35), PointEnv, STARTS, temperature=1.0, workers=0)
    back = EvalResult.from_dict(json.loads(json.dumps(result.to_dict())))
    assert back.starts == result.starts and np.array_equal(back.success, result.success)
    assert back.rate() == result.rate()
    with pytest.raises(ValueError, match="outcomes"):
        EvalResult.from_dict({"success": {}})


def test_bad_requests_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="make_starts"):
        evaluate_policy(PointPolicy(), PointEnv, [], workers=0)
    with pytest.raises(CheckpointError, match="save_pretrained"):
        evaluate_policy(
            PolicyRef(str(tmp_path / "no"), "point_world:PointPolicy"), PointEnv, STARTS, workers=0
        )
    with pytest.raises(ValueError, match="module:Class"):
        EvaluationPool(PointEnv, workers=1)
    with pytest.raises(ValueError, match="module:attribute"):
        resolve("point_world.PointEnv")
    with pytest.raises(ValueError, match="NoSuch"):
        resolve("point_world:NoSuch")
