"""Layouts and rules: masks of known systems, slices, times, and an order in which a cache can be fed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.nn.layouts import cases
from worldgym.errors import ConfigError
from worldgym.nn import (
    Segment,
    SequenceLayout,
    block_causal,
    encoder_decoder,
    full,
    joint_video_action,
    teacher_forcing,
)


@given(frames=st.integers(1, 5), length=st.integers(1, 4), window=st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_block_causal_sees_the_window_and_no_more(frames, length, window):
    mask = SequenceLayout(tuple(Segment("video", f, length) for f in range(frames))).mask(
        block_causal(window)
    )
    for q in range(frames * length):
        for k in range(frames * length):
            assert bool(mask[q, k]) == (0 <= q // length - k // length < window)


def test_joint_video_action_is_the_pattern_of_dreamzero():
    """Systems.md: clean_i -> clean_{<=i}; vid_i -> clean_{<i}, vid_i, act_i, state_i; act_i likewise; state_i alone."""
    segments = [Segment("vid", b, 1, clean=True) for b in range(3)]
    segments += [Segment(role, b, 1) for b in (1, 2) for role in ("vid", "act", "state")]
    layout = SequenceLayout(tuple(segments))
    mask = layout.mask(joint_video_action())
    for q, query in enumerate(segments):
        for k, key in enumerate(segments):
            if query.clean:
                expected = key.clean and key.block <= query.block
            elif query.role == "state":
                expected = q == k
            else:
                expected = key.block < query.block if key.clean else key.block == query.block
            assert bool(mask[q, k]) == expected


def test_a_prefix_does_not_see_what_reads_it():
    layout = SequenceLayout.of(Segment("text", 0, 2), Segment("act", 0, 1), Segment("act", 1, 1))
    mask = layout.mask(encoder_decoder(("text",)))
    assert not mask[:2, 2:].any() and mask[2:].all()
    causal = layout.mask(encoder_decoder(("text",), causal=True))
    assert causal[3].all() and not causal[2, 3] and causal[2, :3].all()


def test_slices_indices_times_and_positions_follow_the_segments():
    layout = SequenceLayout.of(
        Segment("video", 0, 4, clean=True),
        Segment("video", 1, 4),
        Segment("action", 1, 2),
        Segment("video", 2, 4),
    )
    assert layout.slice("action") == slice(8, 10) and layout.slice("video", 1) == slice(4, 8)
    assert layout.slice("video", clean=True) == slice(0, 4)
    assert layout.indices("video", 2).tolist() == [10, 11, 12, 13]
    times = layout.times({"video": torch.tensor([0.5, 0.25]), ("video", 2): 1.0, "action": 0.75})
    assert times.shape == (2, 14)
    assert times[1].tolist() == [0.0] * 4 + [0.25] * 4 + [0.75] * 2 + [1.0] * 4
    positions = layout.positions({"video": (2, 2)})
    assert positions[4:8].tolist() == [[1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1]]
    assert positions[8:10].tolist() == [[1, 0, 0], [1, 0, 1]]


def test_mistakes_say_what_to_do():
    layout = SequenceLayout.of(Segment("video", 0, 2), Segment("action", 0, 1), Segment("video", 1, 2))
    with pytest.raises(ConfigError, match="are not contiguous"):
        layout.slice("video")
    with pytest.raises(ConfigError, match="no tokens of role 'text'"):
        layout.slice("text")
    with pytest.raises(ConfigError, match="no noise level"):
        layout.times({"video": 0.5})
    with pytest.raises(ConfigError, match="attend to nothing"):
        layout.mask(lambda query, key: query.role == "video")
    with pytest.raises(ConfigError, match="2 x 2"):
        layout.positions({"video": (2, 2)})
    for bad in (lambda: Segment("a", -1, 1), lambda: Segment("a", 0, 0), lambda: SequenceLayout(())):
        with pytest.raises(ConfigError):
            bad()


@given(cases())
@settings(max_examples=60, deadline=None)
def test_no_group_of_the_feeding_order_attends_to_a_later_one(case):
    layout, rule = case
    order = layout.order(rule)
    assert sorted(i for group in order for i in group) == list(range(len(layout.segments)))
    for n, group in enumerate(order):
        for later in order[n + 1 :]:
            assert not any(rule(layout.segments[q], layout.segments[k]) for q in group for k in later)


def test_bidirectional_segments_are_fed_together_and_causal_ones_apart():
    layout = SequenceLayout(tuple(Segment("video", b, 1) for b in range(3)))
    assert layout.order(full()) == [[0, 1, 2]]
    assert layout.order(block_causal()) == [[0], [1], [2]]
    joint = SequenceLayout.of(Segment("v", 0, 1, clean=True), Segment("v", 1, 1), Segment("a", 1, 1))
    assert joint.order(teacher_forcing()) == [[0], [1, 2]]
