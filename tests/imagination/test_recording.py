"""Recorded episodes are what the environment showed: replayed from their first frame they come out again."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from fakes import DotJudge, DotWorldModel, make_starts
from gymnasium.vector import AutoresetMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import worldgym  # noqa: F401  (registers the ids)
from worldgym.data import EpisodeDataset
from worldgym.imagination import WorldModelVectorEnv
from worldgym.imagination.adapters.recording import RecordDataset


def _envs(**kwargs):
    kwargs.setdefault("reward", DotJudge())
    return WorldModelVectorEnv(
        DotWorldModel(noise=0.0),
        starts=make_starts(),
        success_threshold=0.8,
        horizon=10,
        info_frames=True,
        **kwargs,
    )


def _play(envs, steps, rng):
    """Random actions; how many episodes ended."""
    disabled = envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    envs.reset(seed=0)
    ended = 0
    for _ in range(steps):
        actions = rng.uniform(-1, 1, envs.action_space.shape).astype(np.float32)
        _, _, terminated, truncated, _ = envs.step(actions)
        over = np.asarray(terminated) | np.asarray(truncated)
        ended += int(over.sum())
        if disabled and over.any():
            envs.reset(options={"reset_mask": over})
    return ended


@given(
    mode=st.sampled_from(list(AutoresetMode)),
    chunk=st.sampled_from([None, 1, 5]),
    tensors=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_finished_episode_is_kept_and_its_actions_lead_to_its_frames(
    tmp_path_factory, mode, chunk, tensors, seed
):
    folder = tmp_path_factory.mktemp("dreams") / "data"
    envs = _envs(num_envs=3, autoreset_mode=mode, chunk=chunk, tensors=tensors, judge_every=5)
    with RecordDataset(envs, folder, behaviour="random") as recorded:
        ended = _play(recorded, 26 if chunk is None else 26 // chunk, np.random.default_rng(seed))
    dataset = EpisodeDataset(folder)
    assert len(dataset) == ended > 0
    for episode in dataset:
        model = DotWorldModel(noise=0.0)
        first = torch.from_numpy(episode.frames[:1])[None]
        start = torch.from_numpy(episode.state[:1])[None]
        _, again = model.step(model.begin(first, None, states=start), torch.from_numpy(episode.actions)[None])
        np.testing.assert_array_equal(again.frames[0].numpy(), episode.frames[1:])
        np.testing.assert_allclose(again.states[0].numpy(), episode.state[1:], atol=1e-6)
        assert episode.domain == "imagined" and episode.provenance["judge"] == "dot"
        assert episode.success[:-1].sum() == 0  # it ends with the first judged success
        assert episode.length == 10 or episode.succeeded
        assert episode.provenance["judged"][-1] == episode.length
        assert (episode.progress[-1] >= 0.8 - 1e-6) == episode.succeeded or abs(
            episode.progress[-1] - 0.8
        ) < 1e-6


def test_invalid_and_unfinished_episodes_are_counted_not_written(tmp_path):
    envs = _envs(num_envs=2, reward=DotJudge(fail_when_closed=True), chunk=5, autoreset_mode="Disabled")
    with RecordDataset(envs, tmp_path / "data") as recorded:
        recorded.reset(seed=0)
        actions = np.zeros((2, 5, 4), np.float32)
        actions[0, :, 3] = -1  # closed: the judge fails, the episode is no failure
        actions[1, :, 3] = 1
        _, _, terminated, truncated, info = recorded.step(actions)
        assert info["invalid"].tolist() == [True, False] and truncated[0] and not terminated.any()
    assert recorded.dropped == 2
    assert len(EpisodeDataset(tmp_path / "data")) == 0


def test_a_second_recording_continues_the_dataset(tmp_path):
    for _ in range(2):
        with RecordDataset(_envs(num_envs=2, chunk=5), tmp_path / "data") as recorded:
            ended = _play(recorded, 6, np.random.default_rng(0))
    assert len(EpisodeDataset(tmp_path / "data")) == 2 * ended


def test_episodes_of_real_are_logs_with_the_simulators_verdict(tmp_path):
    envs = gym.make_vec("worldgym/Tabletop-v0", num_envs=2, task="reach", horizon=4)
    with RecordDataset(envs, tmp_path / "data") as recorded:
        _play(recorded, 5, np.random.default_rng(0))
    episodes = list(EpisodeDataset(tmp_path / "data"))
    assert [e.domain for e in episodes] == ["real", "real"] and {e.task for e in episodes} == {"reach"}
    assert all(e.length == 4 and 0 < e.progress.max() <= 1 for e in episodes)


def test_what_cannot_be_recorded_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="info_frames=True"):
        RecordDataset(gym.make_vec("worldgym/Tabletop-v0", num_envs=1, chunk=5), tmp_path / "a")
    with pytest.raises(ValueError, match="image, state and instruction"):
        RecordDataset(gym.make_vec("CartPole-v1", num_envs=1), tmp_path / "b")
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


@pytest.mark.parametrize("size", [(8, 12), (16, 24)])
def test_a_second_camera_front_is_recorded_beside_the_main_one(tmp_path, size):
    from types import SimpleNamespace

    from worldgym.specs import Camera, ObservationSpec, Specs

    known = Specs(ObservationSpec((Camera("wrist", 8, 12), Camera("front", 6, 6))))
    shapes = {"image": (*size, 3), "image_front": (6, 6, 3), "state": (2,)}
    recorder = RecordDataset.__new__(RecordDataset)
    recorder._names = {"image_front": "front"}
    spaces = {key: SimpleNamespace(shape=shape) for key, shape in shapes.items()}
    made = recorder._recorded_spec(SimpleNamespace(specs=known), spaces)
    main = "wrist" if size == (8, 12) else "main"  # another size than the specs say: the names are made up
    assert made.cameras[0].name == main and [c.size for c in made.cameras] == [size, (6, 6)]
    assert made.cameras[1].name == "front" and made.state_dim == 2
