"""BridgeData V2 samples: actions, states, frames, refusals; the real ones where they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from worldgym.data.codecs.video import encode_mp4
from worldgym.data.formats.bridge import (
    BRIDGE_ACTION_SPEC,
    STATE_SCALE,
    bridge_actions,
    bridge_episodes,
    bridge_states,
    write_bridge,
)
from worldgym.errors import DatasetError


def _rows(steps: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = np.zeros((steps, 10), np.float32)
    rows[:, :6] = rng.uniform(-1.5, 1.5, (steps, 6))
    rows[:, 6] = np.where(rng.random(steps) < 0.5, -1, 1)
    return rows


def _sample(folder, name: str, steps: int = 6) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (steps, 128, 128, 3), dtype=np.uint8)
    encode_mp4(folder / f"{name}.mp4", frames, 128, 20)
    np.savez(folder / f"{name}.npz", arr_0=_rows(steps))


@given(arrays(np.float32, (4, 6), elements=st.floats(-2, 2, width=32)))
@settings(max_examples=30, deadline=None)
def test_ten_columns_become_seven_and_come_back(motion):
    rows = np.zeros((4, 10), np.float32)
    rows[:, :6], rows[:, 6] = motion, (-1, 1, 1, -1)
    actions = bridge_actions(rows)
    assert actions.shape == (4, 7) and np.abs(actions).max() <= 1
    assert actions[:, 6].tolist() == [1, -1, -1, 1]  # +1 is open, as everywhere
    assert np.allclose(BRIDGE_ACTION_SPEC.denormalise(actions), rows[:, :7], atol=1e-5)


def test_states_add_the_motion_up():
    actions = bridge_actions(_rows(5))
    states = bridge_states(actions)
    assert states.shape == (6, 7) and not states[0, :6].any()
    assert np.allclose(states[-1, :6], STATE_SCALE * actions[:, :6].sum(0), atol=1e-5)
    assert np.array_equal(states[1:, 6], actions[:, 6])


def test_a_folder_of_pairs_becomes_a_dataset(tmp_path):
    from worldgym.data import EpisodeDataset

    _sample(tmp_path, "b")
    _sample(tmp_path, "a", steps=4)
    episodes = bridge_episodes(tmp_path, image_size=32)
    assert [e.provenance["episode"] for e in episodes] == ["a", "b"]
    assert episodes[1].frames.shape == (6, 32, 32, 3) and episodes[1].actions.shape == (5, 7)
    assert write_bridge(tmp_path, tmp_path / "data", image_size=32) == 2
    again = EpisodeDataset(tmp_path / "data").require_seen()
    assert np.array_equal(again[1].frames, episodes[1].frames) and again.action_spec == BRIDGE_ACTION_SPEC
    assert write_bridge(tmp_path, tmp_path / "data", image_size=32) == 2  # typed again: complete already
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(DatasetError, match="of other recordings; give another --out"):
        write_bridge(tmp_path, tmp_path / "data", image_size=32)


def test_what_is_no_such_folder_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="pairs"):
        bridge_episodes(tmp_path)
    _sample(tmp_path, "a")
    np.savez(tmp_path / "a.npz", arr_0=_rows(3))
    with pytest.raises(DatasetError, match="6 frames and 3 actions"):
        bridge_episodes(tmp_path)
    np.savez(tmp_path / "a.npz", arr_0=np.ones((6, 10), np.float32))
    with pytest.raises(DatasetError, match="zeros"):
        bridge_episodes(tmp_path)
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((6, 7), np.float32))
    with pytest.raises(DatasetError, match=r"\(T, 10\)"):
        bridge_episodes(tmp_path)
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(DatasetError, match="can't be read"):
        bridge_episodes(tmp_path)


def test_the_real_samples_load(bridge_data):
    episodes = bridge_episodes(bridge_data, image_size=64)
    assert len(episodes) == 6
    for episode in episodes:
        assert episode.frames.std() > 10 and len(episode.actions) >= 20
        assert np.abs(episode.actions).max() <= 1


def test_damaged_actions_name_their_file(tmp_path):
    encode_mp4(tmp_path / "a.mp4", np.zeros((3, 128, 128, 3), np.uint8), 128, 20)
    for rows in (
        np.full((3, 10), np.nan),
        np.zeros((0, 10)),
        np.zeros((3, 9)),
        np.zeros(3),
        np.zeros((2, 10)),
    ):
        np.savez(tmp_path / "a.npz", arr_0=rows)
        with pytest.raises(DatasetError, match=r"a\.npz"):
            bridge_episodes(tmp_path, 32)
