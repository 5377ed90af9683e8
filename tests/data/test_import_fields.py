"""Loosely typed fields of recordings are read as what they mean, or are refused by name; nothing is lost silently."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_imports import CAMERA, FPS, _frame, _png, make

from worldgym.data import EpisodeDataset
from worldgym.data.check import check
from worldgym.data.codecs.video import encode_mp4
from worldgym.data.formats.fields import flags, flat_names, instruction_list, number_ranges
from worldgym.data.formats.lerobot_import import ImportSettings, LeRobotFolder, import_lerobot
from worldgym.errors import ConfigError, DatasetError

TINY = ImportSettings(image_size=16)


def change_info(root: Path, **changes) -> None:
    file = root / "meta/info.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change_rows(root: Path, episode: int, **columns) -> None:
    """Replace columns of a v2 episode; None removes one."""
    file = root / f"data/chunk-000/episode_{episode:06d}.parquet"
    table = pq.read_table(file)
    for name, values in columns.items():
        name = name.replace("__", ".")
        if name in table.column_names:
            table = table.drop([name])
        if values is not None:
            table = table.append_column(name, pa.array(values))
    pq.write_table(table, file)


def change_listing(root: Path, rows: list[dict]) -> None:
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


# ---- instructions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tasks", ["Pick the red block", ["Pick the red block"], 1, [1]])
def test_an_instruction_is_a_sentence_in_every_way_of_listing_it(tmp_path, tasks):
    root = make(tmp_path / "x", "v2.1", filmed=False)
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 1, "task": "Pick the red block"}) + "\n")
    change_listing(root, [{"episode_index": 0, "tasks": tasks, "length": 4}])
    change_rows(root, 0, task_index=None)
    (episode,) = LeRobotFolder(root).episodes(16)
    assert episode.instruction == "Pick the red block"


def test_a_string_column_of_tasks_is_read_in_v3(tmp_path):
    root = make(tmp_path / "x", "v3.0", filmed=False)
    listing = root / "meta/episodes/chunk-000/file-000.parquet"
    table = (
        pq.read_table(listing).drop(["tasks"]).append_column("tasks", pa.array(["Pick the block", "Open it"]))
    )
    pq.write_table(table, listing)
    (root / "meta/tasks.parquet").unlink()
    assert [e.instruction for e in LeRobotFolder(root).episodes(16)] == ["Pick the block", "Open it"]


def test_an_episode_of_two_instructions_is_split_where_its_rows_change(tmp_path):
    root = make(tmp_path / "x", "v2.1", lengths=(8, 2), filmed=False, success=False)
    change_rows(root, 0, task_index=[0] * 4 + [1] * 4, next__success=[t == 2 for t in range(8)])
    for listed in (["fold towel 0", "fold towel 1"], ["fold towel 1", "fold towel 0"]):  # a set has no order
        change_listing(root, [{"episode_index": 0, "tasks": listed, "length": 8}])
        first, second = LeRobotFolder(root).episodes(16)
        assert (first.instruction, second.instruction) == ("fold towel 0", "fold towel 1")
        assert (first.length, second.length) == (4, 3)
        assert first.succeeded and not second.succeeded
        assert first.provenance["rows"] == [0, 4] and second.provenance["part"] == 1
        assert np.array_equal(first.frames[-1], second.frames[0])


def test_two_instructions_that_rows_do_not_tell_apart_are_refused(tmp_path):
    root = make(tmp_path / "x", "v2.1", filmed=False)
    change_listing(root, [{"episode_index": 0, "tasks": ["open", "close"], "length": 4}])
    change_rows(root, 0, task_index=None)
    with pytest.raises(DatasetError, match="lists 2 instructions.*--skip 0"):
        list(LeRobotFolder(root).episodes(16))


@pytest.mark.parametrize("tasks", [[7], True, {"a": 1}, [None, 2.5]])
def test_a_listing_that_is_no_instruction_is_refused_by_name(tmp_path, tasks):
    root = make(tmp_path / "x", "v2.1", filmed=False)
    change_listing(root, [{"episode_index": 0, "tasks": tasks, "length": 4}])
    change_rows(root, 0, task_index=None)
    with pytest.raises(DatasetError, match="episode 0: task"):
        list(LeRobotFolder(root).episodes(16))


@given(st.lists(st.text(min_size=1), max_size=3))
def test_listed_sentences_come_back(texts):
    kept = tuple(dict.fromkeys(t.strip() for t in texts if t.strip()))
    assert instruction_list(texts, {}) == kept


# ---- success -----------------------------------------------------------------------------------------------------

LAST_ONLY = [
    [False, False, False, True], [0, 0, 0, 1], [0.0, 0.0, 0.0, 1.0], [[False]] * 3 + [[True]],
    ["false", "False", "0", "True"], [None, None, None, True],
]  # fmt: skip


@pytest.mark.parametrize("values", LAST_ONLY)
def test_success_on_the_last_row_alone_is_kept_in_any_dtype(tmp_path, values):
    root = make(tmp_path / "x", "v2.1", lengths=(4, 2), filmed=False)
    change_rows(root, 0, next__success=values)
    first, _ = LeRobotFolder(root).episodes(16)
    assert first.success.tolist() == [False, False, False, True]


def test_success_comes_from_rewards_or_from_all_or_from_nothing_when_asked(tmp_path):
    root = make(tmp_path / "x", "v2.1", filmed=False, success=False)
    change_rows(root, 0, next__reward=[0.1, 0.95, 0.2, 0.0])
    change_rows(root, 1, next__reward=[0.0] * 6)

    def solved(**settings):
        return [
            e.succeeded
            for e in LeRobotFolder(root, settings=ImportSettings(image_size=16, **settings)).episodes()
        ]

    assert solved() == [None, None] and solved(success="none") == [None, None]  # unknown, not failed
    assert solved(success="next.reward") == [False, False]
    assert solved(success="next.reward", reward=0.9) == [True, False]
    assert solved(success="all") == [True, True]
    with pytest.raises(DatasetError, match="no column 'next.success'.*--success all"):
        solved(success="next.success")


def test_a_word_that_says_neither_is_refused():
    with pytest.raises(ValueError, match="'perhaps'"):
        flags(["true", "perhaps"])


# ---- names and bounds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"delta_x": 0, "delta_y": 1, "gripper": 2}, ("delta_x", "delta_y", "gripper")),
        ({"gripper": 2, "delta_y": 1, "delta_x": 0}, ("delta_x", "delta_y", "gripper")),
        ([["a", "b", "c"]], ("a", "b", "c")), ({"motors": ["a", "b", "c"]}, ("a", "b", "c")),
        ({"left": {"a": 0, "b": 1}, "right": ["c"]}, ("a", "b", "c")),
        ("action", ("action_0", "action_1", "action_2")), (None, ("action_0", "action_1", "action_2")),
        (["a", "a", "b"], ("action_0", "action_1", "action_2")), (7, ("action_0", "action_1", "action_2")),
        ([1, 2, 3], ("action_0", "action_1", "action_2")), ({"a": True}, ("action_0", "action_1", "action_2")),
    ],
)  # fmt: skip
def test_names_of_any_nesting(names, expected):
    assert flat_names(names, 3, "action") == expected


@given(
    rare=st.floats(0.5, 1e4),
    count=st.integers(1, 4),
    noise=st.sampled_from([0.0, 1e-6]),
    seed=st.integers(0, 1000),
)
def test_a_rare_action_is_not_cut(tmp_path_factory, rare, count, noise, seed):
    root = make(tmp_path_factory.mktemp("d") / "x", "v2.1", lengths=(2, 2), filmed=False)
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(600, 2)) * (1, noise)
    values[rng.choice(599, count, replace=False), 1] = rare
    change_listing(root, [{"episode_index": 0, "tasks": ["x"], "length": 600}])
    rows = {
        "observation.state": [[0.0, 0.0, 0.0]] * 600,
        "action": values.tolist(),
        "episode_index": [0] * 600,
    }
    rows[CAMERA] = [{"bytes": _png(_frame(0, 0, 8)), "path": None}] * 600
    pq.write_table(pa.table(rows), root / "data/chunk-000/episode_000000.parquet")
    folder = LeRobotFolder(root)
    spec, report = folder.action_spec, folder.report()
    assert np.isclose(spec.denormalise(spec.normalise([0.0, rare]))[1], rare, rtol=1e-3)
    assert report["actions"][1]["cut"] == 0 and 0 < report["actions"][0]["cut"] < 0.05
    assert report["rows_cut"] == report["actions"][0]["cut"]
    everything = LeRobotFolder(root, settings=ImportSettings(bounds="minmax"))
    assert everything.report()["rows_cut"] == 0


# ---- frames ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("times", [1, 3])
def test_frames_are_found_by_their_time(tmp_path, version, times):
    """Rows at 10 Hz in a video of 30 frames a second: row k shows frame 3 k, in every episode of the file."""
    lengths = (4, 6)
    root = make(tmp_path / "x", version, lengths=lengths)
    films = [[_frame(e, t) for t in range(n) for _ in range(times)] for e, n in enumerate(lengths)]
    if version == "v3.0":
        encode_mp4(next(root.rglob("*.mp4")), [f for film in films for f in film], 128, FPS * times)
    else:
        for e, film in enumerate(films):
            encode_mp4(root / f"videos/chunk-000/{CAMERA}/episode_{e:06d}.mp4", film, 128, FPS * times)
    for e, episode in enumerate(LeRobotFolder(root).episodes(32)):
        for t in range(lengths[e]):
            seen, true = episode.frames[t, 8:24, 4:12].mean((0, 1)), _frame(e, t)[0, 0]
            assert np.abs(seen - true).max() < 6


def test_a_video_slower_than_its_rows_is_refused(tmp_path):
    root = make(tmp_path / "x", "v2.1", lengths=(9, 2))
    encode_mp4(
        root / f"videos/chunk-000/{CAMERA}/episode_000000.mp4", [_frame(0, t) for t in range(3)], 128, FPS / 3
    )
    with pytest.raises(DatasetError, match="the nearest frame of the video is at 0.600 s"):
        list(LeRobotFolder(root).episodes(16))


def test_a_picture_beside_the_data_is_opened_and_one_outside_is_not(tmp_path):
    root = make(tmp_path / "x", "v2.1", filmed=False)
    (root / "images").mkdir()
    (root / "images/a.png").write_bytes(_png(_frame(0, 3)))
    change_rows(root, 0, **{CAMERA: [{"bytes": None, "path": "images/a.png"}] * 4})
    episode = next(iter(LeRobotFolder(root).episodes(16)))
    assert np.abs(episode.frames[0, 8, 2].astype(int) - _frame(0, 3)[0, 0]).max() <= 1
    (tmp_path / "secret.png").write_bytes(_png(_frame(0, 3)))
    (root / "images/link.png").symlink_to(tmp_path / "secret.png")
    for outside in ("../secret.png", str(tmp_path / "secret.png"), "images/link.png"):
        change_rows(root, 0, **{CAMERA: [{"bytes": None, "path": outside}] * 4})
        with pytest.raises(DatasetError, match="lies outside"):
            next(iter(LeRobotFolder(root).episodes(16)))
    change_rows(root, 0, **{CAMERA: [{"bytes": None, "path": "images/none.png"}] * 4})
    with pytest.raises(DatasetError, match=r"none\.png is missing"):
        next(iter(LeRobotFolder(root).episodes(16)))


@pytest.mark.parametrize(
    "template",
    ["../{episode_index}.parquet", "/etc/{episode_index}", "data/{episode_index:09999999999d}.parquet",
     "data/{episode_index.__class__}", "data/{nope}.parquet", "data/{episode_index!r}", 7, None, "data/{episode_index"],
)  # fmt: skip
def test_templates_never_lead_out_of_the_folder_nor_fill_the_memory(tmp_path, template):
    root = make(tmp_path / "x", "v2.1", filmed=False)
    change_info(root, data_path=template)
    with pytest.raises(DatasetError, match=r"info\.json|missing"):
        list(LeRobotFolder(root).episodes(16))


def test_a_picture_of_absurd_size_is_not_decoded(tmp_path):
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    huge = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    root = make(tmp_path / "x", "v2.1", filmed=False)
    change_rows(root, 0, **{CAMERA: [{"bytes": huge + b"\0" * 64, "path": None}] * 4})
    with pytest.raises(DatasetError, match="60000 x 60000|not a readable image"):
        list(LeRobotFolder(root).episodes(16))


# ---- which episodes, which features ------------------------------------------------------------------------------


def test_only_the_wanted_episodes_are_read(tmp_path):
    root = make(tmp_path / "x", "v2.1", lengths=(4, 6, 5), filmed=False)
    change_listing(root, [{"episode_index": i, "tasks": ["x"], "length": n} for i, n in enumerate((4, 6, 5))])
    (root / "data/chunk-000/episode_000001.parquet").unlink()  # a partial download

    def numbers(**settings):
        folder = LeRobotFolder(root, settings=ImportSettings(image_size=16, **settings))
        return [e.provenance["episode"] for e in folder.episodes()]

    assert numbers(episodes="0,2") == numbers(skip="1") == numbers(skip_bad=True) == [0, 2]
    assert numbers(limit=1) == [0]
    with pytest.raises(DatasetError, match="missing"):
        numbers()
    with pytest.raises(DatasetError, match="has no episode 9"):
        numbers(episodes="9")
    report = import_lerobot(root, tmp_path / "out", ImportSettings(image_size=16, skip_bad=True))
    assert list(report["skipped"]) == ["1"] and report["episodes"] == 2


@given(st.lists(st.integers(0, 50), min_size=1, unique=True))
def test_number_ranges_name_what_they_say(numbers):
    assert number_ranges(",".join(map(str, numbers))) == tuple(numbers)
    low, high = min(numbers), max(numbers)
    assert number_ranges(f"{low}-{high}") == tuple(range(low, high + 1))


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,,2", "-1", "1-", "1.5", "0-99999999999"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(ValueError, match="episode numbers"):
        number_ranges(text)


def test_features_are_chosen_and_joined_and_proprioception_may_be_missing(tmp_path):
    root = make(tmp_path / "x", "v2.1", filmed=False)
    info = json.loads((root / "meta/info.json").read_text())
    features = {k: v for k, v in info["features"].items() if k != "observation.state"}
    features["arm"] = {"dtype": "float32", "shape": [2], "names": ["a", "b"]}
    features["grip"] = {"dtype": "float32", "shape": [1]}
    change_info(root, features=features)
    for e, n in ((0, 4), (1, 6)):
        change_rows(root, e, arm=[[float(t), 1.0] for t in range(n)], grip=[float(t) for t in range(n)])
    plain = LeRobotFolder(root)
    assert next(iter(plain.episodes(16))).state.shape == (4, 0)
    joined = LeRobotFolder(
        root, settings=ImportSettings(state_keys=("arm", "grip"), action_keys=("grip", "arm"))
    )
    episode = next(iter(joined.episodes(16)))
    assert episode.state[2].tolist() == [2.0, 1.0, 2.0] and joined.action_spec.names == ("grip_0", "a", "b")
    with pytest.raises(DatasetError, match="no numeric feature 'leg'.*--state-key"):
        LeRobotFolder(root, settings=ImportSettings(state_keys=("leg",)))
    report = import_lerobot(root, tmp_path / "out", TINY)
    ours = EpisodeDataset(tmp_path / "out")
    assert report["state_dim"] == ours.state_dim == 0 and ours[1].state.shape == (6, 0)
    assert ours.load_arrays().states.shape == (10, 0) and check(tmp_path / "out").problems == []


def test_several_cameras_are_stored_and_read_by_name(tmp_path):
    root = make(tmp_path / "x", "v2.1", filmed=False)
    info = json.loads((root / "meta/info.json").read_text())
    wrist = "observation.images.wrist"
    change_info(root, features={**info["features"], wrist: info["features"][CAMERA]})
    for e, n in ((0, 4), (1, 6)):
        change_rows(root, e, **{wrist: [{"bytes": _png(255 - _frame(e, t)), "path": None} for t in range(n)]})
    import_lerobot(root, tmp_path / "out", ImportSettings(image_size=16, cameras=(CAMERA, wrist)))
    ours = EpisodeDataset(tmp_path / "out")
    assert ours.views == ("wrist",)
    main, other = ours.load_arrays().frames, ours.load_arrays(camera="wrist").frames
    assert np.array_equal(255 - main, other) and np.array_equal(ours[1].views["wrist"], other[4:])
    assert {"observation.images.front", wrist} <= set(ours.meta.info["features"])
    with pytest.raises(DatasetError, match="no camera 'top'"):
        ours.load_arrays(camera="top")


# ---- whole or resumable ------------------------------------------------------------------------------------------


def test_a_killed_import_is_refused_by_readers_and_finished_by_the_same_command(tmp_path):
    root = make(tmp_path / "x", "v2.1", lengths=(3,) * 60, filmed=False)
    change_listing(root, [{"episode_index": i, "tasks": ["x"], "length": 3} for i in range(60)])
    import_lerobot(root, tmp_path / "whole", TINY)
    code = (
        "import os, signal, worldgym.data.writer as w\n"
        "from pathlib import Path\n"
        "from worldgym.data.formats.lerobot_import import *\n"
        "real = w.DatasetWriter.append\n"
        "def append(self, episode):\n"
        "    out = real(self, episode)\n"
        "    if out == 54: os.kill(os.getpid(), signal.SIGKILL)\n"
        "w.DatasetWriter.append = append\n"
        f"source, out = {str(root)!r}, {str(tmp_path / 'cut')!r}\n"
        "import_lerobot(source, out, ImportSettings(image_size=16), command='THE COMMAND')\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    with pytest.raises(DatasetError, match="not finished; to finish it, type:\n  THE COMMAND"):
        EpisodeDataset(tmp_path / "cut")
    with pytest.raises(ConfigError, match="other settings"):
        import_lerobot(root, tmp_path / "cut", ImportSettings(image_size=24))
    import_lerobot(root, tmp_path / "cut", TINY)

    def files(folder):
        return {
            p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
        }

    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    before = files(tmp_path / "cut")
    assert import_lerobot(root, tmp_path / "cut", TINY)["episodes"] == 60  # typed again: complete
    assert files(tmp_path / "cut") == before


@pytest.mark.parametrize("folder", ["g1_bottle", "cr5_banana", "cr5_usb"])
def test_real_recordings_import(tmp_path, folder):
    if "WORLDGYM_ROBOT_DATA" not in os.environ:
        pytest.skip(
            "set WORLDGYM_ROBOT_DATA to a folder of real recordings (g1_bottle, ...) to run this test"
        )
    import shutil

    source = Path(os.environ["WORLDGYM_ROBOT_DATA"]) / folder
    root, info = tmp_path / "x", json.loads((source / "info.json").read_text())
    (camera,) = (k for k, v in info["features"].items() if v["dtype"] == "video")
    for name in ("meta", "data/chunk-000", f"videos/chunk-000/{camera}"):
        (root / name).mkdir(parents=True)
    shutil.copy(source / "info.json", root / "meta/info.json")
    listed = json.loads((source / "episodes.json").read_text())
    rows = []
    for entry in listed[:3]:
        number = entry["episode"]
        shutil.copy(source / f"episode_{number:06d}.parquet", root / "data/chunk-000")
        shutil.copy(source / f"episode_{number:06d}.mp4", root / f"videos/chunk-000/{camera}")
        length = pq.read_metadata(source / f"episode_{number:06d}.parquet").num_rows
        rows.append({"episode_index": number, "tasks": [entry["task"]], "length": length})
    change_listing(root, rows)
    settings = ImportSettings(image_size=64, success="all")
    if folder == "g1_bottle":
        settings = ImportSettings(image_size=64, success="all", fps=15.0, actions=("absolute",))
    report = import_lerobot(root, tmp_path / "out", settings)
    ours = EpisodeDataset(tmp_path / "out")
    assert len(ours) == 3 and report["successes"] == 3 and check(tmp_path / "out").problems == []
    if folder == "g1_bottle":  # every second frame repeats the one before; at half the rate none does
        still = [float((a == b).all()) for e in ours for a, b in zip(e.frames, e.frames[1:], strict=False)]
        assert np.mean(still) < 0.2 and ours.action_spec.dim == ours.state_dim == 26
