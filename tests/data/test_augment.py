"""Augmented copies keep what was done, change how it looks, and change all frames of an episode alike."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from worldgym.data.arrays import EpisodeArrays
from worldgym.data.augment import augmented


def episodes(lengths, seed=0, size=(16, 24)):
    rng, rows = np.random.default_rng(seed), sum(lengths)
    pictures = [np.repeat(rng.integers(0, 256, (1, *size, 3), np.uint8), length, 0) for length in lengths]
    frames, n = np.concatenate(pictures), len(lengths)
    return EpisodeArrays(
        frames=frames, states=rng.normal(size=(rows, 2)).astype(np.float32),
        actions=rng.normal(size=(rows, 3)).astype(np.float32), success=rng.random(rows) < 0.5,
        progress=np.zeros(rows, np.float32), is_last=np.zeros(rows, bool),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), instructions=[f"do {i}" for i in range(n)],
        tasks=["t"] * n, behaviours=["b"] * n, provenance=[{}] * n, indices=np.arange(n),
        views={"wrist": frames[:, :8, :8].copy()}, has_action=np.arange(n) % 2 == 0,
    )  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 3), st.integers(0, 99))
def test_copies_follow_the_episodes_and_only_the_pictures_differ(lengths, copies, seed):
    given_, found = episodes(lengths), augmented(episodes(lengths), copies, seed)
    n, rows = len(lengths), sum(lengths)
    assert len(found) == n * (copies + 1)
    assert np.array_equal(found.frames[:rows], given_.frames)
    for copy in range(1, copies + 1):
        for i in range(n):
            old, new = given_.rows(i), found.rows(copy * n + i)
            for name in ("states", "actions", "success"):
                assert np.array_equal(getattr(found, name)[new], getattr(given_, name)[old])
            assert found.instructions[copy * n + i] == f"do {i}" and found.has_action[copy * n + i] == (
                i % 2 == 0
            )
            for pictures in (found.frames[new], found.views["wrist"][new]):
                # The frames of an episode are equal here, so that one change for all of them leaves them equal.
                assert (pictures == pictures[:1]).all()
            assert not np.array_equal(found.frames[new], given_.frames[old])


def test_the_seed_decides_and_no_copy_is_the_data_itself():
    data = episodes([3, 2])
    assert augmented(data, 0) is data
    assert np.array_equal(augmented(data, 2, 5).frames, augmented(data, 2, 5).frames)
    assert not np.array_equal(augmented(data, 2, 5).frames, augmented(data, 2, 6).frames)


def test_what_moves_right_still_moves_right():
    data = episodes([6], size=(16, 32))
    data.frames[:] = 0
    for t in range(6):
        data.frames[t, 4:12, 3 + 4 * t : 7 + 4 * t] = 200
    frames = augmented(data, 1, 1).frames[6:].astype(float).sum((1, 3))
    centres = (frames * np.arange(32)).sum(1) / frames.sum(1)
    assert (np.diff(centres) > 2.5).all()
