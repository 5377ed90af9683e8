"""Thresholds of verbs: the best ones are found, and the judge says them in its own words, paraphrases included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from judged_world import SIZE

from rewards import LearnedJudge, LearnedJudgeConfig
from rewards.training.calibration import GRID, AuditScores, best_thresholds, calibrate_words, worst_rate
from worldgym.errors import ConfigError

TINY = LearnedJudgeConfig.preset("tiny", image_size=SIZE, dropout=0.0)
WORDS = {
    "reach": [
        "reach the red cube",
        "go to the blue ball",
        "touch the green cylinder",
        "move to the purple cube",
    ],
    "push": ["push the red cube to the left", "slide the blue ball to the right zone", "shove the ball left"],
}


def looks(seed: int, count: int = 400) -> AuditScores:
    """Pushes need more belief than reaches: failures of pushing are believed up to 0.9, of reaching up to 0.5."""
    rng = np.random.default_rng(seed)
    tasks = tuple("push" if i % 2 else "reach" for i in range(count))
    real = rng.random(count) < 0.5
    ceiling = np.array([0.9 if task == "push" else 0.5 for task in tasks])
    final = np.where(real, rng.uniform(ceiling, 1.0), rng.uniform(0, ceiling))
    said = np.stack([0.1 * final, final], 1)
    truth = np.stack([np.zeros(count, bool), real], 1)
    return AuditScores(said, truth, tasks)


def test_episodes_stop_at_the_first_success_that_is_judged():
    one = AuditScores(
        np.array([[0.9, 0.1], [0.2, 0.9], [0.1, 0.1]]), np.array([[0, 1], [0, 1], [0, 1]], bool), ("a",) * 3
    )
    # the first is believed before it is true, the second when it is, the third never
    assert one.counts("a", 0.5).tolist() == [1, 1, 1]


def test_each_verb_gets_the_threshold_that_parts_its_failures_from_its_successes():
    table = best_thresholds([looks(0), looks(1)])
    assert table["reach"] < 0.6 and table["push"] >= 0.88
    assert worst_rate([looks(2)], table) > 0.95 > worst_rate([looks(2)], {"reach": 0.7, "push": 0.7})


def test_precision_at_a_rare_verb_is_not_traded_for_recall_at_a_frequent_one():
    rng = np.random.default_rng(3)
    tasks = tuple("pick" if i % 10 == 0 else "push" for i in range(2000))
    real = rng.random(2000) < 0.5
    scores = np.where(real, rng.uniform(0.55, 1.0, 2000), rng.uniform(0.0, 0.9, 2000))
    found = [AuditScores(scores[:, None], real[:, None], tasks)]
    table = best_thresholds(found)
    for task, cut in table.items():
        assert all(worst_rate(found, {task: cut}) >= worst_rate(found, {task: other}) for other in GRID)


def test_a_verb_at_which_a_policy_never_succeeds_does_not_decide():
    good = looks(0)
    useless = AuditScores(np.full((4, 2), 0.1), np.zeros((4, 2), bool), ("reach", "push") * 2)
    assert worst_rate([useless], {"reach": 0.5, "push": 0.5}) == 1.0
    assert best_thresholds([good, useless]) == best_thresholds([good])


@given(seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_thresholds_of_verbs_are_never_worse_than_a_common_one(seed):
    rng = np.random.default_rng(seed)
    said, truth = rng.random((60, 3)), np.maximum.accumulate(rng.random((60, 3)) < 0.3, 1)
    found = [AuditScores(said, truth, tuple(rng.choice(["a", "b", "c"], 60)))]
    best = worst_rate(found, best_thresholds(found))
    assert all(best >= worst_rate(found, dict.fromkeys("abc", cut)) for cut in (0.2, 0.5, 0.85, 0.99))


def test_the_calibrated_judge_says_yes_where_the_verbs_threshold_says_yes(tmp_path):
    torch.manual_seed(0)
    judge = LearnedJudge(TINY).eval()
    texts = [text for rows in WORDS.values() for text in rows]
    tasks = [task for task, rows in WORDS.items() for _ in rows]
    thresholds = {"reach": 0.4, "push": 0.6}
    calibrated = calibrate_words(judge, texts, tasks, thresholds, at=0.85)
    assert calibrated.threshold == pytest.approx(0.85) and not judge.config.by_words
    frames = torch.randint(0, 256, (40, 1, SIZE, SIZE, 3), dtype=torch.uint8)
    told, verbs = ["reach the yellow ball", "push the green cube to the right"] * 20, ["reach", "push"] * 20
    before, after = judge.score(frames, told).p_success, calibrated.score(frames, told).p_success
    odds = lambda p: torch.log(p / (1 - p))  # noqa: E731
    wanted = torch.tensor(
        [float(odds(torch.tensor(0.85)) - odds(torch.tensor(thresholds[v]))) for v in verbs]
    )
    # sentences that were not among those fitted: their verb is heard all the same
    assert torch.allclose(odds(after) - odds(before), wanted, atol=0.25)
    calibrated.save_pretrained(tmp_path / "j")
    again = LearnedJudge.from_pretrained(tmp_path / "j")
    assert torch.equal(again.score(frames, told).p_success, after)


def test_calibrating_twice_adds_up_and_unknown_verbs_are_named():
    judge = LearnedJudge(TINY).eval()
    slope = torch.randn(384) * 0.1
    twice = judge.with_word_shift(slope, 0.5, 0.7).with_word_shift(slope, 0.5, 0.8)
    assert torch.allclose(twice.word_slope, 2 * slope) and float(twice.word_level) == 1.0
    with pytest.raises(ConfigError, match="no threshold for push"):
        calibrate_words(judge, WORDS["push"], ["push"] * 3, {"reach": 0.5}, at=0.8)
    with pytest.raises(ConfigError, match="at least one policy"):
        best_thresholds([])
