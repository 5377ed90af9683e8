"""LeRobot folders of others: both layouts, films and pictures, cameras, refusals."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from worldgym.data import EpisodeDataset
from worldgym.data.codecs.video import encode_mp4
from worldgym.data.formats.frames import picture
from worldgym.data.formats.lerobot_import import ImportSettings, LeRobotFolder, import_lerobot, is_foreign
from worldgym.errors import ConfigError, DatasetError

CAMERA = "observation.images.top"
FPS = 10.0


def _frame(episode: int, step: int, size: int = 128) -> np.ndarray:
    frame = np.full((size, size, 3), 40, np.uint8)
    frame[:, : size // 2] = ((30 * episode + 20) % 250, 200 - 20 * step, 25 * step)
    return frame


def _png(frame: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "PNG")
    return out.getvalue()


def make(root: Path, version: str, lengths=(4, 6), filmed: bool = True, success: bool = True) -> Path:
    """A folder as LeRobot writes it."""
    v3 = version == "v3.0"
    features = {
        "observation.state": {"dtype": "float32", "shape": [3], "names": None},
        "action": {"dtype": "float32", "shape": [2], "names": {"motors": ["shoulder", "elbow"]}},
        CAMERA: {"dtype": "video" if filmed else "image", "shape": [128, 128, 3], "names": None},
    }
    place = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    old = "chunk-{episode_chunk:03d}"
    info = {
        "codebase_version": version,
        "robot_type": "so100",
        "fps": FPS,
        "chunks_size": 1000,
        "features": features,
        "data_path": f"data/{place}.parquet" if v3 else f"data/{old}/episode_{{episode_index:06d}}.parquet",
        "video_path": f"videos/{{video_key}}/{place}.mp4"
        if v3
        else f"videos/{old}/{{video_key}}/episode_{{episode_index:06d}}.mp4",
    }
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    sentences = [f"fold towel {i}" for i in range(len(lengths))]
    tables = []
    for e, length in enumerate(lengths):
        step = np.arange(length, dtype=np.float32)
        columns = {
            "observation.state": [[float(e), float(t), 0.5] for t in step],
            "action": [[float(t - 1), float(2 * e)] for t in step],
            "episode_index": [e] * length,
            "task_index": [e] * length,
        }
        if success:
            columns["next.success"] = [bool(t == length - 2) for t in range(length)]
        if not filmed:
            columns[CAMERA] = [{"bytes": _png(_frame(e, t)), "path": f"{t}.png"} for t in range(length)]
        tables.append(pa.table(columns))
    films = [[_frame(e, t) for t in range(length)] for e, length in enumerate(lengths)]
    if v3:
        (root / "data/chunk-000").mkdir(parents=True)
        pq.write_table(pa.concat_tables(tables), root / "data/chunk-000/file-000.parquet")
        begin = np.concatenate([[0], np.cumsum(lengths)])[:-1]
        rows = {
            "episode_index": list(range(len(lengths))),
            "length": list(lengths),
            "tasks": [[s] for s in sentences],
            "data/chunk_index": [0] * len(lengths),
            "data/file_index": [0] * len(lengths),
        }
        if filmed:
            film = root / f"videos/{CAMERA}/chunk-000/file-000.mp4"
            film.parent.mkdir(parents=True)
            encode_mp4(film, [f for part in films for f in part], 128, FPS)
            rows |= {
                f"videos/{CAMERA}/chunk_index": [0] * len(lengths),
                f"videos/{CAMERA}/file_index": [0] * len(lengths),
                f"videos/{CAMERA}/from_timestamp": [float(b) / FPS for b in begin],
            }
        (root / "meta/episodes/chunk-000").mkdir(parents=True)
        pq.write_table(pa.table(rows), root / "meta/episodes/chunk-000/file-000.parquet")
        pq.write_table(
            pa.table({"task_index": [0, 1], "__index_level_0__": sentences}), root / "meta/tasks.parquet"
        )
        return root
    (root / "data/chunk-000").mkdir(parents=True)
    listing = []
    for e, length in enumerate(lengths):
        pq.write_table(tables[e], root / f"data/chunk-000/episode_{e:06d}.parquet")
        listing.append({"episode_index": e, "tasks": [sentences[e]], "length": length})
        if filmed:
            film = root / f"videos/chunk-000/{CAMERA}/episode_{e:06d}.mp4"
            film.parent.mkdir(parents=True, exist_ok=True)
            encode_mp4(film, films[e], 128, FPS)
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listing))
    (root / "meta/tasks.jsonl").write_text(
        "".join(json.dumps({"task_index": i, "task": s}) + "\n" for i, s in enumerate(sentences))
    )
    return root


@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
@pytest.mark.parametrize("filmed", [True, False])
def test_every_layout_gives_the_same_episodes(tmp_path, version, filmed):
    folder = LeRobotFolder(make(tmp_path / "x", version, filmed=filmed))
    assert len(folder) == 2 and folder.cameras == [CAMERA] and folder.action_spec.hz == FPS
    first, second = folder.episodes(image_size=32)
    assert second.instruction == "fold towel 1" and second.length == 5
    assert first.frames.shape == (4, 32, 32, 3) and first.state[2].tolist() == [0.0, 2.0, 0.5]
    for episode, number in ((first, 0), (second, 1)):
        for t in range(len(episode.frames)):  # a film's colours are half as fine
            seen, true = episode.frames[t, 8:24, 4:12].mean((0, 1)), _frame(number, t)[0, 0]
            assert np.abs(seen - true).max() < (6 if filmed else 0.5)
    assert second.success.tolist() == [False] * 5 + [
        True
    ]  # the row before the last said that success follows
    assert not list(folder.episodes(32, limit=1))[1:]


def test_names_and_bounds_of_actions_come_from_the_recordings(tmp_path):
    spec = LeRobotFolder(make(tmp_path / "x", "v2.1")).action_spec
    assert spec.names == ("shoulder", "elbow") and spec.bounds == "q01/q99"
    assert -1.0 <= spec.low[0] < -0.8 and 2.5 < spec.high[0] <= 3.0  # of the actions whose outcome was filmed


@given(seed=st.integers(0, 10**6), steps=st.integers(2, 30), still=st.booleans())
@settings(max_examples=20, deadline=None)
def test_actions_of_any_recording_stay_within_bounds(tmp_path_factory, seed, steps, still):
    root = make(tmp_path_factory.mktemp("d") / "x", "v2.1", lengths=(2, 2), filmed=False)
    values = np.random.default_rng(seed).normal(size=(steps, 2)) * (1, 0 if still else 100)
    listing = [{"episode_index": 0, "tasks": ["x"], "length": steps}]
    (root / "meta/episodes.jsonl").write_text(json.dumps(listing[0]) + "\n")
    table = pa.table(
        {
            "observation.state": [[0.0, 0.0, 0.0]] * steps,
            "action": values.tolist(),
            "episode_index": [0] * steps,
            CAMERA: [{"bytes": _png(_frame(0, 0, 8)), "path": "0.png"}] * steps,
        }
    )
    pq.write_table(table, root / "data/chunk-000/episode_000000.parquet")
    (episode,) = LeRobotFolder(root).episodes(8)
    assert np.abs(episode.actions).max() <= 1.0 and not episode.succeeded


def test_an_import_is_a_dataset_that_trainers_take(tmp_path):
    root = make(tmp_path / "x", "v2.1")
    settings = ImportSettings(image_size=32)
    assert is_foreign(root) and import_lerobot(root, tmp_path / "mine", settings)["episodes"] == 2
    ours = EpisodeDataset(tmp_path / "mine").require_seen()
    assert not is_foreign(tmp_path / "mine") and ours.image_size == 32 and ours.state_dim == 3
    (_, second) = LeRobotFolder(root).episodes(32)
    assert np.array_equal(ours[1].frames, second.frames) and np.array_equal(ours[1].actions, second.actions)
    with pytest.raises(ConfigError, match="other settings.*another --out"):
        import_lerobot(root, tmp_path / "mine", ImportSettings(image_size=64))
    with pytest.raises(DatasetError, match="EpisodeDataset"):
        LeRobotFolder(tmp_path / "mine")


def test_wide_frames_are_cut_to_the_square_in_the_middle(tmp_path):
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 255
    assert (picture(_png(wide), 8) == 255).all()
    padded = picture(_png(wide), 12, "pad")
    assert padded[4:8, 4:8].min() == 255 and padded[:4].max() == padded[8:].max() == 0
    assert picture(_png(wide), 12, "stretch")[:, 4:8].min() == 255


def test_unclear_folders_are_refused_with_the_way_out(tmp_path):
    with pytest.raises(DatasetError, match=r"info\.json is missing"):
        LeRobotFolder(tmp_path)
    root = make(tmp_path / "x", "v2.1")
    file = root / "meta/info.json"
    info = json.loads(file.read_text())
    for change, message in (
        ({"codebase_version": "v1.6"}, "v1.6.*expected v2.0"),
        ({"features": {k: v for k, v in info["features"].items() if k != "action"}}, "no numeric feature 'action'"),
        ({"features": {**info["features"], "wrist": info["features"][CAMERA]}}, "got --camera .none.*wrist"),
    ):
        file.write_text(json.dumps({**info, **change}))
        with pytest.raises(DatasetError, match=message):
            LeRobotFolder(root)
    assert LeRobotFolder(root, camera=CAMERA).camera == CAMERA
    file.write_text("{")
    with pytest.raises(DatasetError, match=r"info\.json can't be read"):
        LeRobotFolder(root)


def test_damage_names_the_file(tmp_path):
    root = make(tmp_path / "x", "v3.0")
    (film,) = root.rglob("*.mp4")
    film.unlink()
    with pytest.raises(DatasetError, match=r"file-000\.mp4 is missing"):
        list(LeRobotFolder(root).episodes(32))
    data = root / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(data).slice(0, 8), data)
    with pytest.raises(DatasetError, match="4 rows, 6 are listed"):
        list(LeRobotFolder(root).episodes(32))
    data.write_bytes(b"PAR1nonsense")
    with pytest.raises(DatasetError, match=r"file-000\.parquet can't be read"):
        list(LeRobotFolder(root).episodes(32))


def test_the_bench_on_video_reads_such_folders_as_they_are(tmp_path):
    from experiments.commands.bench_video import BenchVideoConfig, load

    episodes, _ = load(BenchVideoConfig(make(tmp_path / "x", "v3.0"), image_size=32))
    assert [len(e.frames) for e in episodes] == [4, 6]


def test_the_command_imports_both_kinds(tmp_path, capsys):
    from experiments.commands.import_data import ImportConfig, run

    root = make(tmp_path / "x", "v2.1")
    assert run(ImportConfig(root, tmp_path / "a", image_size=32, episodes="1")) == 0
    assert "1 episodes imported" in capsys.readouterr().out
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    encode_mp4(pairs / "a.mp4", [_frame(0, t) for t in range(3)], 128, FPS)
    np.savez(pairs / "a.npz", arr_0=np.zeros((3, 10), np.float32))
    assert run(ImportConfig(pairs, tmp_path / "b", image_size=32)) == 0
    assert len(EpisodeDataset(tmp_path / "b")) == 1
    for bad in (
        {"image_size": 12},
        {"episodes": "x"},
        {"skip": "3-1"},
        {"limit": 0},
        {"fps": 5.0},
        {"fps": -1.0},
    ):
        with pytest.raises(ConfigError):
            ImportConfig(root, tmp_path / "c", **bad)
    with pytest.raises(ConfigError, match="one camera"):
        run(ImportConfig(pairs, tmp_path / "c", camera=("top",)))


def flatten(root: Path, flat: Path) -> Path:
    """The files of a folder of version 2 side by side, as when somebody shares a part of it."""
    flat.mkdir()
    for file in (*root.rglob("*.parquet"), *root.rglob("*.mp4"), root / "meta" / "info.json"):
        (flat / file.name).write_bytes(file.read_bytes())
    rows = [json.loads(line) for line in (root / "meta" / "episodes.jsonl").read_text().splitlines()]
    listed = [{"episode": row["episode_index"], "frames": row["length"], "task": row["tasks"][0]} for row in rows]
    (flat / "episodes.json").write_text(json.dumps(listed))
    return flat


def test_files_of_version_2_side_by_side_are_the_same_recordings(tmp_path):
    whole = make(tmp_path / "whole", "v2.1")
    flat = flatten(whole, tmp_path / "flat")
    assert is_foreign(flat)
    reports = [import_lerobot(source, tmp_path / f"out_{source.name}") for source in (whole, flat)]
    assert reports[0]["episodes"] == reports[1]["episodes"] == 2
    for a, b in zip(*(EpisodeDataset(tmp_path / f"out_{source.name}") for source in (whole, flat)), strict=True):
        assert np.array_equal(a.frames, b.frames) and np.array_equal(a.actions, b.actions)
        assert a.instruction == b.instruction


def test_files_side_by_side_of_two_cameras_are_refused(tmp_path):
    flat = flatten(make(tmp_path / "whole", "v2.1"), tmp_path / "flat")
    info = json.loads((flat / "info.json").read_text())
    info["features"]["observation.images.wrist"] = info["features"][CAMERA]
    (flat / "info.json").write_text(json.dumps(info))
    with pytest.raises(DatasetError, match="meta, data and videos"):
        LeRobotFolder(flat, ImportSettings(cameras=(CAMERA,)))
