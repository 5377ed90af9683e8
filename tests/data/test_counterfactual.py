"""Perturbed action sequences: what each family changes, and what it leaves as it was."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldgym.data.counterfactual import FAMILIES, WRONG_OBJECT, perturbed
from worldgym.errors import ConfigError
from worldgym.specs import ActionSpec, GripperRule

SPEC = ActionSpec(
    ("dx", "dy", "dz", "gripper"), ("m", "m", "m", "1"), 5.0, (-0.06, -0.06, -0.06, -1.0), (0.06, 0.06, 0.06, 1.0),
    GripperRule(3),
)  # fmt: skip
LEVELS = [(name, level) for name, levels in FAMILIES.items() if name != WRONG_OBJECT for level in levels]


def carry(length: int = 30, close: int = 6, release: int = 20, seed: int = 0) -> np.ndarray:
    """A demonstration that closes and opens the gripper."""
    actions = np.random.default_rng(seed).uniform(-0.5, 0.5, (length, 4)).astype(np.float32)
    actions[:, 3] = 1.0
    actions[close:release, 3] = -1.0
    return actions


def change(family: str, severity: float, actions=None, end: int = 22, seed: int = 0):
    actions = carry() if actions is None else actions
    return perturbed(actions, SPEC, family, severity, end=end, rng=np.random.default_rng(seed))


@given(st.sampled_from(LEVELS), st.integers(0, 9), st.integers(2, 10), st.integers(11, 25), st.integers(1, 5))
def test_actions_stay_actions_and_the_given_ones_are_not_changed(level, seed, close, release, after):
    actions = carry(40, close, release, seed)
    before, end = actions.copy(), release + after
    out = change(*level, actions, end, seed)
    assert np.array_equal(actions, before)
    if out is not None:
        assert out.shape == actions.shape and out.dtype == np.float32 and np.abs(out).max() <= 1
        assert not np.array_equal(out, actions)
        again = change(*level, actions, end, seed)
        assert again is not None and np.array_equal(out, again)


@pytest.mark.parametrize("centimetres", [3.0, 5.0, 8.0])
def test_a_missed_grasp_displaces_the_hand_by_that_distance_before_the_gripper_closes(centimetres):
    actions = carry()
    out = change("missed_grasp", centimetres, actions)
    moved = (out - actions)[:, :3] * 0.06
    assert np.linalg.norm(moved.sum(0)) == pytest.approx(centimetres / 100, abs=1e-6)
    assert not moved[6:].any() and np.array_equal(out[:, 3], actions[:, 3])


def test_the_gripper_opens_earlier_or_closes_later_by_that_many_steps():
    early, late = change("early_release", 4), change("late_close", 2)
    assert np.flatnonzero(early[:, 3] < 0).tolist() == list(range(6, 16))
    assert np.flatnonzero(late[:, 3] < 0).tolist() == list(range(8, 20))
    assert np.array_equal(early[:, :3], carry()[:, :3]) and np.array_equal(late[:, :3], carry()[:, :3])


def test_a_closing_convention_with_the_other_sign_is_respected():
    spec = ActionSpec(
        SPEC.names, SPEC.units, 5.0, SPEC.low, SPEC.high, GripperRule(index=3, open=-1.0, closed=1.0)
    )  # fmt: skip
    actions = carry()
    actions[:, 3] *= -1
    out = perturbed(actions, spec, "late_close", 2, end=22, rng=np.random.default_rng(0))
    assert np.flatnonzero(out[:, 3] > 0).tolist() == list(range(8, 20))


def test_a_frozen_hand_stops_and_a_reversed_one_ends_where_it_began():
    frozen, back = change("frozen", 0.5), change("reversed", 0.5, carry(40))
    assert not frozen[11:, :3].any() and np.array_equal(frozen[:11], carry()[:11])
    assert (frozen[11:, 3] == -1).all(), "the gripper stays as it was"
    assert np.abs(back[:22, :3].sum(0)).max() < 1e-5 and not back[22:, :3].any()


def test_families_do_not_apply_without_their_event():
    pushing = carry()
    pushing[:, 3] = 1.0
    assert change("early_release", 2, pushing) is None and change("late_close", 2, pushing) is None
    assert change("missed_grasp", 5, pushing) is not None
    held = carry(release=30)
    assert change("early_release", 2, held) is None, "nothing is released before the success"
    joints = ActionSpec(("q1", "q2"), ("rad", "rad"), 5.0, (-1.0, -1.0), (1.0, 1.0))
    actions = np.full((10, 2), 0.3, np.float32)
    rng = np.random.default_rng(0)
    assert perturbed(actions, joints, "missed_grasp", 5, end=8, rng=rng) is None
    assert perturbed(actions, joints, "frozen", 0.5, end=8, rng=rng) is not None


def test_what_cannot_be_meant_is_explained():
    with pytest.raises(ConfigError, match="no perturbation 'wrong_object'; there are missed_grasp, early_release"):
        change(WRONG_OBJECT, 1)
    wrong = (("frozen", 1.5), ("frozen", 0), ("missed_grasp", -1), ("late_close", 1.5), ("late_close", 0))
    for family, severity in wrong:
        with pytest.raises(ConfigError, match=f"{family} has severity"):
            change(family, severity)
    with pytest.raises(ValueError, match=r"shape \(30, 3\), expected \(T, 4\)"):
        change("frozen", 0.5, carry()[:, :3])
    with pytest.raises(ValueError, match="end is 31"):
        change("frozen", 0.5, end=31)
