"""A judge that reads proprioception tells apart what one camera cannot, and is told it wherever it is asked."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from judged_world import SIZE, logs

from rewards import LearnedJudge, LearnedJudgeConfig, train_judge
from rewards.wrappers.cache import CachedJudge
from worldgym.errors import ConfigError
from worldgym.protocols import Reads, RewardModel, judged

TINY = LearnedJudgeConfig.preset("tiny", image_size=SIZE, dropout=0.0)


def test_adding_proprioception_changes_no_verdict_at_first():
    torch.manual_seed(0)
    judge, arrays = LearnedJudge(TINY).eval(), logs(4)
    wider = judge.with_state(arrays.states)
    assert isinstance(wider, RewardModel) and wider.reads.state and not judge.reads.state
    frames = torch.from_numpy(arrays.frames[:6, None])
    words, states = ["push the red cube to the left"] * 6, torch.randn(6, arrays.states.shape[1])
    before, after = judge.score(frames, words), wider.score(frames, words, states)
    assert torch.allclose(before.p_success, after.p_success, atol=1e-5)
    assert wider.with_state(arrays.states) is wider and wider.threshold == judge.threshold


@pytest.mark.slow
def test_what_the_picture_hides_is_learned_from_proprioception(tmp_path):
    """Success is the sign of a height that no frame shows."""
    arrays = logs(60)
    rng = np.random.default_rng(0)
    states = rng.normal(size=arrays.states.shape).astype(np.float32)
    arrays = dataclasses.replace(arrays, states=states, success=arrays.success & (states[:, 2] > 0))
    tells = {}
    for state_dim in (0, states.shape[1]):
        model = dataclasses.replace(TINY, state_dim=state_dim)
        judge, report = train_judge(
            arrays, model=model, steps=300, batch_size=48, lr=2e-3, val_fraction=0.2, val_pairs=300
        )
        frames = torch.from_numpy(arrays.frames[arrays.success][:40, None])
        words = [
            arrays.instructions[i]
            for i in np.searchsorted(arrays.offsets, np.flatnonzero(arrays.success)[:40], "right") - 1
        ]
        high, low = (torch.full((len(frames), states.shape[1]), 0.0) for _ in range(2))
        high[:, 2], low[:, 2] = 1.0, -1.0
        tells[state_dim] = float(
            (
                judged(judge, frames, words, high).p_success - judged(judge, frames, words, low).p_success
            ).mean()
        )
    assert tells[0] == 0 and tells[states.shape[1]] > 0.5
    again = LearnedJudge.from_pretrained(judge.save_pretrained(tmp_path / "j") or tmp_path / "j")
    assert again.reads.state and torch.equal(again.state_std, judge.state_std)


def test_proprioception_that_is_missing_or_of_another_shape_is_asked_for():
    judge = LearnedJudge(dataclasses.replace(TINY, state_dim=4))
    frames = torch.zeros(2, 1, SIZE, SIZE, 3, dtype=torch.uint8)
    for states in (None, torch.zeros(2, 3)):
        with pytest.raises(ConfigError, match=r"expected states \(2, 4\)"):
            judge.score(frames, ["x", "y"], states)


def test_a_cache_keeps_verdicts_by_proprioception_too():
    torch.manual_seed(0)
    judge = LearnedJudge(dataclasses.replace(TINY, state_dim=4)).eval()
    cached = CachedJudge(judge)
    frames = torch.zeros(2, 1, SIZE, SIZE, 3, dtype=torch.uint8)
    states = torch.tensor([[0.0, 0, 0, 0], [9.0, 9, 9, 9]])
    assert cached.reads.state
    first = judged(cached, frames, ["x", "x"], states).p_success
    assert cached.misses == 2 and not torch.allclose(first[0], first[1])
    assert torch.equal(judged(cached, frames, ["x", "x"], states).p_success, first) and cached.hits == 2


class StateJudge:
    """Success where the hand is far to the right, by what it is told."""

    name, threshold, reads = "state", 0.5, Reads(state=True)

    def __init__(self) -> None:
        self.told: list[torch.Tensor] = []

    def score(self, frames, instructions, states=None):
        from worldgym.protocols import Judgement

        assert states is not None and states.shape == (len(frames), 4)
        self.told.append(states.clone())
        p = (states[:, 0] > 0.1).float()
        return Judgement(p, None, torch.ones(len(p), dtype=torch.bool), p.tolist())


def test_a_judge_without_the_flag_is_asked_as_before():
    class Plain:
        name = "plain"

        def score(self, frames, instructions):
            return len(frames)

    assert judged(Plain(), torch.zeros(3, 1), ["x"] * 3, torch.zeros(3, 4)) == 3
    with pytest.raises(AssertionError):
        StateJudge().score(torch.zeros(3, 1), ["x"] * 3)
