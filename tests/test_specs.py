"""What the specs say of cameras and state fields, and how two parts that do not fit are refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldgym.errors import ConfigError
from worldgym.specs import (
    ROLES,
    ActionSpec,
    Camera,
    ObservationSpec,
    Specs,
    StateField,
    check_observations,
    specs_of,
    state_fields,
)

ACTIONS = ActionSpec(("dx", "grip"), ("m", "1"), 5.0, (-0.06, -1.0), (0.06, 1.0))
CAMERAS = st.lists(
    st.builds(
        Camera,
        st.text("abc_9", min_size=1, max_size=4),
        st.integers(1, 300),
        st.integers(1, 300),
        st.booleans(),
    ),
    max_size=4,
    unique_by=lambda camera: camera.name,
)
FIELDS = st.lists(
    st.builds(
        StateField, st.text("xyz/ ", min_size=1, max_size=5), st.sampled_from(ROLES), st.text(max_size=3)
    ),
    max_size=12,
    unique_by=lambda item: item.name,
)


@settings(deadline=None)
@given(CAMERAS, FIELDS)
def test_specs_return_from_json_unchanged(cameras: list[Camera], fields: list[StateField]) -> None:
    specs = Specs(ObservationSpec(tuple(cameras), tuple(fields)), ACTIONS)
    assert Specs.from_dict(specs.to_dict()) == specs


@settings(deadline=None)
@given(FIELDS)
def test_every_column_has_exactly_one_role(fields: list[StateField]) -> None:
    spec = ObservationSpec(state=tuple(fields))
    found = sorted(column for role in ROLES for column in spec.columns(role))
    assert found == list(range(spec.state_dim))


def test_an_absent_role_gives_no_column_and_an_unknown_one_an_error() -> None:
    spec = ObservationSpec(state=state_fields(["a", "b"]))
    assert spec.columns("gripper") == () and not spec.has_hand
    with pytest.raises(ConfigError, match="ee_position"):
        spec.columns("griper")


def test_a_hand_needs_three_coordinates_and_one_gripper() -> None:
    roles = {**dict.fromkeys("xyz", "ee_position"), "open": "gripper"}
    assert ObservationSpec(state=state_fields(["open", "x", "y", "z"], roles)).has_hand
    assert not ObservationSpec(state=state_fields(["open", "x", "y"], roles)).has_hand


def test_a_mismatch_shows_both_sides_and_a_command() -> None:
    given_spec = ObservationSpec((Camera("front", 96, 128),), state_fields(["q0", "q1"]))
    wanted = ObservationSpec((Camera("front", 64, 64),), state_fields(["x"]))
    with pytest.raises(ConfigError) as caught:
        check_observations(given_spec, wanted, "the dataset D", "the policy P")
    for part in ("front 96x128", "front 64x64", "state [q0, q1]", "state [x]", "--image-size 64"):
        assert part in str(caught.value)


def test_a_reader_of_fewer_cameras_fits_and_of_more_does_not() -> None:
    both = ObservationSpec((Camera("front", 64, 64), Camera("wrist", 32, 48, static=False)))
    one = both.select(["front"])
    check_observations(both, one, "the dataset", "the policy")
    with pytest.raises(ConfigError, match="wrist"):
        check_observations(one, both, "the dataset", "the policy")


def test_parts_without_specs_are_described_by_their_sizes() -> None:
    class Old:
        image_size, state_dim = 64, 2

    spec = specs_of(Old()).observation
    assert spec.main.size == (64, 64) and spec.state_dim == 2 and spec.columns("gripper") == ()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Camera("a b", 4, 4),
        lambda: Camera("front", 0, 4),
        lambda: StateField("x", "elbow"),
        lambda: ObservationSpec((Camera("a", 1, 1), Camera("a", 2, 2))),
        lambda: Specs.from_dict({"action": None}),
        lambda: Specs(None),
        lambda: Specs(ObservationSpec(), ACTIONS.to_dict()),
        lambda: Specs.from_dict({"observation": None}),
        lambda: Specs.from_dict({"observation": ObservationSpec().to_dict(), "action": []}),
        lambda: Specs.from_dict(
            {"observation": ObservationSpec().to_dict(), "action": {**ACTIONS.to_dict(), "low": [None, 1]}}
        ),
    ],
)
def test_impossible_specs_are_refused(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError):
        make()
