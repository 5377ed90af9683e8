"""Recordings as video without actions: their form follows other data, and they say what does not fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_joined import robot

from worldgym.data.action_free import as_video
from worldgym.data.arrays import EpisodeArrays
from worldgym.errors import ConfigError


@given(
    actions=st.integers(1, 6),
    proprioception=st.sampled_from([0, 3]),
    lengths=st.lists(st.integers(2, 5), min_size=1),
)
def test_episodes_of_any_robot_follow_the_logs_as_video_without_actions(actions, proprioception, lengths):
    logs, _ = robot(2, 3, [4, 2])
    other, _ = robot(actions, proprioception, lengths, seed=1)
    both = EpisodeArrays.together([logs, as_video(other, logs, "--video")])
    assert len(both) == 2 + len(lengths) and both.lengths.tolist() == [3, 1, *(n - 1 for n in lengths)]
    assert both.has_action.tolist() == [True, True, *[False] * len(lengths)]
    assert both.actions.shape[1] == 2 and not both.actions[6:].any() and both.specs == logs.specs
    expected = other.states if proprioception else np.repeat(logs.states.mean(0)[None], len(other.frames), 0)
    assert np.allclose(both.states[6:], expected)
    assert np.array_equal(both.frames[6:], other.frames)
    assert np.array_equal(both.views["wrist"][6:], other.views["wrist"])
    assert other.has_action.all(), "the recordings themselves are not changed"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda video: replace(video, views={}), "main 8x8, wrist 4x4"),
        (lambda video: replace(video, frames=video.frames[:, :4]), "main 4x8"),
        (lambda video: replace(video, states=video.states[:, :2]), "2 dimensions of proprioception"),
    ],
)
def test_video_that_does_not_fit_says_why(change, message):
    logs, _ = robot(2, 3, [4, 2])
    with pytest.raises(ConfigError, match=message) as found:
        as_video(change(robot(2, 3, [3], seed=1)[0]), logs, "--video")
    assert "leave --video out" in str(found.value)
