from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged_world import logs

from rewards.training.negatives import KINDS, PairSampler, goal_of


@pytest.mark.parametrize(
    ("task", "a", "b", "same"),
    [
        ("push", "push the red cube to the left zone", "slide the red cube into the left area", True),
        ("push", "push the red cube to the left", "push the red cube to the right", False),
        ("reach", "touch the red cube", "reach the red ball", False),
        ("pick_place", "drop the blue ball onto the white tray", "put the blue ball in the tray", True),
        (
            "stack",
            "stack the red cube on the blue cylinder",
            "put the blue cylinder on top of the red cube",
            False,
        ),
        ("open_drawer", "open the drawer", "pull the drawer open", True),
    ],
)
def test_paraphrases_share_a_goal_and_different_goals_do_not(task, a, b, same):
    assert (goal_of(task, a) == goal_of(task, b)) == same


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_pairs_are_balanced_and_labelled_by_the_truth(seed):
    arrays = logs()
    sampler = PairSampler(arrays, np.arange(len(arrays)))
    rows, texts, labels, kinds = sampler.sample(64, np.random.default_rng(seed))
    assert labels.mean() == 0.5 and set(kinds) <= set(KINDS)
    for row, text, label, kind in zip(rows, texts, labels, kinds, strict=True):
        goal = goal_of("push", arrays.instructions[row // 6])
        truth = arrays.success[row] and goal_of("push", text) == goal
        assert label == float(truth), (kind, text)
        if kind.startswith("wrong"):
            assert arrays.success[row]  # a true success under the wrong words
        if kind in ("near_miss", "unsolved"):
            assert not arrays.success[row] and goal_of("push", text) == goal


def test_all_kinds_of_hard_negatives_occur():
    arrays = logs()
    _, _, _, kinds = PairSampler(arrays, np.arange(len(arrays))).sample(600, np.random.default_rng(0))
    counts = Counter(kinds)
    assert counts["success"] == 300
    assert min(counts[k] for k in ("near_miss", "unsolved", "wrong_place", "wrong_object")) > 20


def test_words_of_another_verb_name_another_object():
    arrays = logs()
    arrays.tasks[::2] = ["reach"] * 30  # a push also reaches: those words may be true as well
    arrays.instructions[::2] = [f"reach the {text.split()[2]} cube" for text in arrays.instructions[::2]]
    sampler = PairSampler(arrays, np.arange(len(arrays)))
    rows, texts, _, kinds = sampler.sample(600, np.random.default_rng(0))
    wrong = [(r, t) for r, t, k in zip(rows, texts, kinds, strict=True) if k == "wrong_verb"]
    assert wrong
    for row, text in wrong:
        own = arrays.instructions[row // 6]
        assert text.split()[0] != own.split()[0] and text.split()[2] != own.split()[2]


def test_held_out_episodes_stay_out():
    arrays = logs()
    rows, _, _, _ = PairSampler(arrays, np.arange(40, 60)).sample(200, np.random.default_rng(0))
    assert rows.min() >= 240


def test_without_near_misses_none_is_drawn_and_such_frames_are_left_out():
    arrays = logs(40)
    some, none = PairSampler(arrays, np.arange(40)), PairSampler(arrays, np.arange(40), near_share=0.0)
    drawn = [sampler.sample(400, np.random.default_rng(0)) for sampler in (some, none)]
    assert "near_miss" in drawn[0][3] and "near_miss" not in drawn[1][3]
    negatives = {row for row, kind in zip(drawn[1][0], drawn[1][3], strict=True) if kind == "unsolved"}
    assert not negatives & set(none.near.tolist())
