"""The Soft domain: what is wrong with it, apart and together, and domain randomisation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.tabletop import TabletopEnv, TabletopVectorEnv
from envs.tabletop.scene import Physics

SHARE = st.floats(0, 1)
LOOKS = ("camera_shift", "light", "tint")


def first_frames(**kwargs):
    env = TabletopVectorEnv(1, **kwargs)
    images = [env.reset(seed=[seed], options={"task": "reach"})[0]["image"][0] for seed in (3, 4)]
    moved = env.step(np.full(env.action_space.shape, 0.7, np.float32))[0]["state"][0]
    return np.stack(images), moved


def test_dynamics_and_looks_are_wrong_apart_from_each_other():
    real, real_moved = first_frames()
    ugly, ugly_moved = first_frames(domain="soft", gap=0.0, looks=1.0)
    odd, odd_moved = first_frames(domain="soft", gap=1.0, looks=0.0)
    both, both_moved = first_frames(domain="soft", gap=1.0)
    assert np.array_equal(ugly_moved, real_moved) and not np.array_equal(ugly, real)
    assert np.array_equal(odd_moved, both_moved) and not np.allclose(odd_moved, real_moved, atol=1e-3)
    far = lambda a: np.abs(a.astype(int) - real).mean()  # noqa: E731
    assert far(odd) < far(ugly) and far(both) > far(odd)


@given(SHARE, SHARE)
@settings(max_examples=30, deadline=None)
def test_looks_follow_the_gap_unless_they_are_said(gap, looks):
    asked, usual = Physics().softened(gap, looks), Physics().softened(gap)
    assert usual == Physics().softened(gap, gap)
    for field in dataclasses.fields(Physics):
        same_as = Physics().softened(looks) if field.name in LOOKS else usual
        assert getattr(asked, field.name) == getattr(same_as, field.name)


@given(SHARE, st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_what_is_drawn_lies_around_the_domain_and_can_be_simulated(width, seed):
    middle = Physics().softened(0.5)
    drawn = middle.randomised(width, np.random.default_rng(seed))
    assert drawn == middle.randomised(width, np.random.default_rng(seed))
    assert abs(drawn.gain / middle.gain - 1) <= 0.35 * width + 1e-9
    assert 0 <= drawn.latency < 1 and min(drawn.friction, drawn.damping, drawn.mass, drawn.light) > 0
    assert np.abs(np.subtract(drawn.camera_shift, middle.camera_shift)).max() <= 0.05 * width + 1e-9
    if width == 0:
        assert np.allclose(dataclasses.astuple(drawn)[:5], dataclasses.astuple(middle)[:5])


def test_randomised_episodes_differ_repeat_by_seed_and_are_restored_bit_for_bit():
    env = TabletopEnv(domain="soft", gap=0.5, randomise=1.0, task="push")
    moves = []
    for seed in (0, 1, 0):
        env.reset(seed=seed)
        action = np.array([0.5, -0.5, -0.5, 1], np.float32)
        start = env.reset(seed=seed)[0]["state"]
        moves.append(env.step(action)[0]["state"] - start)
    assert np.array_equal(moves[0], moves[2]) and not np.allclose(moves[0], moves[1], atol=1e-4)
    env.reset(seed=5)
    saved = env.save_state()
    wanted = env.step(action)[0]
    env.reset(seed=6)
    env.restore_state(saved)
    again = env.step(action)[0]
    assert np.array_equal(again["image"], wanted["image"]) and np.array_equal(again["state"], wanted["state"])


@pytest.mark.parametrize(
    "kwargs",
    [
        {"looks": 0.5},
        {"randomise": 0.5},
        {"domain": "soft", "looks": 2.0},
        {"domain": "soft", "randomise": 2},
    ],
)
def test_what_cannot_be_is_refused(kwargs):
    with pytest.raises(ValueError, match="looks|randomise"):
        TabletopVectorEnv(**kwargs)
