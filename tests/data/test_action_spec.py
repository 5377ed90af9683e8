"""A silent mismatch of action conventions ruins everything downstream, so every conversion is checked."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from envs.tabletop import TABLETOP_ACTION_SPEC
from worldgym.data import ActionSpec, GripperRule
from worldgym.errors import ConfigError

finite = st.floats(-1e3, 1e3, allow_nan=False, width=32)


@st.composite
def specs(draw: st.DrawFn) -> ActionSpec:
    """Any valid spec, with or without a gripper."""
    count = draw(st.integers(1, 7))
    low = draw(st.lists(finite, min_size=count, max_size=count))
    span = draw(st.lists(st.floats(0.015625, 1e3, width=32), min_size=count, max_size=count))
    high = [a + b for a, b in zip(low, span, strict=True)]
    gripper = None
    if draw(st.booleans()):
        index = draw(st.integers(0, count - 1))
        ends = (low[index], high[index])
        gripper = GripperRule(index, *(ends if draw(st.booleans()) else ends[::-1]))
    return ActionSpec(
        names=tuple(f"a{i}" for i in range(count)),
        units=("m",) * count,
        hz=draw(st.floats(0.1, 100)),
        low=tuple(low),
        high=tuple(high),
        gripper=gripper,
        bounds=draw(st.sampled_from(["limits", "q01/q99"])),
    )


@settings(max_examples=60, deadline=None)
@given(spec=specs(), data=st.data())
def test_normalise_undoes_denormalise(spec: ActionSpec, data: st.DataObject) -> None:
    shape = (data.draw(st.integers(0, 5)), spec.dim)
    actions = data.draw(hnp.arrays(np.float32, shape, elements=st.floats(-1, 1, width=32)))
    physical = spec.denormalise(actions)
    assert physical.dtype == np.float32
    # float32 units far from zero carry few digits of a short span.
    span = np.array(spec.high) - np.array(spec.low)
    digits = 1e-6 + 4e-7 * np.maximum(np.abs(spec.low), np.abs(spec.high)) / span
    assert (np.abs(spec.normalise(physical) - actions) <= 4 * digits).all()


@settings(max_examples=60, deadline=None)
@given(spec=specs())
def test_json_round_trip(spec: ActionSpec) -> None:
    assert ActionSpec.from_json(spec.to_json()) == spec


def test_tabletop_spec_means_six_centimetres_and_plus_one_opens() -> None:
    spec = TABLETOP_ACTION_SPEC
    assert spec.names == ("dx", "dy", "dz", "gripper")
    assert spec.hz == 5
    np.testing.assert_allclose(spec.denormalise([1, -1, 0.5, 1]), [0.06, -0.06, 0.03, 1], atol=1e-7)
    np.testing.assert_allclose(spec.normalise([0.12, 0, 0, -1]), [1, 0, 0, -1], atol=1e-6)
    np.testing.assert_allclose(spec.normalise([0.12, 0, 0, -1], clip=False)[0], 2.0, atol=1e-6)


def test_convert_reorders_rescales_and_flips_the_gripper() -> None:
    other = ActionSpec(
        names=("gripper", "dz", "dy", "dx"),
        units=("0 open, 1 closed", "mm", "cm", "m"),
        hz=5,
        low=(0, -120, -6, -0.06),
        high=(1, 120, 6, 0.06),
        gripper=GripperRule(0, open=0.0, closed=1.0),
    )
    action = np.array([[1.0, -0.5, 0.5, 1.0]], np.float32)
    there = TABLETOP_ACTION_SPEC.convert(action, other)
    np.testing.assert_allclose(there, [[1.0, 0.25, -0.5, 1.0]], atol=1e-6)  # +1 is open in every spec
    np.testing.assert_allclose(other.denormalise(there), [[0, 30, -3, 0.06]], atol=1e-5)
    np.testing.assert_allclose(other.convert(there, TABLETOP_ACTION_SPEC), action, atol=1e-6)


def test_convert_refuses_what_the_target_cannot_express() -> None:
    narrow = dataclasses.replace(
        TABLETOP_ACTION_SPEC, low=(-0.03, -0.06, -0.06, -1), high=(0.03, 0.06, 0.06, 1)
    )
    with pytest.raises(ValueError, match="clip=True"):
        TABLETOP_ACTION_SPEC.convert([1, 0, 0, 0], narrow)
    assert TABLETOP_ACTION_SPEC.convert([1, 0, 0, 0], narrow, clip=True)[0] == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hz": 10.0}, "resample"),
        ({"names": ("dx", "dy", "roll", "gripper")}, "only one of the specs has"),
        ({"units": ("rad", "m", "m", "open=+1/close=-1")}, "can't convert 'm' to 'rad'"),
        ({"gripper": None}, "gripper"),
    ],
)
def test_convert_refuses_a_mismatch(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TABLETOP_ACTION_SPEC.convert([0, 0, 0, 1], dataclasses.replace(TABLETOP_ACTION_SPEC, **changes))


@pytest.mark.parametrize("bad", [[np.nan, 0, 0, 0], [np.inf, 0, 0, 0], [0, 0, 0], 1.0])
def test_nan_and_wrong_shapes_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match=r"NaN|expected"):
        TABLETOP_ACTION_SPEC.normalise(bad)


@pytest.mark.parametrize(
    "changes",
    [
        {"low": (0, 0, 0)},
        {"low": (0.06, -0.06, -0.06, -1)},
        {"hz": 0},
        {"names": ("x", "x", "y", "z")},
        {"gripper": GripperRule(4)},
        {"gripper": GripperRule(3, open=0.5)},
        {"bounds": "guess"},
    ],
)
def test_impossible_specs_are_refused(changes: dict) -> None:
    with pytest.raises(ValueError, match="."):
        dataclasses.replace(TABLETOP_ACTION_SPEC, **changes)


def test_unknown_field_is_refused() -> None:
    with pytest.raises(ValueError, match="not an action spec"):
        ActionSpec.from_dict({**TABLETOP_ACTION_SPEC.to_dict(), "colour": "red"})


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("low", [None, -1, -1, -1], r"low\[0\]: got None, expected a finite number"),
        ("low", [-1, "x", -1, -1], r"low\[1\]: got 'x'"),
        ("low", [float("nan"), -1, -1, -1], r"low\[0\]: got nan"),
        ("low", None, "low: got None, expected a list of numbers"),
        ("high", "1234", "high: got '1234', expected a list"),
        ("high", [1, 1, 1, True], r"high\[3\]: got True"),
        ("high", [1, 1, 1, [1]], r"high\[3\]: got \[1\]"),
        ("high", [1], "got 1 high for 4 action names"),
        ("high", [1, 1, 1, 10**400], r"high\[3\]"),
        ("names", "abcd", "names: got 'abcd', expected a list of text"),
        ("names", ["a", "b", "c", None], "names: got None"),
        ("units", {"a": 1}, "units: got"),
        ("units", ["m"], "got 1 units for 4 action names"),
        ("hz", None, "hz: got None"),
        ("hz", "fast", "hz: got 'fast'"),
        ("hz", float("inf"), "hz: got inf"),
        ("hz", -5, "hz must be a positive number"),
        ("bounds", None, "bounds must be"),
        ("bounds", [], "bounds must be"),
        ("gripper", 3, "not a gripper rule: got 3"),
        ("gripper", {}, "not a gripper rule"),
        ("gripper", {"index": 3, "colour": 1}, "not a gripper rule.*colour"),
        ("gripper", {"index": None}, "gripper.index: got None, expected a whole number"),
        ("gripper", {"index": 3.0}, "gripper.index: got 3.0"),
        ("gripper", {"index": 3, "open": None}, "gripper.open: got None"),
        ("gripper", {"index": 3, "closed": "shut"}, "gripper.closed: got 'shut'"),
    ],
)
def test_a_stored_value_of_another_type_is_named(field: str, value: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ActionSpec.from_dict({**TABLETOP_ACTION_SPEC.to_dict(), field: value})


def test_arrays_and_numbers_of_numpy_are_accepted() -> None:
    spec = ActionSpec(("a", "b"), ("m", "m"), np.float32(5), np.array([-1, -1]), np.ones(2, np.float32))
    assert (
        spec.low == (-1.0, -1.0) and spec.high == (1.0, 1.0) and ActionSpec.from_json(spec.to_json()) == spec
    )


@pytest.mark.parametrize("text", ["", "{", "null", "[1]", '{"names": ["a"]}'])
def test_a_text_that_is_no_action_spec_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not an action spec"):
        ActionSpec.from_json(text)
