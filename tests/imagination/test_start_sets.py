"""Start sets: arrays, .npz files, logged episodes; and how named things are found or missed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from fakes import DotJudge, DotWorldModel, make_starts
from hypothesis import given
from hypothesis import strategies as st

from envs.tabletop.imagined import make_imagined_tabletop, make_imagined_tabletop_vec
from worldgym.errors import CheckpointError
from worldgym.imagination import ArrayStarts, DatasetStarts, StartSet, WorldModelEnv
from worldgym.imagination.loading import resolve_reward, resolve_starts
from worldgym.imagination.starts import start_from_episode


def episode(length: int, success_at: int | None, task: str = "push") -> SimpleNamespace:
    frames = np.zeros((length + 1, 64, 64, 3), np.uint8)
    frames[:] = np.arange(length + 1, dtype=np.uint8)[:, None, None, None]
    success = np.zeros(length + 1, bool)
    if success_at is not None:
        success[success_at:] = True
    state = np.zeros((length + 1, 4), np.float32)
    state[:, 0] = np.arange(length + 1) / 100
    actions = np.full((length, 4), 0.5, np.float32)
    return SimpleNamespace(
        frames=frames, actions=actions, state=state, instruction="go", success=success, task=task
    )


def test_array_starts_survive_the_disk(tmp_path):
    starts = make_starts()
    starts.save(tmp_path / "starts.npz")
    again = resolve_starts(str(tmp_path / "starts.npz"))
    assert isinstance(again, StartSet) and len(again) == len(starts)
    one, two = starts.sample(np.random.default_rng(1)), again.sample(np.random.default_rng(1))
    assert (
        np.array_equal(one.frames, two.frames) and one.instruction == two.instruction and one.task == two.task
    )
    assert np.array_equal(one.states, two.states)


def test_other_instructions_survive_the_disk(tmp_path):
    images = np.zeros((3, 8, 8, 3), np.uint8)
    others = [("open the lid", "close the lid"), (), ("go on",)]
    ArrayStarts(images, ["a", "b", "c"], other_instructions=others).save(tmp_path / "starts.npz")
    assert ArrayStarts.load(tmp_path / "starts.npz").other_instructions == others
    ArrayStarts(images, ["a", "b", "c"]).save(tmp_path / "without.npz")
    assert ArrayStarts.load(tmp_path / "without.npz").other_instructions is None
    with pytest.raises(ValueError, match="2 lists of other instructions for 3 images"):
        ArrayStarts(images, ["a", "b", "c"], other_instructions=others[:2])
    for text in ("two\nlines", ""):
        with pytest.raises(ValueError, match="expected texts of one line each"):
            ArrayStarts(images, ["a", "b", "c"], other_instructions=[*others[:2], (text,)])


def test_damaged_foreign_or_missing_start_files(tmp_path):
    with pytest.raises(CheckpointError, match="worldgym bundle"):
        ArrayStarts.load(tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(CheckpointError, match="Expected a start set"):
        ArrayStarts.load(tmp_path / "bad.npz")
    np.savez(tmp_path / "foreign.npz", pictures=np.zeros(3))
    with pytest.raises(ValueError, match="lacks images, instructions"):
        ArrayStarts.load(tmp_path / "foreign.npz")
    np.savez(tmp_path / "pickled.npz", images=np.array([{}], object), instructions=np.array(["a"]))
    with pytest.raises(CheckpointError, match="Expected a start set"):
        ArrayStarts.load(tmp_path / "pickled.npz")


def test_arrays_that_do_not_fit_are_refused():
    images = np.zeros((2, 64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="3 instructions for 2 images"):
        ArrayStarts(images, ["a", "b", "c"])
    with pytest.raises(ValueError, match="expected uint8"):
        ArrayStarts(images.astype(np.float32), ["a", "b"])
    with pytest.raises(ValueError, match="empty"):
        ArrayStarts(images[:0], [])


@given(length=st.integers(1, 12), data=st.data(), context=st.integers(1, 4))
def test_dataset_starts_come_from_the_middle_and_before_success(length, data, context):
    success_at = data.draw(st.one_of(st.none(), st.integers(0, length)))
    starts = DatasetStarts([episode(length, success_at)], context=context)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    for _ in range(10):
        start = starts.sample(rng)
        frame = int(start.frames[-1, 0, 0, 0])
        assert start.frames.shape == (context, 64, 64, 3) and start.actions.shape == (context - 1, 4)
        assert frame == 0 or frame < (length if success_at is None else success_at)
        assert start.states[-1, 0] == pytest.approx(frame / 100)


def test_context_before_the_first_frame_stands_still():
    start = start_from_episode(episode(6, None), frame=1, context=4)
    assert start.frames[:, 0, 0, 0].tolist() == [0, 0, 0, 1]
    assert start.actions[:, 0].tolist() == [0.0, 0.0, 0.5]


def test_dataset_starts_by_task_and_number():
    starts = DatasetStarts([episode(5, None, "push"), episode(5, 3, "reach")])
    assert {starts.sample(np.random.default_rng(i), task="reach").task for i in range(5)} == {"reach"}
    assert starts.get(1, 2).frames[0, 0, 0, 0] == 2
    with pytest.raises(ValueError, match="no episode of task 'fly'"):
        starts.sample(np.random.default_rng(0), task="fly")
    with pytest.raises(ValueError, match="frame 9"):
        starts.get(0, 9)
    with pytest.raises(ValueError, match="worldgym collect"):
        DatasetStarts([])


def test_an_environment_starts_from_logged_episodes():
    logs = [episode(8, None), episode(8, 4)]
    env = WorldModelEnv(DotWorldModel(), DotJudge(), DatasetStarts(logs, context=3))
    obs, info = env.reset(seed=0)
    assert info["task"] == "push" and obs in env.observation_space
    obs, _ = env.reset(options={"episode": 1, "frame": 3})
    assert obs["image"][0, 0, 0] == 3
    obs, _ = env.reset(options={"episode": logs[0], "frame": 6, "instruction": "again"})
    assert obs["image"][0, 0, 0] == 6 and obs["instruction"] == "again"


def test_named_judges():
    assert resolve_reward("fakes:make_judge", {"fail_when_closed": True}).fail_when_closed


@pytest.mark.parametrize("make", [make_imagined_tabletop, make_imagined_tabletop_vec])
def test_a_missing_checkpoint_names_the_command(make, tmp_path):
    with pytest.raises(CheckpointError, match="worldgym build"):
        make(checkpoint="no-such-checkpoint")
    with pytest.raises(CheckpointError, match="worldgym bundle"):
        make(checkpoint=str(tmp_path))
