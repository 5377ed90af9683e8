"""Batches mark what their sources lack, and do not depend on workers or on where a run resumed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import MANIFEST, episode

from worldgym.data import DatasetWriter, Episode, EpisodeArrays, EpisodeDataset
from worldgym.data.batch import SOURCES, batch_loader, gather, sample_windows, to_device
from worldgym.errors import ConfigError, DatasetError
from worldgym.specs import ActionSpec, Camera, ObservationSpec, Specs, state_fields

TWO = (Camera("front", 24, 40), Camera("wrist", 16, 8, static=False))
ARM = ActionSpec(tuple(f"a{i}" for i in range(7)), ("rad",) * 7, 5.0, (-1.0,) * 7, (1.0,) * 7)


def two_cameras(number: int, steps: int = 5, **changes: object) -> Episode:
    rng = np.random.default_rng(number)
    values = {
        "frames": rng.integers(0, 256, (steps + 1, 24, 40, 3), dtype=np.uint8),
        "views": {"wrist": rng.integers(0, 256, (steps + 1, 16, 8, 3), dtype=np.uint8)},
        "actions": rng.uniform(-1, 1, (steps, 7)).astype(np.float32),
        "state": rng.normal(size=(steps + 1, 9)).astype(np.float32),
        **changes,
    }
    return episode(number, steps, **values)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes 0 and 3 complete, 1 without actions, 2 without success."""
    folder = tmp_path_factory.mktemp("mixed") / "data"
    specs = Specs(ObservationSpec(TWO, state_fields([f"q{i}" for i in range(9)])), ARM)
    with DatasetWriter(folder, specs, MANIFEST, shard_episodes=2) as writer:
        writer.append(two_cameras(0))
        writer.append(two_cameras(1, actions=None, provenance={"behaviour": "human_video"}))
        writer.append(two_cameras(2, success=None, progress=None))
        writer.append(two_cameras(3, steps=7))
    return folder


def arrays_of(folder: Path) -> EpisodeArrays:
    dataset = EpisodeDataset(folder)
    return dataset.load_arrays(cameras=dataset.cameras)


def test_cameras_of_their_own_sizes_and_missing_parts_return_as_written(mixed: Path) -> None:
    dataset = EpisodeDataset(mixed)
    assert dataset.specs.observation.cameras == TWO and dataset.image_size == (24, 40)
    for number, read in enumerate(dataset):
        wrote = two_cameras(number, 7 if number == 3 else 5)
        assert np.array_equal(read.frames, wrote.frames)
        assert np.array_equal(read.views["wrist"], wrote.views["wrist"])
        assert (read.actions is None) == (number == 1) and (read.success is None) == (number == 2)
        assert read.progress is None if number == 2 else np.array_equal(read.progress, wrote.progress)
    assert [record.success for record in dataset.records] == [False, True, None, True]
    assert dataset.stats["action"]["count"] == [17]  # episodes without actions do not count as zeros


def test_a_resumed_writer_counts_the_same_statistics(mixed: Path, tmp_path: Path) -> None:
    specs, folder = EpisodeDataset(mixed).specs, tmp_path / "again"
    for number in range(4):
        with DatasetWriter(folder, specs, MANIFEST, shard_episodes=2) as writer:
            changes = {1: {"actions": None}, 2: {"success": None, "progress": None}, 3: {"steps": 7}}
            writer.append(two_cameras(number, **changes.get(number, {})))  # type: ignore[arg-type]
    assert EpisodeDataset(folder).stats == EpisodeDataset(mixed).stats


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), length=st.integers(1, 9))
def test_masks_say_exactly_what_the_source_has(mixed: Path, seed: int, length: int) -> None:
    arrays = arrays_of(mixed)
    batch = sample_windows([arrays], 6, length, np.random.default_rng(seed))
    for i in range(6):
        number, start = int(batch["episode"][i]), int(batch["start"][i])
        steps = 7 if number == 3 else 5
        real = [start + t <= steps for t in range(length + 1)]
        assert batch["frame_mask"][i].tolist() == real
        assert bool(batch["has_action"][i]) == (number != 1)
        assert batch["action_mask"][i].all(1).tolist() == [number != 1 and r for r in real[1:]]
        assert bool(batch["success"][i].isnan().all()) == (number == 2)
        wrote = two_cameras(number, steps)
        assert np.array_equal(batch["frames"][i, 0], wrote.frames[start])
        assert np.array_equal(
            batch["views"]["wrist"][i, -1], wrote.views["wrist"][min(start + length, steps)]
        )
        assert not batch["action"][i][~batch["action_mask"][i]].any()


def test_embodiments_are_padded_to_the_largest_and_masked(mixed: Path) -> None:
    big = arrays_of(mixed)
    small = EpisodeArrays(
        **{**vars(big), "actions": big.actions[:, :3], "states": big.states[:, :2], "views": {}}
    )
    batch = gather([big, small], np.array([0, 1]), np.array([0, 0]), 2)
    assert batch["action_mask"].sum((1, 2)).tolist() == [14, 6] and batch["state_mask"].sum(1).tolist() == [
        9,
        2,
    ]
    assert batch["view_mask"]["wrist"].tolist() == [True, False]
    assert batch["embodiment"].tolist() == [0, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_depend_on_seed_and_step_alone(mixed: Path, workers: int) -> None:
    arrays = arrays_of(mixed)
    whole = list(batch_loader([arrays], batch=3, length=4, steps=4, seed=7))
    rest = list(batch_loader([arrays], batch=3, length=4, steps=4, seed=7, first=2, workers=workers))
    assert len(rest) == 2
    for a, b in zip(whole[2:], rest, strict=True):
        assert all(
            torch.equal(a[k].nan_to_num(5), b[k].nan_to_num(5)) for k in ("frames", "action", "success")
        )  # type: ignore[literal-required]
        assert a["instruction"] == b["instruction"]


def test_a_source_has_a_name(mixed: Path) -> None:
    arrays = arrays_of(mixed)
    batch = gather([arrays], np.zeros(4, int), arrays.offsets[:-1], 1)
    names = [SOURCES[i] for i in batch["source"]]
    assert names == ["other", "human_video", "other", "demonstration"]
    assert to_device(batch, "cpu")["instruction"] == batch["instruction"]


def test_impossible_batches_are_refused(mixed: Path) -> None:
    arrays = arrays_of(mixed)
    with pytest.raises(ConfigError, match="at least 1"):
        batch_loader([arrays], batch=0, length=1, steps=1)
    with pytest.raises(ConfigError, match="no episode"):
        sample_windows([], 1, 1, np.random.default_rng(0))
    other = EpisodeArrays(**{**vars(arrays), "frames": arrays.frames[:, :8]})
    with pytest.raises(ConfigError, match="2 sizes.*--image-size"):
        sample_windows([arrays, other], 1, 1, np.random.default_rng(0))


def test_video_alone_is_a_dataset(tmp_path: Path) -> None:
    specs = Specs(ObservationSpec((Camera("front", 16, 16),)))
    with DatasetWriter(tmp_path / "video", specs, MANIFEST, fps=10.0) as writer:
        writer.append(
            episode(1, actions=None, success=None, progress=None, state=np.zeros((5, 0), np.float32))
        )
    dataset = EpisodeDataset(tmp_path / "video")
    read = dataset[0]
    assert (
        read.actions is None
        and read.success is None
        and read.state.shape == (5, 0)
        and dataset.meta.fps == 10
    )
    with pytest.raises(DatasetError, match="without actions"):
        _ = dataset.action_spec
    arrays = dataset.load_arrays()
    assert not arrays.has_action.any() and not arrays.keep(arrays.has_action).frames.size
    with pytest.raises(ValueError, match="fps"):
        DatasetWriter(tmp_path / "no_rate", specs, MANIFEST)


def test_keep_leaves_whole_episodes(mixed: Path) -> None:
    arrays = arrays_of(mixed)
    kept = arrays.keep(np.array([True, False, False, True]))
    assert kept.indices.tolist() == [0, 3] and kept.offsets.tolist() == [0, 6, 14]
    assert np.array_equal(kept.views["wrist"][kept.rows(1)], two_cameras(3, 7).views["wrist"])
