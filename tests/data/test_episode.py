"""An episode is checked when it is made, so that nothing downstream meets a bad one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from made_up import episode


def test_a_good_episode_knows_its_length_and_outcome() -> None:
    made = episode(1, steps=6)
    assert (made.length, made.succeeded, made.behaviour) == (6, True, "expert")


def _with_nan() -> np.ndarray:
    actions = np.zeros((4, 4), np.float32)
    actions[2, 1] = np.nan
    return actions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": _with_nan()}, r"NaN .* \[2, 1\]"),
        ({"actions": np.full((4, 4), 1.5, np.float32)}, r"1\.5.*\[-1, 1\]"),
        ({"actions": np.zeros((4, 4))}, r"float64.*float32"),
        ({"actions": np.zeros((0, 4), np.float32)}, "at least 1"),
        ({"actions": [[0.0] * 4] * 4}, "numpy array"),
        ({"frames": np.zeros((5, 16, 16, 3), np.float32)}, r"frames: got .*float32, expected .*uint8"),
        ({"frames": np.zeros((4, 16, 16, 3), np.uint8)}, "one frame more"),
        ({"frames": np.zeros((5, 16, 16), np.uint8)}, r"frames: got \(5, 16, 16\)"),
        ({"state": np.full((5, 4), np.nan, np.float32)}, "state"),
        ({"success": np.zeros(5, np.float32)}, "success: got"),
        ({"progress": np.full(5, 2.0, np.float32)}, "progress"),
        ({"instruction": " "}, "instruction"),
        ({"domain": "dream"}, "one of real, soft"),
        ({"split": "train"}, "one of seen"),
        ({"task": ""}, "task"),
        ({"provenance": {"seed": np.int64(3)}}, "plain JSON"),
    ],
)
def test_a_bad_episode_says_what_was_got_and_expected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        episode(0, steps=4, **changes)
