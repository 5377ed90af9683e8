"""Judges made of judges: weights, agreement, terms that do not apply, terms that fail."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rewards import ComposedJudge, Term
from worldgym.errors import ConfigError
from worldgym.protocols import Judgement, Reads, RewardModel


class Says:
    """Says what it was told to say."""

    name = "says"

    def __init__(self, *p: float, valid: list[bool] | None = None, threshold: float = 0.5) -> None:
        self.p, self.valid, self.threshold = list(p), valid or [True] * len(p), threshold

    def score(self, frames, instructions) -> Judgement:
        return Judgement(torch.tensor(self.p), None, torch.tensor(self.valid), [])


class Sees(Says):
    """Wants proprioception: says its first number."""

    reads = Reads(state=True)

    def score(self, frames, instructions, states) -> Judgement:
        return Judgement(states[:, 0], None, torch.ones(len(states), dtype=torch.bool), [])


def frames(count):
    return torch.zeros(count, 1, 8, 8, 3, dtype=torch.uint8)


NAN = float("nan")


def test_a_mean_goes_by_weight_over_the_terms_that_apply():
    judge = ComposedJudge({"a": Term(Says(0.2, NAN, NAN), 3.0), "b": Term(Says(1.0, 0.4, NAN))})
    assert isinstance(judge, RewardModel) and judge.name == "mean(3 a, b)"
    verdict = judge.score(frames(3), ["x"] * 3)
    assert verdict.p_success.tolist() == pytest.approx([0.4, 0.4, 0.0])
    assert verdict.valid.tolist() == [True, True, False]  # of the last nobody knows anything
    assert verdict.raw[1] == {"a": None, "b": pytest.approx(0.4)}


def test_a_term_that_failed_makes_the_verdict_invalid_not_smaller():
    judge = ComposedJudge({"a": Term(Says(0.9, 0.9, valid=[True, False])), "b": Term(Says(0.9, 0.9))})
    assert judge.score(frames(2), ["x", "y"]).valid.tolist() == [True, False]


@given(
    p=st.lists(st.floats(0, 1, width=32), min_size=2, max_size=4),
    thresholds=st.lists(st.sampled_from([0.25, 0.5, 0.75]), min_size=4, max_size=4),
)
def test_the_least_succeeds_exactly_where_every_judge_would(p, thresholds):
    says = [Says(value, threshold=level) for value, level in zip(p, thresholds, strict=False)]
    judge = ComposedJudge({str(i): Term(one) for i, one in enumerate(says)}, how="least")
    verdict = judge.score(frames(1), ["x"])
    everybody = all(value >= level for value, level in zip(p, thresholds, strict=False))
    assert bool(verdict.p_success[0] >= judge.threshold) == everybody
    assert 0 <= float(verdict.p_success[0]) <= 1


def test_proprioception_reaches_the_terms_that_want_it():
    judge = ComposedJudge({"sees": Term(Sees()), "says": Term(Says(0.5, 0.5))})
    assert judge.reads.state
    verdict = judge.score(frames(2), ["x", "y"], torch.tensor([[1.0, 9.0], [0.0, 9.0]]))
    assert verdict.p_success.tolist() == [0.75, 0.25]
    assert not ComposedJudge({"says": Term(Says(0.5))}).reads.state


def test_impossible_compositions_are_explained():
    with pytest.raises(ConfigError, match="at least one"):
        ComposedJudge({})
    with pytest.raises(ConfigError, match="weights more than 0"):
        ComposedJudge({"a": Term(Says(0.5), 0.0)})
    with pytest.raises(ConfigError, match="'mean' or 'least'"):
        ComposedJudge({"a": Term(Says(0.5))}, how="most")  # type: ignore[arg-type]
