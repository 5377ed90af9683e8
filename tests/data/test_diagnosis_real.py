"""The diagnosis of recordings of real robots; skipped where they are absent.

They lie in `shared/data` beside the repository, or in the folder that WORLDGYM_ROBOT_DATA names.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from worldgym.data.check import check
from worldgym.data.diagnosis import Recorder, diagnose
from worldgym.data.formats.lerobot_import import ImportSettings, LeRobotFolder

RECORDINGS = Path(os.environ.get("WORLDGYM_ROBOT_DATA", Path(__file__).resolve().parents[3] / "shared/data"))


def _remark(facts: dict[str, Any], *words: str) -> str:
    found = [text for text in facts["remarks"] if all(word in text for word in words)]
    assert len(found) == 1, (words, facts["remarks"])
    return found[0]


def _layout(folder: str, out: Path, episodes: int) -> Path:
    """The first episodes of a recording, copied to LeRobot's layout."""
    source = RECORDINGS / folder
    if not (source / "info.json").is_file():
        pytest.skip(f"no {folder}/info.json in shared/data beside the repository, nor in WORLDGYM_ROBOT_DATA")
    info = json.loads((source / "info.json").read_text())
    (camera,) = (key for key, value in info["features"].items() if value["dtype"] == "video")
    for name in ("meta", "data/chunk-000", f"videos/chunk-000/{camera}"):
        (out / name).mkdir(parents=True)
    shutil.copy(source / "info.json", out / "meta/info.json")
    rows = []
    for path in sorted(source.glob("*.parquet"))[:episodes]:
        shutil.copy(path, out / "data/chunk-000")
        shutil.copy(path.with_suffix(".mp4"), out / f"videos/chunk-000/{camera}")
        length = pq.read_metadata(path).num_rows
        rows.append({"episode_index": int(path.stem[-6:]), "tasks": ["work"], "length": length})
    (out / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


def _real(folder: str, out: Path, episodes: int) -> dict[str, Any]:
    """Diagnosis of the first episodes of a recording."""
    found = check(_layout(folder, out, episodes), diagnosis=True).diagnosis
    assert found is not None
    return found


def test_a_real_camera_that_is_slower_than_the_log(tmp_path):
    facts = _real("g1_bottle", tmp_path, 8)
    assert 0.3 < facts["pictures"][0]["repeats"] < 0.55
    assert "--fps 15 --actions absolute" in _remark(facts, "camera front", "repeat")
    arm = [
        f for f in facts["alignment"] if f["name"] in ("kRightElbow", "kRightShoulderYaw", "kRightWristYaw")
    ]
    assert [f["kind"] for f in arm] == ["absolute"] * 3 and all(f["absolute"]["lag"] >= 2 for f in arm)


@pytest.mark.parametrize("folder", ["cr5_banana", "cr5_usb"])
def test_real_joint_velocities_that_were_measured(tmp_path, folder):
    facts = _real(folder, tmp_path, 10)
    joints = {f["name"]: f for f in facts["alignment"]}
    for name in ("joint_0_vel", "joint_1_vel", "joint_2_vel", "joint_3_vel"):
        assert (joints[name]["kind"], joints[name]["rule"], joints[name]["state"]) == (
            "delta",
            "rate",
            name[:-4],
        )
        assert -0.7 < joints[name]["delta"]["fine"] < -0.3 and joints[name]["delta"]["r"] > 0.9
    assert joints["gripper"]["kind"] == "unknown"
    assert _remark(facts, "joint_0_vel", "measured")
    assert -1.5 < facts["pictures"][0]["lag"]["fine"] < 0.25 and facts["pictures"][0]["lag"]["r"] > 0.5
    assert facts["pictures"][0]["repeats"] < 0.02
    if folder == "cr5_usb":
        assert any(jump["first_step"] == jump["count"] for jump in facts["jumps"])


@pytest.mark.parametrize("folder", ["cr5_banana", "cr5_usb"])
def test_real_pictures_that_are_moved_against_the_state_are_found(tmp_path, folder):
    source = LeRobotFolder(_layout(folder, tmp_path, 8), settings=ImportSettings(image_size=32))
    found = {}
    episodes = list(source.episodes())
    for rows in (0, 1, 3):
        recorder = Recorder(source.specs, source.rate, 8 * 300)
        for number, e in enumerate(episodes):
            steps = e.length - rows
            assert e.actions is not None
            moved = replace(
                e, frames=e.frames[rows:], state=e.state[: steps + 1], actions=e.actions[:steps], success=None,
                progress=None,
            )  # fmt: skip
            recorder.add(number, moved)
        facts = diagnose(recorder)
        found[rows] = facts["pictures"][0]["lag"]["fine"]
        if rows == 3:
            assert "pictures lead the state by" in _remark(facts, "camera front")
    assert found[1] - found[0] == pytest.approx(1, abs=0.15) and found[3] - found[0] == pytest.approx(
        3, abs=0.15
    )


def test_real_samples_without_a_state_say_so():
    source = RECORDINGS / "bridge_v2"
    if not any(source.glob("*.npz")):
        pytest.skip("no bridge_v2 in shared/data beside the repository, nor in WORLDGYM_ROBOT_DATA")
    facts = check(source, diagnosis=True).diagnosis
    assert facts is not None and facts["alignment"] == [] and facts["pictures"][0]["lag"] is None
    assert "no state was recorded" in _remark(facts, "cannot be measured")
