"""Imports of odd, damaged and changing recordings: nothing is mixed up, every refusal says what can be done."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import episode, open_writer
from test_import_fields import change_info, change_listing, change_rows
from test_imports import CAMERA, FPS, _frame, make

from worldgym.data import EpisodeDataset
from worldgym.data.check import check
from worldgym.data.codecs.video import encode_mp4
from worldgym.data.formats.fields import flat_names
from worldgym.data.formats.lerobot_import import ImportSettings, LeRobotFolder, import_lerobot
from worldgym.data.info import seal
from worldgym.errors import ConfigError, DatasetError

TINY = ImportSettings(image_size=16)
SKIPPING = ImportSettings(image_size=16, skip_bad=True)


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def edit_info(folder: Path, sealed: bool, **changes: object) -> None:
    """Change `meta/info.json` of one of our datasets; `sealed` as if it had been written so."""
    path = folder / "meta/info.json"
    info = json.loads(path.read_text())
    for name, value in changes.items():
        (info if name in info else info["worldgym"])[name] = value
    if sealed:
        info["worldgym"]["seal"] = seal(info)
    path.write_text(json.dumps(info))


# ---- frames stay with their episode ------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [True, False])
def test_late_rows_never_take_frames_of_the_next_episode(tmp_path, ends):
    root = make(tmp_path / "x", "v3.0", lengths=(8, 8))
    data, listing = (
        root / "data/chunk-000/file-000.parquet",
        root / "meta/episodes/chunk-000/file-000.parquet",
    )
    late = [0.108 * t for t in range(8)] * 2  # slower than the video: the last rows lie beyond its end
    pq.write_table(pq.read_table(data).append_column("timestamp", pa.array(late)), data)
    if ends:
        said = pa.array([0.8, 1.6])
        pq.write_table(pq.read_table(listing).append_column(f"videos/{CAMERA}/to_timestamp", said), listing)
    first = next(iter(LeRobotFolder(root).episodes(32)))
    assert np.abs(first.frames[:, 8:24, 4:12, 0].astype(int) - _frame(0, 0)[0, 0, 0]).max() < 6
    timed = ImportSettings(frames="timestamp")
    with pytest.raises(DatasetError, match="row 7 was recorded at 0.756 s, but the nearest frame .* at 0.700 s"):
        change = [0.1 * t for t in range(7)] + [0.756]
        pq.write_table(
            pq.read_table(data).drop(["timestamp"]).append_column("timestamp", pa.array(change * 2)), data
        )
        next(iter(LeRobotFolder(root, settings=timed).episodes(32)))


def test_a_rate_that_the_rows_contradict_is_refused(tmp_path):
    root = make(tmp_path / "x", "v2.1", filmed=False)
    change_info(root, fps=30)
    for e, n in ((0, 4), (1, 6)):
        change_rows(root, e, timestamp=[t / 10 for t in range(n)])
    with pytest.raises(DatasetError, match="give 10 rows per second, but meta/info.json has fps 30"):
        import_lerobot(root, tmp_path / "a", TINY)
    settings = ImportSettings(image_size=16, fps=5.0, actions=("delta",))
    assert import_lerobot(root, tmp_path / "b", settings)["hz"] == 5.0


# ---- success and instructions ------------------------------------------------------------------------------------


def test_a_success_belongs_to_the_instruction_of_its_row(tmp_path):
    root = make(tmp_path / "x", "v2.1", lengths=(8, 4), filmed=False)
    change_rows(root, 0, task_index=[0] * 7 + [1], next__success=[False] * 7 + [True])
    report = import_lerobot(root, tmp_path / "out", TINY)
    first = EpisodeDataset(tmp_path / "out")[0]
    assert first.length == 7 and not first.succeeded  # the last row, under another instruction, is alone
    assert report["rows_lost"] == {"0": 1} and report["split_episodes"] == {}


def test_demonstrations_succeed_in_every_part(tmp_path):
    root = make(tmp_path / "x", "v2.1", lengths=(8, 4), filmed=False, success=False)
    change_rows(root, 0, task_index=[0] * 4 + [1] * 4)
    report = import_lerobot(root, tmp_path / "out", ImportSettings(image_size=16, success="all"))
    assert report["successes"] == report["episodes"] == 3 and report["split_episodes"] == {"0": 2}
    assert [e.success.sum() for e in EpisodeDataset(tmp_path / "out")] == [1, 1, 1]


def test_the_report_says_where_success_comes_from_and_what_else_there_is(tmp_path):
    from experiments.commands.import_data import lines

    root = make(tmp_path / "x", "v2.1", filmed=False, success=False)
    info = json.loads((root / "meta/info.json").read_text())
    change_info(root, features={**info["features"], "next.reward": {"dtype": "float32", "shape": [1]}})
    for e, n in ((0, 4), (1, 6)):
        change_rows(root, e, next__reward=[float(t == n - 1) for t in range(n)])
    report = import_lerobot(root, tmp_path / "a", TINY)
    assert report["success_from"] == "none recorded" and report["frames_by"] == {"stored": 2}
    assert "--success next.reward" in "\n".join(lines(report))
    settings = ImportSettings(image_size=16, success="next.reward")
    assert import_lerobot(root, tmp_path / "b", settings)["successes"] == 2


# ---- loosely typed fields ----------------------------------------------------------------------------------------


@given(depth=st.integers(1, 900))
def test_names_of_any_nesting_are_flattened_or_numbered(depth):
    names: object = ["a", "b"]
    for _ in range(depth):
        names = [names]
    assert flat_names(names, 2, "action") in (("a", "b"), ("action_0", "action_1"))


@pytest.mark.parametrize("where", ["task", "name", "path", "robot"])
def test_text_that_no_file_can_hold_is_refused_or_replaced(tmp_path, where):
    root = make(tmp_path / "x", "v2.1", filmed=False)
    path = root / "meta/info.json"
    if where == "task":
        (root / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "pick \\ud800"}\n')
    elif where == "path":
        change_info(root, data_path="a" * 5000)
    else:
        path.write_text(path.read_text().replace('"shoulder"' if where == "name" else '"so100"', '"\\ud800"'))
    if where == "name":
        import_lerobot(root, tmp_path / "out", TINY)
        assert EpisodeDataset(tmp_path / "out").action_spec.names == ("action_0", "action_1")
    else:
        with pytest.raises(DatasetError, match=r"tasks\.jsonl|longer than a path|saving to"):
            import_lerobot(root, tmp_path / "out", TINY)


@settings(max_examples=15, deadline=None)
@given(size=st.sampled_from([1e-9, 1e-7, 1.0, 1e6, 1e30]), seed=st.integers(0, 99), still=st.booleans())
def test_actions_of_any_size_come_back(tmp_path_factory, size, seed, still):
    root = make(tmp_path_factory.mktemp("d") / "x", "v2.1", lengths=(5, 5), filmed=False)
    for e in (0, 1):
        values = np.random.default_rng(seed + e).uniform(-1, 1, (5, 2)) * size
        if still:
            values[:, 0] = size
        change_rows(root, e, action=values.tolist())
    folder = LeRobotFolder(root, settings=ImportSettings(bounds="minmax"))
    for e, found in enumerate(folder.episodes(8)):
        said = pq.read_table(root / f"data/chunk-000/episode_{e:06d}.parquet")["action"].to_pylist()
        back = folder.action_spec.denormalise(found.actions)
        np.testing.assert_allclose(back, np.array(said, np.float32)[:-1], rtol=1e-5, atol=1e-6 * size)


# ---- bad episodes ------------------------------------------------------------------------------------------------


def bad(root: Path, kind: str) -> None:
    """Make episode 1 bad."""
    data = root / "data/chunk-000/episode_000001.parquet"
    film = root / f"videos/chunk-000/{CAMERA}/episode_000001.mp4"
    if kind == "missing rows":
        data.unlink()
    elif kind == "damaged rows":
        data.write_bytes(data.read_bytes()[:100])
    elif kind == "missing video":
        film.unlink()
    elif kind == "damaged video":
        film.write_bytes(film.read_bytes()[:700])
    elif kind == "short video":
        encode_mp4(film, [_frame(1, t) for t in range(3)], 128, FPS)
    elif kind == "other state":
        change_rows(root, 1, observation__state=[[0.0, 0.0, 0.0, 1.0]] * 6)
    elif kind == "other action":
        change_rows(root, 1, action=[[0.0]] * 6)
    elif kind == "unclear success":
        change_rows(root, 1, next__success=["maybe"] * 6)
    elif kind == "unknown task":
        change_rows(root, 1, task_index=[7] * 6)
        change_listing(root, [{"episode_index": i, "length": n} for i, n in ((0, 4), (1, 6))])
    else:
        change_rows(root, 1, timestamp=[0.0] * 6)


@pytest.mark.parametrize(
    "kind",
    ["missing rows", "damaged rows", "missing video", "damaged video", "short video", "other state",
     "other action", "unclear success", "unknown task", "standing time"],
)  # fmt: skip
def test_a_bad_episode_is_named_with_both_ways_out_and_both_work(tmp_path, kind):
    root = make(tmp_path / "x", "v2.1")
    bad(root, kind)
    with pytest.raises(DatasetError, match="type --skip 1; to skip all bad episodes, --skip-bad"):
        import_lerobot(root, tmp_path / "out", TINY)
    report = import_lerobot(root, tmp_path / "out", SKIPPING)  # the same folder goes on
    assert list(report["skipped"]) == ["1"] and report["episodes"] == 1
    assert report["instructions"] == {"fold towel 0": 1} and check(tmp_path / "out").problems == []
    assert import_lerobot(root, tmp_path / "skip", ImportSettings(image_size=16, skip="1"))["episodes"] == 1
    assert [p.split(":")[0] for p in check(root).problems] == ["episode 1"]


def test_a_full_disk_is_no_bad_episode(tmp_path, monkeypatch):
    from worldgym.data.writer import DatasetWriter

    root = make(tmp_path / "x", "v2.1", filmed=False)

    def full(self: DatasetWriter, item: object) -> int:
        raise DatasetError("saving failed: the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(DatasetWriter, "append", full)
        with pytest.raises(DatasetError, match="disk is full"):
            import_lerobot(root, tmp_path / "out", SKIPPING)
    assert import_lerobot(root, tmp_path / "out", SKIPPING)["episodes"] == 2


# ---- the same import, and no other -------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["numbers", "video"])
def test_another_source_of_the_same_name_is_refused(tmp_path, change):
    first, second = make(tmp_path / "a/x", "v2.1"), make(tmp_path / "b/x", "v2.1")
    import_lerobot(first, tmp_path / "out", TINY)
    import_lerobot(second, tmp_path / "out", TINY)  # a copy elsewhere is the same recording
    if change == "video":
        encode_mp4(second / f"videos/chunk-000/{CAMERA}/episode_000000.mp4", [_frame(1, 0)] * 4, 128, FPS)
    else:
        change_rows(second, 0, observation__state=[[9.0, 1.0, 2.0]] * 4)
    with pytest.raises(ConfigError, match="give another --out"):
        import_lerobot(second, tmp_path / "out", TINY)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_import_ends_byte_for_byte_as_one_in_one_go(tmp_path, how):
    root = make(tmp_path / "x", "v2.1", lengths=(3,) * 70, filmed=False)
    change_listing(root, [{"episode_index": i, "tasks": ["x"], "length": 3} for i in range(70)])
    rng = np.random.default_rng(0)
    for i in range(70):
        values = {
            name: rng.normal(size=(3, n)).tolist() for name, n in (("action", 2), ("observation__state", 3))
        }
        change_rows(root, i, task_index=None, **values)
    import_lerobot(root, tmp_path / "whole", TINY)
    code = (
        "import os, signal, sys, worldgym.data.writer as w\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background shell's children ignore it
        "from worldgym.data.formats.lerobot_import import *\n"
        "real = w.DatasetWriter.append\n"
        "def append(self, episode):\n"
        "    out = real(self, episode)\n"
        f"    if out == 60: os.kill(os.getpid(), {int(how)})\n"
        "w.DatasetWriter.append = append\n"
        "import_lerobot(sys.argv[1], sys.argv[2], ImportSettings(image_size=16))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(root), str(tmp_path / "cut")], capture_output=True, check=False
    )
    assert done.returncode
    with pytest.raises(DatasetError, match="not finished"):
        EpisodeDataset(tmp_path / "cut")
    import_lerobot(root, tmp_path / "cut", TINY)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_paths_of_the_home_folder_are_expanded(tmp_path, monkeypatch, capsys):
    from experiments.commands.data_check import DataCheckConfig
    from experiments.commands.data_check import run as check_command
    from experiments.commands.import_data import ImportConfig, run

    monkeypatch.setenv("HOME", str(tmp_path))
    make(tmp_path / "x", "v2.1", filmed=False)
    assert run(ImportConfig(Path("~/x"), Path("~/out"), image_size=16)) == 0
    assert check_command(DataCheckConfig(Path("~/out"))) == 0
    assert len(EpisodeDataset(tmp_path / "out")) == 2 and "no problem found" in capsys.readouterr().out


# ---- our own datasets --------------------------------------------------------------------------------------------


def size(side):
    """Specs with a camera of another size."""
    return {"observation": {"cameras": [{"name": "front", "height": side, "width": side}]}, "action": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"specs": size(10**6)}, "larger than 8192"), ({"specs": size(-5)}, "-5 x -5 pixels"),
        ({"specs": size("4")}, "height"), ({"specs": {"observation": []}}, "observation"), ({"fps": 0}, "fps is 0"),
        ({"total_episodes": True}, "total_episodes is True"), ({"images": None}, "images is None"),
        ({"views": "ab"}, "views is 'ab'"), ({"files": [{"path": "../x"}]}, "not a file of the dataset"),
    ],
)  # fmt: skip
def test_what_the_metadata_claims_is_checked_before_memory_is_taken(make_dataset, changes, message):
    folder = make_dataset(2)
    edit_info(folder, sealed=False, **changes)
    with pytest.raises(DatasetError, match="changed since it was written|not a file of the dataset"):
        EpisodeDataset(folder)
    edit_info(folder, sealed=True, **changes)
    with pytest.raises(DatasetError, match=message):
        EpisodeDataset(folder)


@pytest.mark.parametrize("steps", [[10**12, 4], [-3, 4], [0, 4], [None, 4], ["a", "b"]])
def test_what_an_episode_claims_is_checked_before_memory_is_taken(make_dataset, steps):
    folder = make_dataset(2)
    (listing,) = (folder / "meta/episodes").rglob("*.parquet")
    table = pq.read_table(listing)
    pq.write_table(table.set_column(table.column_names.index("steps"), "steps", pa.array(steps)), listing)
    info = json.loads((folder / "meta/info.json").read_text())
    listed = [{**f, "bytes": (folder / f["path"]).stat().st_size} for f in info["worldgym"]["files"]]
    edit_info(folder, sealed=True, files=listed)
    with pytest.raises(DatasetError, match="expected a whole number of at least 1"):
        EpisodeDataset(folder)


def test_a_check_notices_a_changed_bit_in_any_file(make_dataset):
    folder = make_dataset(3)
    assert check(folder).problems == []
    rng = np.random.default_rng(0)
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"):
        before = path.read_bytes()
        places = [len(before) // 2] if path.name == "tasks.parquet" else rng.integers(0, len(before), 5)
        for place in places:
            if path.name == "tasks.parquet":  # its statistics and encodings are not compared, its content is
                place = before.index(b"push the cube") + 3
            changed = bytearray(before)
            changed[int(place)] ^= 1
            path.write_bytes(changed)
            try:
                found = check(folder).problems
            except DatasetError as error:
                found = [str(error)]
            assert found, f"{path.name} at {place}"
        path.write_bytes(before)


def test_a_check_names_all_damaged_files_at_once(make_dataset):
    folder = make_dataset(5)
    damaged = sorted((folder / "data").rglob("*.parquet"))
    assert len(damaged) == 2
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-5])
    assert len(check(folder).problems) == 2


def test_more_frames_than_memory_is_a_sentence(make_dataset, monkeypatch):
    dataset = EpisodeDataset(make_dataset(2))

    def none_left(*args: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr("worldgym.data.reader.np.empty", none_left)
    with pytest.raises(DatasetError, match="GiB of memory.*limit"):
        dataset.load_arrays()


def test_the_main_camera_has_a_name_too(tmp_path):
    views = {"wrist": episode(1).frames}
    with open_writer(tmp_path / "d", views=("wrist",)) as writer:
        writer.append(episode(0, views=views))
    ours = EpisodeDataset(tmp_path / "d")
    assert np.array_equal(ours.load_arrays(camera="front").frames, episode(0).frames)
    assert np.array_equal(ours.load_arrays(camera="wrist").frames, views["wrist"])
    with pytest.raises(DatasetError, match="it has front, wrist"):
        ours.load_arrays(camera="top")
