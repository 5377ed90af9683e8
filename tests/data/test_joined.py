"""Episodes of several robots in one form: padded columns are zero, and an indicator names the robot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldgym.data.arrays import EpisodeArrays
from worldgym.data.joined import joined, joined_specs
from worldgym.errors import ConfigError
from worldgym.specs import ActionSpec, Camera, ObservationSpec, Specs, StateField


def robot(action_dim, state_dim, lengths, size=(8, 8), seed=0):
    """Episodes and specs of a robot."""
    rng, rows, n = np.random.default_rng(seed), sum(lengths), len(lengths)
    action = ActionSpec(
        tuple(f"a{i}" for i in range(action_dim)), ("m",) * action_dim, 5.0, (-2.0,) * action_dim, (2.0,) * action_dim
    )
    fields = tuple(StateField(f"s{i}", "ee_position" if i < 3 else "gripper") for i in range(min(state_dim, 4)))
    fields += tuple(StateField(f"j{i}") for i in range(max(0, state_dim - 4)))
    specs = Specs(ObservationSpec((Camera("top", *size), Camera("wrist", 4, 4)), fields), action)
    arrays = EpisodeArrays(
        frames=rng.integers(0, 256, (rows, *size, 3), np.uint8), specs=specs,
        states=1 + rng.random((rows, state_dim)).astype(np.float32),
        actions=1 + rng.random((rows, action_dim)).astype(np.float32), success=rng.random(rows) < 0.5,
        progress=np.zeros(rows, np.float32), is_last=np.zeros(rows, bool),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), instructions=["do"] * n, tasks=["t"] * n,
        behaviours=["b"] * n, provenance=[{}] * n, indices=np.arange(n),
        views={"wrist": np.zeros((rows, 4, 4, 3), np.uint8)},
    )  # fmt: skip
    return arrays, specs


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6), st.integers(1, 3)), min_size=1, max_size=3))
def test_every_robot_keeps_its_columns_and_is_named(shapes):
    made = {f"r{i}": robot(a, s, [2, 4][: 1 + n % 2], seed=i) for i, (a, s, n) in enumerate(shapes)}
    specs = {name: one for name, (_, one) in made.items()}
    both, whole = joined_specs(specs), joined({name: arrays for name, (arrays, _) in made.items()}, specs)
    assert whole.specs == both and whole.views == {}
    assert whole.actions.shape[1] == both.action.dim == max(a for a, _, _ in shapes)
    assert whole.states.shape[1] == both.observation.state_dim == max(s for _, s, _ in shapes) + len(shapes)
    assert not both.observation.has_hand and not both.observation.main.static
    at = 0
    for i, (arrays, one) in enumerate(made.values()):
        rows = slice(at, at := at + len(arrays.states))
        assert np.array_equal(whole.frames[rows], arrays.frames)
        assert np.array_equal(whole.actions[rows, : one.action.dim], arrays.actions)
        assert not whole.actions[rows, one.action.dim :].any()
        own, count = one.observation.state_dim, both.observation.state_dim - len(made)
        assert np.array_equal(whole.states[rows, :own], arrays.states) and not whole.states[rows, own:count].any()
        assert np.array_equal(whole.states[rows, count:], np.tile(np.eye(len(made))[i], (len(arrays.states), 1)))
    assert len(whole) == sum(len(arrays) for arrays, _ in made.values()) and whole.offsets[-1] == len(whole.frames)


def test_a_single_robot_has_the_form_of_all():
    (first, one), (second, two) = robot(4, 4, [3]), robot(7, 6, [2])
    specs = {"a": one, "b": two}
    assert joined({"a": first}, specs).specs == joined({"a": first, "b": second}, specs).specs


def test_what_cannot_be_joined_is_named():
    (_, one), (_, two) = robot(2, 2, [3]), robot(2, 2, [3], size=(16, 8))
    with pytest.raises(ConfigError, match="record or import the datasets at one size"):
        joined_specs({"a": one, "b": two})
    with pytest.raises(ConfigError, match="b has no actions"):
        joined_specs({"a": one, "b": replace(one, action=None)})
    with pytest.raises(ConfigError, match="no specs of c; there are those of a"):
        joined({"c": robot(2, 2, [3])[0]}, {"a": one})
