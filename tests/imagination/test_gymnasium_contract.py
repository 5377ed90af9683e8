"""The environments obey Gymnasium: checker, spaces, ids, autoreset modes, wrappers, seeds."""

from __future__ import annotations

import json
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from fakes import DotJudge, DotWorldModel, make_starts
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from hypothesis import given, settings
from hypothesis import strategies as st

from worldgym.imagination import ArrayStarts, WorldModelEnv, WorldModelVectorEnv

MODES = list(AutoresetMode)


def policy(num_envs: int, steps: int, chunk: int | None = None) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    shape = (steps, num_envs, 4) if chunk is None else (steps, num_envs, chunk, 4)
    actions = rng.uniform(-1, 1, shape).astype(np.float32)
    actions[..., 0] = np.where(np.arange(num_envs).reshape(-1, *[1] * (len(shape) - 3)) % 2, 0.8, -0.8)
    return list(actions)


def single(mode_settings: dict) -> WorldModelEnv:
    return WorldModelEnv(
        DotWorldModel(0.01), DotJudge(), make_starts(), success_threshold=0.9, **mode_settings
    )


@pytest.mark.parametrize("options", [{}, {"chunk": 5}, {"reward_kind": "difference"}, {"reward": None}])
def test_check_env_passes_without_a_warning(registered, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(registered, render_mode="rgb_array", **options)
        check_env(env.unwrapped)


def data_equivalence(a, b, exact=True):
    """As Gymnasium's, with NaN equal to NaN, rows that a mask leaves out aside, and any scalar type of a column."""
    if isinstance(a, dict):
        masks = {key: a.get(f"_{key}", slice(None)) for key in a}
        return a.keys() == b.keys() and all(
            data_equivalence(a[key][mask], b[key][mask])
            if isinstance(a[key], np.ndarray)
            else data_equivalence(a[key], b[key])
            for key, mask in masks.items()
        )
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(data_equivalence, a, b))
    if isinstance(a, np.ndarray) and a.dtype == object:
        return a.shape == b.shape and all(map(data_equivalence, a.tolist(), b.tolist()))
    if isinstance(a, np.ndarray):
        return np.array_equal(a, np.asarray(b, a.dtype), equal_nan=a.dtype.kind == "f")
    return a == b or (a != a and b != b)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "shape",
    [{"judge_every": 2}, {"chunk": 5, "judge_every": 5}, {"reward_kind": "difference", "judge_every": 3}],
)
def test_batch_equals_gymnasiums_sync_of_single_environments(mode, shape):
    """Everything, infos and masks included, for 30 steps that hold successes, truncations and resets."""
    horizon = 10
    ours = WorldModelVectorEnv(
        DotWorldModel(0.01), DotJudge(), make_starts(), num_envs=4, success_threshold=0.9, horizon=horizon,
        autoreset_mode=mode, **shape,
    )  # fmt: skip
    theirs = SyncVectorEnv([lambda: single({"horizon": horizon, **shape})] * 4, autoreset_mode=mode)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    for a, b in zip(ours.reset(seed=7), theirs.reset(seed=7), strict=True):
        assert data_equivalence(a, b, exact=True)
    ended = 0
    for actions in policy(4, 30, shape.get("chunk")):
        left, right = ours.step(actions), theirs.step(actions)
        for a, b in zip(left, right, strict=True):
            assert data_equivalence(a, b, exact=True), (a, b)
        over = left[2] | left[3]
        ended += over.sum()
        if mode is AutoresetMode.DISABLED and over.any():
            a = ours.reset(options={"reset_mask": over})
            b = theirs.reset(options={"reset_mask": over.copy()})
            assert data_equivalence(a[0], b[0], exact=True) and data_equivalence(a[1], b[1], exact=True)
    assert ended >= 6


def test_next_step_ignores_the_action_of_the_reset_step(make_vec):
    envs = make_vec(num_envs=2, horizon=4, reward=None)
    envs.reset(seed=0)
    for _ in range(4):
        _, _, _, truncated, info = envs.step(np.zeros((2, 4), np.float32))
    assert truncated.all() and info["episode_len"].tolist() == [4, 4]
    _, reward, terminated, truncated, info = envs.step(np.full((2, 4), np.nan, np.float32))
    assert not (terminated | truncated).any() and (reward == 0).all() and "final_obs" not in info
    assert info["episode_len"].tolist() == [0, 0]


def test_same_step_hands_over_the_final_observation(make_vec):
    envs = make_vec(num_envs=2, horizon=3, reward=None, autoreset_mode="SameStep")
    envs.reset(seed=0)
    for _ in range(3):
        obs, _, _, truncated, info = envs.step(np.tile(np.array([1, 0, 0, 0], np.float32), (2, 1)))
    assert truncated.all() and info["_final_obs"].all() and info["_final_info"].all()
    assert set(info["final_obs"][0]) == {"image", "state", "instruction"}
    assert not np.array_equal(info["final_obs"][0]["image"], obs["image"][0])
    assert info["final_info"]["episode_len"].tolist() == [3, 3]


def test_disabled_refuses_to_step_an_ended_episode_and_resets_only_the_masked(make_vec):
    envs = make_vec(num_envs=2, horizon=2, reward=None, autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=0)
    still = np.zeros((2, 4), np.float32)
    envs.step(still)
    before, *_ = envs.step(still)
    with pytest.raises(AssertionError, match="reset_mask"):
        envs.step(still)
    mask = np.array([False, True])
    options = {"reset_mask": mask}
    after, info = envs.reset(options=options)
    assert options == {"reset_mask": mask}  # RecordEpisodeStatistics reads it after us
    assert np.array_equal(before["image"][0], after["image"][0])
    assert info["_instruction_text"].tolist() == [False, True]


@pytest.mark.parametrize("mask", [np.zeros(2, bool), np.ones(3, bool), np.ones(2), [True, False]])
def test_a_wrong_reset_mask_is_explained(make_vec, mask):
    envs = make_vec(num_envs=2)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="expected a bool array of shape"):
        envs.reset(options={"reset_mask": mask})


@given(seed=st.integers(0, 2**31), num_envs=st.integers(2, 5), slot=st.integers(0, 4))
@settings(max_examples=10, deadline=None)
def test_a_slot_does_not_depend_on_how_many_there_are(seed, num_envs, slot):
    slot = slot % num_envs
    many = WorldModelVectorEnv(DotWorldModel(0.02), DotJudge(), make_starts(), num_envs=num_envs, horizon=4)
    one = WorldModelVectorEnv(DotWorldModel(0.02), DotJudge(), make_starts(), num_envs=1, horizon=4)
    many.reset(seed=seed)
    one.reset(seed=seed + slot)
    for actions in policy(num_envs, 9):
        a, b = many.step(actions), one.step(actions[slot : slot + 1])
        assert np.array_equal(a[0]["image"][slot], b[0]["image"][0])
        assert a[0]["instruction"][slot] == b[0]["instruction"][0]
        assert a[1][slot] == b[1][0]


def test_same_seed_same_frames_other_seed_other_frames(make_vec):
    envs, frames = make_vec(), []
    for seed in (1, 1, 2, [1, 2, 3]):
        envs.reset(seed=seed)
        frames.append(np.stack([envs.step(a)[0]["image"] for a in policy(3, 4)]))
    assert np.array_equal(frames[0], frames[1]) and not np.array_equal(frames[0], frames[2])
    assert np.array_equal(frames[0], frames[3])


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_record_episode_statistics_agrees_with_our_own_metrics(make_vec, mode):
    envs = RecordEpisodeStatistics(make_vec(num_envs=4, horizon=10, judge_every=2, autoreset_mode=mode))
    envs.reset(seed=0)
    seen, first = 0, np.ones(4, bool)
    for actions in policy(4, 40):
        *_, info = envs.step(actions)
        if "episode" in info:
            mine = info if mode is AutoresetMode.NEXT_STEP else info["final_info"]
            over = info["_episode"]
            assert mine["_return"][over].all()
            # under SAME_STEP Gymnasium 1.2's wrapper drops the first step of every later episode: compare
            # the first
            compared = over & first if mode is AutoresetMode.SAME_STEP else over
            assert np.allclose(mine["return"][compared], info["episode"]["r"][compared])
            assert np.array_equal(mine["episode_len"][compared], info["episode"]["l"][compared])
            seen += over.sum()
            first &= ~over
    assert seen > 8 and not first.any()


def test_ids_make_the_batched_class_and_serialise(registered):
    envs = gym.make_vec(registered, num_envs=3, horizon=20, chunk=5)
    assert isinstance(envs.unwrapped, WorldModelVectorEnv) and envs.num_envs == 3
    spec = gym.make(registered, horizon=20, chunk=5).spec
    assert json.loads(spec.to_json())["kwargs"] == {"horizon": 20, "chunk": 5}
    again = gym.make(gym.envs.registration.EnvSpec.from_json(spec.to_json()))
    assert again.unwrapped.batch.horizon == 20 and again.action_space.shape == (5, 4)
    sync = gym.make_vec(registered, num_envs=3, vectorization_mode="sync", horizon=20, chunk=5)
    left, right = envs.reset(seed=5)[0], sync.reset(seed=5)[0]
    assert np.array_equal(left["image"], right["image"]) and left["instruction"] == right["instruction"]


def test_spaces_equal_the_tabletops():
    tabletop = pytest.importorskip("envs.tabletop.vector")
    from envs.tabletop.specs import STATE_HIGH, STATE_LOW

    env = WorldModelEnv(DotWorldModel(), state_low=STATE_LOW, state_high=STATE_HIGH)
    assert env.observation_space == tabletop.observation_space(64)


def test_observations_stay_in_their_space_when_the_dream_leaves_it(make_one):
    env = make_one(state_low=-0.01, state_high=0.01)
    obs, _ = env.reset(seed=0)
    assert obs in env.observation_space and env.step(np.ones(4, np.float32))[0] in env.observation_space


def test_rendering(make_vec, make_one):
    assert make_vec().render() is None
    env = make_one(render_mode="rgb_array", chunk=5)
    obs, _ = env.reset(seed=0)
    assert np.array_equal(env.render(), obs["image"]) and env.metadata["render_fps"] == 1.0
    with pytest.raises(ValueError, match="expected None or 'rgb_array'"):
        make_one(render_mode="human")


def test_observations_handed_out_do_not_change_later(make_vec):
    envs = make_vec(num_envs=2, horizon=2)
    obs, _ = envs.reset(seed=0)
    kept = obs["image"].copy()
    obs2, *_ = envs.step(np.ones((2, 4), np.float32))
    kept2 = obs2["image"].copy()
    obs["image"][:] = 0
    for _ in range(3):
        envs.step(np.ones((2, 4), np.float32))
    assert np.array_equal(obs2["image"], kept2) and not np.array_equal(kept, kept2)


@pytest.mark.parametrize("workers", ["sync", "async"])
def test_gymnasiums_own_vectors_of_the_single_environment_show_the_same_frames(registered, workers):
    settings = {"horizon": 4, "chunk": 2}
    ours = gym.make_vec(registered, num_envs=2, **settings)
    options = (
        {"context": "spawn", "shared_memory": False} if workers == "async" else None
    )  # a forked torch may wait for ever on its threads
    theirs = gym.make_vec(
        "fakes:" + registered, num_envs=2, vectorization_mode=workers, vector_kwargs=options, **settings
    )
    for observation in (ours.reset(seed=5)[0], theirs.reset(seed=5)[0]):
        assert observation["image"].shape == (2, 64, 64, 3)
    try:
        for action in policy(2, 7, chunk=2):
            left, right = ours.step(action), theirs.step(action)
            for key in ("image", "state"):
                np.testing.assert_array_equal(left[0][key], right[0][key])
            for ours_part, their_part in zip(left[1:4], right[1:4], strict=True):
                np.testing.assert_array_equal(ours_part, their_part)
    finally:
        ours.close()
        theirs.close()


def _frames_of(path) -> int:
    import imageio.v3 as video

    return len(video.imread(path))


def test_recordvideo_films_single_and_batched_episodes(tmp_path, make_one, make_vec):
    pytest.importorskip("moviepy", reason="Gymnasium's RecordVideo writes with moviepy")
    from gymnasium.wrappers import RecordVideo
    from gymnasium.wrappers.vector import RecordVideo as RecordVectorVideo

    env = RecordVideo(
        make_one(render_mode="rgb_array", horizon=6),
        str(tmp_path / "one"),
        episode_trigger=lambda number: True,
    )
    env.reset(seed=0)
    for _ in range(6):
        env.step(np.zeros(4, np.float32))
    env.close()
    (film,) = (tmp_path / "one").glob("*.mp4")
    assert _frames_of(film) == 7  # the start and six steps

    envs = RecordVectorVideo(
        make_vec(num_envs=2, render_mode="rgb_array", horizon=6),
        str(tmp_path / "two"),
        episode_trigger=lambda number: True,
    )
    envs.reset(seed=0)
    for _ in range(6):
        envs.step(np.zeros((2, 4), np.float32))
    envs.close()
    films = list((tmp_path / "two").glob("*.mp4"))
    assert films and all(_frames_of(film) >= 6 for film in films)


@pytest.mark.parametrize("env_id", ["worldgym/ImaginedTabletop-v0", "worldgym/Tabletop-v0"])
def test_asynchronous_workers_refuse_to_lose_the_instruction(env_id):
    with pytest.raises(ValueError, match="shared_memory=False"):
        gym.make_vec(env_id, num_envs=2, vectorization_mode="async")


def test_both_tabletops_flatten_alike():
    """A policy that reads flat vectors reads the same numbers in both."""
    imagined, real = (gym.make(f"worldgym/{name}-v0") for name in ("ImaginedTabletop", "Tabletop"))
    assert (
        list(imagined.observation_space) == list(real.observation_space) == ["image", "instruction", "state"]
    )
    observation, _ = real.reset(seed=0)
    assert list(observation) == list(imagined.reset(seed=0)[0]) == list(real.observation_space)
    left, right = (gym.spaces.flatten(env.observation_space, observation) for env in (imagined, real))
    assert np.array_equal(left, right)
    vectors = [gym.make_vec(f"worldgym/{name}-v0", num_envs=2) for name in ("ImaginedTabletop", "Tabletop")]
    assert [list(v.reset(seed=0)[0]) for v in vectors] == [["image", "instruction", "state"]] * 2


@pytest.mark.parametrize("env_id", ["worldgym/ImaginedTabletop-v0", "worldgym/Tabletop-v0"])
@pytest.mark.parametrize("options", [{}, {"chunk": 5, "instruction": "embedding"}])
def test_info_has_one_schema_from_the_reset_on(env_id, options):
    env = gym.make(env_id, horizon=10, **options)
    observation, first = env.reset(seed=0)
    assert not set(observation) & set(first) and isinstance(first["instruction_text"], str)
    kinds = {key: (type(value), np.shape(value)) for key, value in first.items()}
    over = False
    while not over:
        _, _, terminated, truncated, info = env.step(np.zeros(env.action_space.shape, np.float32))
        assert {key: (type(value), np.shape(value)) for key, value in info.items()} == kinds
        over = terminated or truncated
    assert info["episode_len"] == 10 and first["episode_len"] == 0
    envs = gym.make_vec(env_id, num_envs=2, horizon=10, **options)
    _, first = envs.reset(seed=0)
    info = envs.step(np.zeros(envs.action_space.shape, np.float32))[-1]
    assert {k: (v.dtype, v.shape) for k, v in first.items()} == {
        k: (v.dtype, v.shape) for k, v in info.items()
    }


@pytest.mark.parametrize("env_id", ["worldgym/ImaginedTabletop-v0", "worldgym/Tabletop-v0"])
def test_the_limit_of_steps_is_a_setting_and_is_said(env_id):
    assert gym.make(env_id).spec.max_episode_steps == 40
    assert gym.make(env_id, chunk=5).spec.max_episode_steps == 8
    assert gym.make(env_id, horizon=10).spec.max_episode_steps == 10
    env = gym.wrappers.TimeAwareObservation(gym.make(env_id, horizon=4), flatten=False)
    assert env.reset(seed=0)[0]["time"].shape == (1,)
    envs = gym.make_vec(env_id, num_envs=2, max_episode_steps=4)
    assert envs.spec.max_episode_steps == 4
    envs.reset(seed=0)
    for _ in range(4):
        *_, truncated, info = envs.step(np.zeros((2, 4), np.float32))
    assert truncated.all() and info["episode_len"].tolist() == [4, 4]
    with pytest.raises(ValueError, match="differ; give one of them"):
        gym.make_vec(env_id, num_envs=2, max_episode_steps=4, horizon=5)


@pytest.mark.parametrize("env_id", ["worldgym/ImaginedTabletop-v0", "worldgym/Tabletop-v0"])
def test_the_frame_rate_of_chunks_keeps_the_speed_of_a_video(env_id):
    env = gym.make(env_id, chunk=5, render_mode="rgb_array")
    assert env.metadata["render_fps"] == 1.0
    env.close()


@pytest.mark.parametrize(
    "env_id", ["worldgym/ImaginedTabletop-v0", "worldgym/Tabletop-v0", "worldgym/Imagined-v0"]
)
def test_gymnasiums_own_rendering_wrappers_apply(env_id):
    settings = {} if "Tabletop" in env_id else {"world_model": "tabletop-small", "starts": "tabletop-small"}
    env = gym.make(env_id, render_mode="rgb_array_list", **settings)
    env.reset(seed=0)
    env.step(np.zeros(4, np.float32))
    frames = env.render()
    assert len(frames) == 2 and frames[0].ndim == 3


def test_actions_that_require_a_gradient_are_taken():
    for env_id in ("worldgym/ImaginedTabletop-v0", "worldgym/Tabletop-v0"):
        env = gym.make(env_id).unwrapped
        env.reset(seed=0)
        env.step(torch.zeros(4, requires_grad=True))


def test_a_start_set_of_others_gives_its_alphabet_length_and_bounds():
    long = "Pick up the cube (red) and place it in box #2; then stop. " * 4
    words = [long, "\u628a\u7ea2\u8272\u65b9\u5757\u653e\u8fdb\u76d2\u5b50", "a_b: c"]
    states = np.array([[1.90, 3.49, -0.93, -94.0]] * 3, np.float32)
    images = make_starts(3).images
    env = WorldModelEnv(DotWorldModel(), DotJudge(), ArrayStarts(images, words, states))
    space = env.observation_space
    for seed in range(6):
        observation, _ = env.reset(seed=seed)
        assert observation["instruction"] in words and space.contains(observation)
        np.testing.assert_array_equal(observation["state"], states[0])  # nothing is cut
    with pytest.raises(ValueError, match="instructions="):
        env.reset(options={"instruction": "\u00e9"})
    open_env = WorldModelEnv(DotWorldModel(), DotJudge(), ArrayStarts(images, words), instructions=["\u00e9"])
    assert open_env.reset(options={"instruction": "\u00e9"})[0]["instruction"] == "\u00e9"
