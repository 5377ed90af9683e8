"""What goes in comes out, and other LeRobot tools would understand the files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up import MANIFEST, episode, open_writer, same

from envs.tabletop import TABLETOP_ACTION_SPEC
from worldgym.data import EpisodeDataset
from worldgym.errors import DatasetError

MakeDataset = Callable[..., Path]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    shard=st.integers(1, 4),
    size=st.sampled_from([1, 8, 33]),
)
def test_round_trip_of_any_lengths(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], shard: int, size: int
) -> None:
    folder = tmp_path_factory.mktemp("round")
    episodes = [episode(number, steps, size) for number, steps in enumerate(lengths)]
    with open_writer(folder, size, shard_episodes=shard) as writer:
        for made in episodes:
            writer.append(made)
    dataset = EpisodeDataset(folder)
    assert all(same(a, b) for a, b in zip(dataset, episodes, strict=True))
    arrays = dataset.load_arrays()
    assert arrays.lengths.tolist() == lengths
    assert arrays.is_last.sum() == len(lengths)
    for number, made in enumerate(episodes):
        rows = arrays.rows(number)
        assert np.array_equal(arrays.frames[rows], made.frames)
        assert np.array_equal(arrays.actions[rows][:-1], made.actions)
        assert not arrays.actions[rows][-1].any()
        assert np.array_equal(arrays.states[rows], made.state)
        assert np.array_equal(arrays.success[rows], made.success)
        assert np.array_equal(arrays.progress[rows], made.progress)
    dataset.verify()


def test_meta_travels_with_the_data(make_dataset: MakeDataset) -> None:
    dataset = EpisodeDataset(make_dataset(5))
    assert dataset.action_spec == TABLETOP_ACTION_SPEC
    assert dataset.manifest.hash == MANIFEST.hash
    assert (dataset.image_size, dataset.state_dim, dataset.total_frames) == (16, 4, 25)
    assert dataset.summary["env_steps"] == {"real": 20}
    assert dataset.summary["episodes_by_behaviour"] == {"random": 3, "expert": 2}
    actions = np.concatenate([made.actions for made in dataset])
    np.testing.assert_allclose(
        dataset.stats["action"]["mean"], actions.mean(axis=0), atol=1e-6
    )  # no padding rows
    assert np.array(dataset.stats["observation.images.front"]["mean"]).shape == (3, 1, 1)


def test_rows_follow_lerobot_v3(make_dataset: MakeDataset) -> None:
    folder = make_dataset(5)
    info = json.loads((folder / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"], info["fps"]) == (5, 20, 3, 5)
    rows = pq.read_table(folder / "data/chunk-000/file-000.parquet").to_pydict()
    assert set(info["features"]) == set(rows)
    assert rows["index"] == list(range(12))
    assert rows["episode_index"] == [0] * 4 + [1] * 4 + [2] * 4
    assert rows["frame_index"] == [0, 1, 2, 3] * 3
    np.testing.assert_allclose(rows["timestamp"][:4], [0, 0.2, 0.4, 0.6], atol=1e-6)
    # Episode 1 succeeds at frames 3 and 4: the reward belongs to action 2, the end to action 3.
    assert rows["next.reward"][4:8] == [0, 0, 1, 0]
    assert rows["next.success"][4:8] == [False, False, True, True]
    assert rows["next.done"][4:8] == [False, False, False, True]
    # No row of padding: an outside trainer finds exactly the actions that were sent.
    np.testing.assert_array_equal(np.array(rows["action"][4:8], np.float32), episode(1).actions)
    last = pq.read_table(folder / "worldgym/final/chunk-000/file-000.parquet").to_pydict()
    assert last["episode_index"] == [0, 1, 2] and last["success"][1] is True
    assert rows["observation.images.front"][0]["bytes"][:4] == b"\x89PNG"
    episodes = pq.read_table(folder / "meta/episodes/chunk-000/file-001.parquet").to_pydict()
    assert episodes["dataset_from_index"] == [12, 16]
    assert episodes["dataset_to_index"] == [16, 20]
    assert episodes["data/file_index"] == [1, 1]
    assert episodes["tasks"] == [["push the cube 0"], ["push the cube 1"]]
    tasks = pq.read_table(folder / "meta/tasks.parquet")
    assert tasks["task"].to_pylist() == [f"push the cube {number}" for number in range(3)]
    assert b"pandas" in tasks.schema.metadata


def test_filters_combine(make_dataset: MakeDataset) -> None:
    dataset = EpisodeDataset(make_dataset(6))
    assert len(dataset.filter(task="push")) == 3
    assert len(dataset.filter(behaviour=("expert", "random"))) == 6
    assert len(dataset.filter(task="push", success=False)) == 0
    assert [record.index for record in dataset.select([4, 1]).records] == [4, 1]
    assert same(dataset.select([4, 1])[1], episode(1))
    assert same(dataset[-1], episode(5))


def test_limit_spreads_over_the_dataset(make_dataset: MakeDataset) -> None:
    arrays = EpisodeDataset(make_dataset(6)).load_arrays(limit=3)
    assert arrays.indices.tolist() == [0, 2, 4]
    assert np.array_equal(arrays.frames[arrays.rows(2)], episode(4).frames)


def test_training_is_refused_what_is_held_out(tmp_path: Path) -> None:
    with open_writer(tmp_path / "d") as writer:
        writer.append(episode(0))
        writer.append(episode(1, split="unseen_object"))
    with pytest.raises(DatasetError, match=r"1 of 2 .*unseen_object.*split='seen'"):
        EpisodeDataset(tmp_path / "d").require_seen()
    seen = EpisodeDataset(tmp_path / "d", split="seen").require_seen()
    assert len(seen) == 1


def test_empty_dataset_opens_but_has_nothing_to_load(make_dataset: MakeDataset) -> None:
    dataset = EpisodeDataset(make_dataset(0))
    assert len(dataset) == 0
    assert list(dataset) == []
    assert dataset.stats == {}
    with pytest.raises(DatasetError, match="worldgym collect"):
        dataset.load_arrays()
    with pytest.raises(IndexError):
        dataset[0]


def test_unknown_split_is_refused(make_dataset: MakeDataset) -> None:
    with pytest.raises(ValueError, match="unknown split 'train'"):
        EpisodeDataset(make_dataset(1), split="train")


def test_video_keeps_large_frames(tmp_path: Path) -> None:
    def smooth(number: int) -> np.ndarray:
        ramp = np.linspace(0, 200, 128, dtype=np.float32)
        frames = np.stack([np.stack([np.roll(ramp, 9 * (t + number))] * 128) for t in range(5)])
        return np.repeat(frames[..., None], 3, axis=-1).astype(np.uint8)

    with open_writer(tmp_path / "v", 128, images="mp4") as writer:
        for number in range(4):
            writer.append(episode(number, frames=smooth(number)))
    dataset = EpisodeDataset(tmp_path / "v")
    assert not (tmp_path / "v/data/chunk-000/file-000.parquet").read_bytes().count(b"\x89PNG")
    for number, made in enumerate(dataset):
        error = np.abs(made.frames.astype(int) - smooth(number)).mean(axis=(1, 2, 3))
        assert error.max() < 4, "a frame of the wrong time would be off by far more"


def test_video_is_refused_for_small_frames(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 128 px, got .*64x64.*images='png'"):
        open_writer(tmp_path / "v", 64, images="mp4")
    assert not (tmp_path / "v").exists()
