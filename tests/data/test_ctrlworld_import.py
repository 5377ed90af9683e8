"""Ctrl-World's annotations: real recordings, spare frames, next states as actions, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from recordings import imported, report, shared_data

from worldgym.data.codecs.video import encode_mp4
from worldgym.data.formats.frames import decode_video
from worldgym.errors import DatasetError

GIVEN = {"camera": ("camera_0", "camera_1"), "image_size": ("32",), "format": "ctrlworld"}


def make(root, lengths=(5, 6), spare=(0, 1)):
    for number, (rows, more) in enumerate(zip(lengths, spare, strict=True)):
        rng = np.random.default_rng(number)
        folder = root / f"videos/val/{number:04d}"
        folder.mkdir(parents=True)
        for camera in range(2):
            frames = [np.full((32, 32, 3), 20 + 30 * step, np.uint8) for step in range(rows + more)]
            encode_mp4(folder / f"{camera}.mp4", frames, 32, 4.0)
        note = {
            "texts": [f"fold towel {number}"], "episode_id": f"{number:04d}", "success": number,
            "videos": [{"video_path": f"videos/val/{number:04d}/{camera}.mp4"} for camera in range(2)],
            "states": rng.normal(size=(rows, 7)).tolist(), "joints": rng.normal(size=(rows, 8)).tolist(),
        }  # fmt: skip
        (root / "annotation/val").mkdir(parents=True, exist_ok=True)
        (root / f"annotation/val/{number:04d}.json").write_text(json.dumps(note))
    return root


def change(root, number=1, **changes):
    path = root / f"annotation/val/{number:04d}.json"
    note = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in note.items() if value is not None}))


@pytest.mark.parametrize("part, rate, episodes", [("droid_new_setup", 4.0, 13), ("droid_subset", 5.0, 11)])
def test_real_recordings_of_droid_are_read(tmp_path, part, rate, episodes):
    source = shared_data("droid_ctrlworld") / part
    found = imported(source, tmp_path / "out", camera=("camera_2",), image_size=("48x80",), bounds="minmax")
    assert len(found) == episodes and found.specs.action.hz == pytest.approx(rate)
    first = sorted(source.glob("annotation/*/*.json"))[0]
    states = np.array(json.loads(first.read_text())["states"])
    assert np.allclose(found.specs.action.denormalise(found[0].actions), states[1:], atol=1e-4)
    assert np.allclose(found[0].state, states, atol=1e-6)
    assert [field.name for field in found.specs.observation.state][3:] == ["roll", "pitch", "yaw", "gripper"]


def test_the_action_is_the_next_state_and_a_spare_frame_is_dropped(tmp_path):
    found = imported(make(tmp_path / "x"), tmp_path / "out", **GIVEN, bounds="minmax")
    assert [episode.length for episode in found] == [4, 5] and found.specs.action.hz == 4.0
    for number, episode in enumerate(found):
        states = np.array(
            json.loads((tmp_path / f"x/annotation/val/{number:04d}.json").read_text())["states"]
        )
        assert np.allclose(found.specs.action.denormalise(episode.actions), states[1:], atol=1e-5)
        assert np.abs(episode.frames[:, 8, 8, 0] - (20 + 30.0 * np.arange(len(states)))).max() < 6
        assert episode.success.tolist() == [False] * (len(states) - 1) + [number == 1]
    assert report(found)["action_convention"]["kind"] == "absolute" and found[1].instruction == "fold towel 1"
    joints = imported(
        tmp_path / "x", tmp_path / "b", **GIVEN, state_key=("joints",), action_key=("next_joints",)
    )
    assert joints.specs.action.dim == 8 and joints[0].state.shape == (5, 8)


def test_labels_and_selection_follow_the_options(tmp_path):
    root = make(tmp_path / "x")
    assert imported(root, tmp_path / "a", **GIVEN, success="none", limit=1)[0].success is None
    found = imported(root, tmp_path / "b", **GIVEN, fps=2.0, actions=("absolute",), episodes="1")
    assert len(found) == 1 and found[0].length == 2 and found.specs.action.hz == 2.0


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"states": [[1.0] * 7] * 9}, "has 7 frames for the 9 states"),
        ({"states": [[1.0] * 7] * 4, "joints": None}, "has 7 frames for the 4 states"),
        ({"states": [1.0, 2.0]}, r"states have the shape \(2,\), expected \(T, D\)"),
        ({"states": None}, "KeyError: 'states'"),
        ({"states": [[1.0] * 6] * 6}, "all episodes need the same dimensions"),
        ({"states": [[float("nan")] * 7] * 6}, "holds NaN"),
        ({"videos": [{"video_path": "../../other.mp4"}] * 2}, "which lies outside"),
        ({"videos": [{"video_path": "/etc/passwd"}] * 2}, "which lies outside"),
        ({"videos": []}, "lists 0 videos, so it has no camera_0"),
        ({"texts": 3}, "is not an annotation of Ctrl-World"),
    ],
)
def test_a_bad_annotation_is_named_and_can_be_skipped(tmp_path, changes, message):
    root = make(tmp_path / "x")
    change(root, **changes)
    with pytest.raises(DatasetError, match=message):
        imported(root, tmp_path / "a", **GIVEN)
    found = imported(root, tmp_path / "b", **GIVEN, skip_bad=True)
    assert [episode.instruction for episode in found] == ["fold towel 0"]


def test_a_missing_or_damaged_video_is_named(tmp_path):
    root = make(tmp_path / "x")
    video = root / "videos/val/0001/1.mp4"
    data = video.read_bytes()
    video.write_bytes(data[: len(data) // 3])
    with pytest.raises(DatasetError, match="0001/1.mp4 can't be decoded"):
        imported(root, tmp_path / "a", **GIVEN)
    video.unlink()
    with pytest.raises(DatasetError, match="0001/1.mp4 is missing"):
        imported(root, tmp_path / "b", **GIVEN)
    assert len(decode_video(root / "videos/val/0001/0.mp4", 32).frames) == 7


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_damaged_annotations_are_refused(tmp_path, text):
    root = make(tmp_path / "x")
    for number in range(2):
        (root / f"annotation/val/{number:04d}.json").write_text(text)
    with pytest.raises(DatasetError, match="0000.json"):
        imported(root, tmp_path / "a", **GIVEN)
