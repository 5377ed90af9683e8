"""Robomimic's HDF5 files: success, rates, conventions, masks, links, damaged files."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import CONTROLLER, imported, options, report, take, write_robomimic

from worldgym.data.formats.robomimic import RobomimicFormat
from worldgym.errors import DatasetError

GIVEN = options("robomimic")


def test_success_is_what_the_options_say_and_never_guessed_from_dones(tmp_path):
    source = write_robomimic(tmp_path / "a.hdf5", [take(0, 5), take(1, 5)])
    with h5py.File(source, "r+") as file:
        file["data/demo_0/dones"][...] = [0, 0, 1, 0, 0]
        file["data/demo_1/rewards"][...] = [0, 0.4, 0.4, 0, 0]
    assert all(e.success is None for e in imported(source, tmp_path / "a", **GIVEN))
    dones = imported(source, tmp_path / "b", **GIVEN, success="next.success")
    assert dones[0].success.tolist() == [False, False, False, True, False]  # the result of action 2
    assert dones[1].success.tolist() == [
        False,
        False,
        False,
        False,
        True,
    ]  # rows 3 and 4, of which 4 has no result
    rewards = imported(source, tmp_path / "c", **GIVEN, success="next.reward", reward=0.4)
    assert rewards[1].success.tolist() == [False, False, True, True, False]
    for demo in ("demo_0", "demo_1"):
        with h5py.File(source, "r+") as file:
            del file[f"data/{demo}/rewards"]
    with pytest.raises(DatasetError, match="no column for --success next.reward"):
        imported(source, tmp_path / "d", **GIVEN, success="next.reward")


def test_demonstrations_are_read_in_the_order_of_their_numbers_and_of_their_files(tmp_path):
    write_robomimic(tmp_path / "b.hdf5", [take(11, 4)])
    write_robomimic(tmp_path / "a.hdf5", [take(n, 4) for n in range(11)])
    found = imported(tmp_path, tmp_path / "out", **GIVEN)
    assert [episode.instruction for episode in found] == [f"fold towel {n}" for n in range(12)]
    assert found[10].provenance["demo"] == "demo_10" and found[11].provenance["file"] == "b.hdf5"
    assert [n for n in range(12) if found[n].provenance.get("masks") == ["train"]] == [0, 11]


@pytest.mark.parametrize(
    "controller, kind, frame",
    [
        (CONTROLLER, "delta", "unknown"),
        ({**CONTROLLER, "control_delta": False}, "absolute", "unknown"),
        ({"type": "JOINT_POSITION"}, "unknown", "unknown"),
        (None, "unknown", "unknown"),
        ([CONTROLLER], "delta", "unknown"),
        ({"body_parts": {"right": {"type": "OSC_POSE", "input_type": "absolute", "input_ref_frame": "base"}}},
         "absolute", "base"),
        ({"body_parts": {"arms": {"right": {"type": "OSC_POSE", "input_type": "delta"}}}}, "delta", "unknown"),
        ("OSC", "unknown", "unknown"),
    ],
)  # fmt: skip
def test_the_convention_comes_from_the_recorded_controller(tmp_path, controller, kind, frame):
    source = write_robomimic(tmp_path / "a.hdf5", [take(0, 4)], controller_configs=controller)
    found = report(imported(source, tmp_path / "out", **GIVEN))["action_convention"]
    assert (found["kind"], found["frame"], found["gripper"]) == (kind, frame, "unknown")
    assert ("output_min" in found["units"]) == (kind == "delta" and "output_max" in str(controller))


def test_files_of_different_controllers_or_rates_are_not_mixed(tmp_path):
    write_robomimic(tmp_path / "a.hdf5", [take(0, 4)])
    write_robomimic(
        tmp_path / "b.hdf5", [take(1, 4)], controller_configs={**CONTROLLER, "control_delta": False}
    )
    with pytest.raises(DatasetError, match="a.hdf5; their actions have different meanings"):
        imported(tmp_path, tmp_path / "out", **GIVEN)
    write_robomimic(tmp_path / "b.hdf5", [take(1, 4)], control_freq=20)
    with pytest.raises(DatasetError, match=r"different rates, 10 \(a.hdf5\), 20 \(b.hdf5\)"):
        imported(tmp_path, tmp_path / "out", **GIVEN)


def test_a_file_without_a_rate_needs_one_and_libero_names_its_task(tmp_path):
    source = write_robomimic(tmp_path / "a.hdf5", [take(0, 4)])
    with h5py.File(source, "r+") as file:
        del file["data"].attrs["env_args"], file["data/demo_0"].attrs["ep_meta"]
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": ["open", "the", "drawer"]})
    found = imported(source, tmp_path / "out", **GIVEN, recorded_fps=20.0)
    assert found.specs.action.hz == 20.0 and found[0].instruction == "open the drawer"
    assert report(found)["action_convention"]["kind"] == "unknown"


def test_the_usual_proprioception_is_taken_without_a_choice(tmp_path):
    source = write_robomimic(tmp_path / "a.hdf5", [take(0, 4)])
    given_keys = {**GIVEN, "state_key": ()}
    assert imported(source, tmp_path / "a", **given_keys)[0].state.shape == (4, 0)
    with h5py.File(source, "r+") as file:
        for name, size in (("eef_pos", 3), ("eef_quat", 4), ("gripper_qpos", 2)):
            file[f"data/demo_0/obs/robot0_{name}"] = np.ones((4, size))
    found = imported(source, tmp_path / "b", **given_keys)
    assert found[0].state.shape == (4, 9) and found.specs.observation.state[3].name == "robot0_eef_quat_0"


def _damaged(file, what):
    demo = file["data/demo_1"]
    if what == "short":
        values = demo["obs/state"][:-1]
        del demo["obs/state"]
        demo["obs/state"] = values
    elif what == "samples":
        demo.attrs["num_samples"] = 99
    elif what == "missing":
        del demo["obs/state"]
    elif what == "words":
        del demo["obs/state"]
        demo["obs/state"] = np.array([b"a"] * 4, dtype=h5py.string_dtype())
    elif what == "nan":
        demo["actions"][2, 1] = np.nan
    elif what == "pictures":
        del demo["obs/wrist"]
        demo["obs/wrist"] = np.zeros((4, 3, 16, 16), np.float32)
    elif what == "link":
        del demo["obs/state"]
        demo["obs/state"] = h5py.ExternalLink("/etc/passwd", "x")
    elif what == "raw file":
        del demo["obs/state"]
        demo.create_dataset("obs/state", (4, 4), "f4", external=[("other.raw", 0, h5py.h5f.UNLIMITED)])
    elif what == "virtual":
        del demo["obs/state"]
        layout = h5py.VirtualLayout((4, 4), "f4")
        layout[:] = h5py.VirtualSource("other.hdf5", "x", (4, 4))
        demo.create_virtual_dataset("obs/state", layout)
    elif what == "one row":
        for name in ("actions", "obs/state", "obs/top", "obs/wrist"):
            values = demo[name][:1]
            del demo[name]
            demo[name] = values
        demo.attrs["num_samples"] = 1


@pytest.mark.parametrize(
    "what, message",
    [
        ("short", "has 4 rows, but obs/state has 3"),
        ("samples", "its num_samples is 99"),
        ("missing", "demo_1 has no rows 'obs/state'"),
        ("words", "has the type object, expected numbers"),
        ("nan", "row 2 of episode 1 holds NaN"),
        ("pictures", r"expected \(N, H, W, 3\) uint8"),
        ("link", "is a link to another file, '/etc/passwd'"),
        ("raw file", "demo_1/obs/state are in another file"),
        ("virtual", "demo_1/obs/state are in another file"),
        ("one row", "has 1 rows; at least 2"),
    ],
)
def test_a_bad_demonstration_is_named_and_can_be_skipped(tmp_path, what, message):
    source = write_robomimic(tmp_path / "a.hdf5", [take(n, 4) for n in range(3)])
    with h5py.File(source, "r+") as file:
        _damaged(file, what)
    with pytest.raises(DatasetError, match=message) as caught:
        imported(source, tmp_path / "a", **GIVEN)
    assert "--skip 1" in str(caught.value)
    found = imported(source, tmp_path / "b", **GIVEN, skip_bad=True)
    assert [e.instruction for e in found] == ["fold towel 0", "fold towel 2"]
    assert list(report(found)["skipped"]) == ["1"]


def test_files_without_pictures_or_demonstrations_are_refused(tmp_path):
    source = write_robomimic(tmp_path / "a.hdf5", [take(0, 4)])
    with h5py.File(source, "r+") as file:
        del file["data/demo_0/obs"]
    with pytest.raises(DatasetError, match="no pictures in obs, only .*dataset_states_to_obs.py"):
        imported(source, tmp_path / "out", **GIVEN)
    with h5py.File(tmp_path / "b.hdf5", "w") as file:
        file["observations/qpos"] = np.zeros((4, 7))
    assert not RobomimicFormat.detects(tmp_path / "b.hdf5")  # HDF5 of another program
    with pytest.raises(
        DatasetError, match=r"no group data with demo_0, demo_1, ..., only \['observations'\]"
    ):
        imported(tmp_path / "b.hdf5", tmp_path / "out", **GIVEN, format="robomimic")


@given(at=st.floats(0, 1, exclude_max=True))
@settings(max_examples=25, deadline=None)
def test_a_file_that_was_cut_off_is_refused(tmp_path_factory, at):
    source = write_robomimic(tmp_path_factory.mktemp("x") / "a.hdf5", [take(n, 4) for n in range(2)])
    data = source.read_bytes()
    source.write_bytes(data[: int(at * len(data))])
    assert RobomimicFormat.detects(source)
    with pytest.raises(DatasetError, match="can't be read as HDF5"):
        imported(source, source.parent / "out", **GIVEN)


@given(at=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_a_changed_byte_is_refused_or_harmless_and_never_another_error(tmp_path_factory, at, value):
    source = write_robomimic(tmp_path_factory.mktemp("x") / "a.hdf5", [take(n, 4) for n in range(2)])
    data = bytearray(source.read_bytes())
    data[int(at * len(data))] = value
    source.write_bytes(bytes(data))
    try:
        found = imported(source, source.parent / "out", **GIVEN, format="robomimic", recorded_fps=None)
    except (DatasetError, ValueError) as error:  # ConfigError, if the rate is gone
        assert type(error).__module__ == "worldgym.errors"
    else:
        assert len(found) == 2
