from __future__ import annotations

import numpy as np
import pytest
import torch

from rewards import CachedJudge, OracleJudge
from worldgym.protocols import Judgement, RewardModel

FRAMES = torch.arange(4 * 12, dtype=torch.uint8).view(4, 1, 2, 2, 3)
WORDS = ["a", "b", "c", "d"]


class Counting:
    name, threshold = "counting", 0.7

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.broken: set[str] = set()

    def score(self, frames, instructions):
        self.asked += instructions
        p = torch.tensor([0.1 * (1 + ord(text) - ord("a")) for text in instructions])
        valid = torch.tensor([text not in self.broken for text in instructions])
        return Judgement(p, None, valid, [f"said {text}" for text in instructions])


def test_the_oracle_tells_the_truth_of_the_moment():
    truth = np.array([True, False, False, True])
    judge = OracleJudge(lambda: truth)
    assert isinstance(judge, RewardModel) and judge.name == "oracle-real"
    assert judge.score(FRAMES, WORDS).p_success.tolist() == [1, 0, 0, 1]
    truth[1] = True
    assert judge.score(FRAMES, WORDS).p_success.tolist() == [1, 1, 0, 1]
    assert OracleJudge([0, 1, 0, 1], domain="soft").name == "oracle-soft"


def test_the_oracle_does_not_judge_imagination_or_nonsense():
    with pytest.raises(ValueError, match="'real' and 'soft' only"):
        OracleJudge([True], domain="imagined")
    with pytest.raises(ValueError, match="2 labels for 4 videos"):
        OracleJudge([True, False]).score(FRAMES, WORDS)
    with pytest.raises(ValueError, match="0 or 1"):
        OracleJudge([0.5] * 4).score(FRAMES, WORDS)


def test_the_cache_asks_once_for_each_frame_and_instruction():
    inner = Counting()
    judge = CachedJudge(inner)
    first, again = judge.score(FRAMES, WORDS), judge.score(FRAMES.flip(0), WORDS[::-1])
    assert inner.asked == WORDS and judge.hits == 4 and judge.misses == 4
    assert torch.equal(first.p_success.flip(0), again.p_success) and again.raw[0] == "said d"
    judge.score(FRAMES[:1], ["z"])
    assert inner.asked[-1] == "z" and judge.threshold == 0.7 and judge.name == "counting"


def test_an_invalid_verdict_is_asked_again_and_stays_invalid_until_then():
    inner = Counting()
    inner.broken = {"b"}
    judge = CachedJudge(inner)
    assert judge.score(FRAMES, WORDS).valid.tolist() == [True, False, True, True]
    inner.broken = set()
    assert judge.score(FRAMES, WORDS).valid.tolist() == [True] * 4
    assert inner.asked == [*WORDS, "b"]


def test_the_cache_forgets_the_oldest_but_answers_in_full():
    inner = Counting()
    judge = CachedJudge(inner, size=2)
    assert len(judge.score(FRAMES, WORDS).p_success) == 4
    judge.score(FRAMES[3:], WORDS[3:])
    assert len(inner.asked) == 4
    judge.score(FRAMES[:1], WORDS[:1])
    assert len(inner.asked) == 5
