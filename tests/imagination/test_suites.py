"""A suite needs to say how a slot starts, steps, stands and looks; the rest is the batched environment's."""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_suite import (
    JOINTS,
    SPECS,
    JointsEnv,
    JointsSuite,
    JointsVectorEnv,
    JointsWorldModel,
    NoJudge,
    picture,
    starts,
)  # fmt: skip

import worldgym  # noqa: F401
from agents.rollouts.imagined import StartBank, Starts, collect
from agents.rollouts.simulated import SimulatorCollector
from envs.tabletop.suite import TabletopSuite
from experiments.suites import domain_settings, evaluation_pool, known_tasks
from worldgym.data import EpisodeDataset
from worldgym.errors import CheckpointError, ConfigError
from worldgym.evaluation import make_starts
from worldgym.imagination import ArrayStarts, WorldModelEnv, WorldModelVectorEnv
from worldgym.imagination.adapters.recording import RecordDataset
from worldgym.imagination.registry import make_imagined
from worldgym.protocols import PolicyOutput
from worldgym.registry import SUITES
from worldgym.suite import Suite, default_suite, extra, load_suite

KEYS = ["image", "image_wrist", "instruction", "state"]


@pytest.fixture
def joints(monkeypatch):
    monkeypatch.setitem(SUITES._known, "joints", JointsSuite)
    return load_suite("joints")


# -- the batched environment -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "options", [{}, {"chunk": 3}, {"instruction": "embedding", "terminate_on_success": False}]
)
def test_a_made_up_suite_passes_gymnasiums_checker_without_a_warning(options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(JointsEnv(render_mode="rgb_array", **options), skip_render_check=True)
    env = JointsEnv(render_mode="rgb_array", **options)
    observation, _ = env.reset(seed=0)
    assert np.array_equal(env.render(), observation["image"])


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("chunk", [None, 2])
def test_the_batch_equals_gymnasiums_sync_of_single_environments(mode, chunk):
    shape = {"horizon": 6, "chunk": chunk, "task": "fold"}
    ours = JointsVectorEnv(3, autoreset_mode=mode, **shape)
    theirs = SyncVectorEnv([lambda: JointsEnv(**shape)] * 3, autoreset_mode=mode)
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    assert data_equivalence(ours.reset(seed=3)[0], theirs.reset(seed=3)[0], exact=True)
    rng, ended = np.random.default_rng(0), 0
    for _ in range(14):
        actions = rng.uniform(-1, 0.2, ours.action_space.shape).astype(np.float32)
        left, right = ours.step(actions), theirs.step(actions)
        for a, b in zip(left[:4], right[:4], strict=True):
            assert data_equivalence(a, b, exact=True)
        over = left[2] | left[3]
        ended += over.sum()
        for key in ("success_once", "return", "episode_len", "task"):
            assert np.array_equal(left[4][f"_{key}"], right[4][f"_{key}"])
            mask = left[4][f"_{key}"]
            assert left[4][key][mask].tolist() == right[4][key][mask].tolist()
        if over.any() and mode is AutoresetMode.DISABLED:
            a, b = (envs.reset(options={"reset_mask": over.copy()})[0] for envs in (ours, theirs))
            assert data_equivalence(a, b, exact=True)
        if over.any() and mode is AutoresetMode.SAME_STEP:
            assert data_equivalence(left[4]["final_obs"], right[4]["final_obs"], exact=True)
    assert ended >= 6


@given(seed=st.integers(0, 2**31), num_envs=st.integers(1, 5), slot=st.integers(0, 4))
@settings(max_examples=15, deadline=None)
def test_slot_i_of_seed_s_depends_on_their_sum_alone(seed, num_envs, slot):
    slot %= num_envs
    many, one = JointsVectorEnv(num_envs, horizon=3), JointsEnv(horizon=3)
    a, b = many.reset(seed=seed)[0], one.reset(seed=seed + slot)[0]
    assert list(a) == list(b) == KEYS
    for key in KEYS:
        assert np.array_equal(a[key][slot], b[key])


def test_a_chunk_tells_of_every_frame_and_a_reset_of_the_start():
    envs = JointsVectorEnv(
        2, horizon=4, chunk=4, task="fold", terminate_on_success=False, autoreset_mode="SameStep"
    )
    first, info = envs.reset(seed=0)
    assert np.array_equal(info["path"], np.repeat(first["state"][:, None], 4, 1))
    observation, _, _, truncated, info = envs.step(np.full((2, 4, JOINTS), -0.5, np.float32))
    assert truncated.all() and envs.interactions == 8
    path = info["final_info"]["path"]
    assert np.allclose(path[:, -1], first["state"] - 0.4, atol=1e-6) and np.allclose(
        path[:, 0], first["state"] - 0.1
    )
    assert np.array_equal(info["path"][:, 0], observation["state"])  # of the episodes that have begun


def test_mistakes_are_explained():
    envs = JointsVectorEnv(2)
    with pytest.raises(RuntimeError, match="before reset"):
        envs.step(np.zeros((2, JOINTS)))
    with pytest.raises(
        ValueError, match="unknown reset options .*known: task, split, instruction, reset_mask"
    ):
        envs.reset(options={"tusk": 1})
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="expected a bool array"):
        envs.reset(options={"reset_mask": np.ones(3, bool)})
    with pytest.raises(ValueError, match="2 seeds|3 seeds"):
        envs.reset(seed=[1, 2, 3])


# -- the suite ---------------------------------------------------------------------------------------------------------
def test_suites_are_found_by_name_and_say_what_they_lack(joints, monkeypatch):
    assert isinstance(joints, Suite) and isinstance(TabletopSuite(), Suite)
    assert load_suite().name == default_suite() == "tabletop"
    assert {"tabletop", "joints"} <= {*SUITES.names()}
    with pytest.raises(ConfigError, match="unknown suite type 'tabeltop' .did you mean 'tabletop'"):
        load_suite("tabeltop")
    with pytest.raises(ConfigError, match="suite joints has no scripted expert"):
        extra(joints, "expert_action", "scripted expert")
    with pytest.raises(ConfigError, match="no domain 'soft'; its domains are real"):
        domain_settings(joints, "soft")
    with pytest.raises(ConfigError, match="no gap between"):
        domain_settings(joints, "real", 0.5)
    with pytest.raises(ConfigError, match="unknown task 'push'; the tasks are fold, stretch"):
        known_tasks(joints, ("push",))
    monkeypatch.setitem(SUITES._known, "half", type("Half", (), {"name": "half"}))
    with pytest.raises(ConfigError, match="without tasks, default_tasks"):
        load_suite("half")


class Still:
    chunk = 2

    def act(self, observation, *, temperature=1.0, generator=None):
        assert observation["image_wrist"].shape[1:] == (12, 16, 3)
        count = len(observation["instruction"])
        actions = torch.zeros(count, 2, JOINTS)
        return PolicyOutput(actions, torch.zeros(count, 2))


def test_evaluation_and_simulator_rollouts_show_every_camera(joints):
    with evaluation_pool(joints, workers=0, horizon=4, chunk=2) as pool:
        result = pool.evaluate(Still(), make_starts(("fold",), 3))
    assert result.steps.tolist() == [4, 4, 4]
    with SimulatorCollector("joints", processes=0) as simulator:
        rollouts = simulator.collect(Still(), [1, 2], ["fold", "stretch"], group_size=2, horizon=4)
    assert rollouts.views["wrist"].shape == (4, 2, 12, 16, 3) and rollouts.frames_used == 16
    seen = rollouts.observation(torch.tensor([0, 3]), torch.tensor([1, 1]))
    assert torch.equal(seen["image_wrist"], rollouts.views["wrist"][[0, 3], 1])
    assert rollouts.other_instructions is None


def test_simulator_rollouts_have_the_other_instructions_that_their_suite_knows(joints, monkeypatch):
    asked = lambda self, *, task, seed, split: (f"{task} {seed} {split}",)  # noqa: E731
    monkeypatch.setattr(JointsSuite, "other_instructions", asked, raising=False)
    with SimulatorCollector("joints", processes=0) as simulator:
        rollouts = simulator.collect(Still(), [1, 2], ["fold", "stretch"], group_size=2, horizon=4)
    assert rollouts.other_instructions == 2 * [("fold 1 seen",)] + 2 * [("stretch 2 seen",)]


# -- imagination with two cameras --------------------------------------------------------------------------------------
def imagined(**more):
    return WorldModelVectorEnv(
        JointsWorldModel(), NoJudge(), starts(), state_low=-2.0, state_high=2.0, **more
    )


def test_an_imagined_environment_of_two_cameras_passes_the_checker():
    env = WorldModelEnv(JointsWorldModel(), NoJudge(), starts(), state_low=-2.0, state_high=2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=True)
    assert list(env.observation_space) == KEYS
    assert env.observation_space["image_wrist"].shape == (12, 16, 3)
    assert env.observation_space == JointsVectorEnv().single_observation_space


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_every_camera_shows_the_state_in_all_autoreset_modes(mode):
    envs = imagined(num_envs=3, horizon=4, chunk=2, autoreset_mode=mode, info_frames=True)
    seen, info = envs.reset(seed=0)
    assert envs.world_model.given == [{"wrist": (3, 1, 12, 16, 3)}]
    assert info["frames_wrist"].shape == (3, 2, 12, 16, 3)
    rng, resets = np.random.default_rng(0), 0
    for _ in range(8):
        seen, _, _, truncated, info = envs.step(rng.uniform(-1, 1, (3, 2, JOINTS)).astype(np.float32))
        assert info["frames_wrist"].shape == (3, 2, 12, 16, 3) and info["frames"].shape == (3, 2, 20, 32, 3)
        if truncated.any() and mode is AutoresetMode.DISABLED:
            seen, _ = envs.reset(options={"reset_mask": np.array([True, False, True])})
            envs.reset(options={"reset_mask": truncated})
            resets += 1
            continue
        resets += int(truncated.any())
        for i, q in enumerate(seen["state"]):
            for camera, key in zip(SPECS.observation.cameras, ("image", "image_wrist"), strict=True):
                assert np.array_equal(seen[key][i], picture(q, camera))
    assert resets >= 2
    saved, forked = envs.save_state(), envs.fork([2, 0])
    assert np.array_equal(forked._observation()["image_wrist"], envs._observation()["image_wrist"][[2, 0]])
    before = envs._observation()["image_wrist"]
    envs.reset(seed=9)
    envs.restore_state(saved)
    assert np.array_equal(envs._observation()["image_wrist"], before)


def test_a_picture_of_each_camera_is_asked_for_by_name():
    env = WorldModelEnv(JointsWorldModel(), None)
    front, wrist = (picture(np.zeros(JOINTS), camera) for camera in SPECS.observation.cameras)
    told = {"instruction": "fold the arm", "state": [0.0] * JOINTS}
    seen, _ = env.reset(options={"initial_image": {"front": front, "wrist": wrist}, **told})
    assert np.array_equal(seen["image_wrist"], wrist)
    for image, message in (
        (front, "no picture of camera wrist"),
        ({"wrist": wrist}, "no picture of camera front"),
        ({"front": front, "wrist": wrist, "ceiling": wrist}, "an unknown camera ceiling"),
        (
            {"front": front, "wrist": front},
            r"initial_image of camera wrist has shape \(20, 32, 3\); expected \(12, 16, 3\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            env.reset(options={"initial_image": image, **told})
    blind = ArrayStarts(front[None], ["fold the arm"], np.zeros((1, JOINTS), np.float32))
    with pytest.raises(ValueError, match="no frames of camera wrist"):
        WorldModelEnv(JointsWorldModel(), None, blind).reset(seed=0)


def test_starts_of_several_cameras_survive_the_disk_and_feed_imagined_rollouts(tmp_path):
    starts().save(tmp_path / "starts.npz")
    again = ArrayStarts.load(tmp_path / "starts.npz")
    assert np.array_equal(again.views["wrist"], starts().views["wrist"]) and again.tasks == starts().tasks
    bank = StartBank(Starts.of(again, ("fold",)))
    chosen = bank.sample(2, np.random.default_rng(0))
    assert chosen.start_set().views["wrist"].shape == (2, 12, 16, 3) and set(chosen.tasks) == {"fold"}
    rollouts = collect(JointsWorldModel(), NoJudge(), Still(), chosen, group_size=2, horizon=4)
    assert torch.equal(rollouts.views["wrist"][::2, 0], chosen.views["wrist"])
    lacking = Starts(chosen.images, chosen.states, chosen.instructions, chosen.tasks, chosen.steps)
    with pytest.raises(ValueError, match="no frames of camera wrist"):
        collect(JointsWorldModel(), NoJudge(), Still(), lacking, group_size=2, horizon=4)
    with pytest.raises(ConfigError, match="no start of push; there are starts of fold, stretch"):
        Starts.of(again, ("push",))


# -- checkpoints -------------------------------------------------------------------------------------------------------
def test_any_checkpoint_folder_is_an_environment():
    ours, old = (
        gym.make("worldgym/Imagined-v0", checkpoint="tabletop-small", horizon=10),
        gym.make("worldgym/ImaginedTabletop-v0", horizon=10),
    )
    assert ours.observation_space == old.observation_space
    assert ours.spec.kwargs == {"checkpoint": "tabletop-small", "horizon": 10}
    a, b = ours.reset(seed=4)[0], old.reset(seed=4)[0]
    assert np.array_equal(a["image"], b["image"]) and a["instruction"] == b["instruction"]
    step = [env.step(np.full(4, 0.3, np.float32)) for env in (ours, old)]
    assert np.array_equal(step[0][0]["image"], step[1][0]["image"])
    assert (
        gym.make("worldgym/Imagined-v0", checkpoint="tabletop-small", reward=None).unwrapped.batch.reward
        is None
    )


def test_an_incomplete_checkpoint_says_what_is_missing(tmp_path):
    with pytest.raises(CheckpointError, match="has no world_model"):
        make_imagined(checkpoint=tmp_path)


# -- the tabletop's wrist ----------------------------------------------------------------------------------------------
def test_the_tabletop_has_a_wrist_camera_that_moves_with_the_hand():
    suite = load_suite("tabletop")
    env = suite.make_single(cameras=("front", "wrist"), image_size=(48, 64), horizon=5)
    plain = suite.make_single(horizon=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=True)
    assert env.batch.specs == suite.specs_for(("front", "wrist"), (48, 64))
    seen, _ = env.reset(seed=3)
    other, _ = plain.reset(seed=3)
    assert list(seen) == KEYS and list(other) == ["image", "instruction", "state"]
    assert seen["image"].shape == (48, 64, 3) and seen["image_wrist"].shape == (48, 64, 3)
    moved = [env.step(np.array([1, 0, 0, 1], np.float32))[0]["image_wrist"] for _ in range(2)]
    assert not np.array_equal(moved[0], moved[1])
    for wrong in (("ceiling",), "front", ()):
        with pytest.raises(ConfigError, match="expected some of front, wrist"):
            suite.make(cameras=wrong)
    with pytest.raises(ConfigError, match="image_size must be in 16..256"):
        suite.make(image_size=(8, 64))


def test_the_wrist_can_be_recorded():
    suite = load_suite("tabletop")
    env = suite.make_single(cameras=("front", "wrist"), wrist_size=64, horizon=6, terminate_on_success=False)
    more = {"seed": 3, "task": "reach", "rng": np.random.default_rng(3)}
    episode = suite.demonstrate(env, "noisy", **more)
    assert episode.views["wrist"].shape == episode.frames.shape
    alone = suite.make_single(horizon=6, terminate_on_success=False)
    same = suite.demonstrate(alone, "noisy", **{**more, "rng": np.random.default_rng(3)})
    assert np.array_equal(same.frames, episode.frames) and not same.views


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_a_recorder_keeps_every_camera(tmp_path, mode):
    envs = load_suite("tabletop").make(
        2, cameras=("front", "wrist"), wrist_size=64, horizon=3, autoreset_mode=mode
    )
    wanted = []
    with RecordDataset(envs, tmp_path / "data") as recorded:
        seen, _ = recorded.reset(seed=0)
        wanted.append(seen["image_wrist"][0])
        for _ in range(3):
            seen, _, _, _, info = recorded.step(np.full((2, 4), 0.5, np.float32))
            wanted.append(
                (info["final_obs"][0] if "final_obs" in info else {"image_wrist": seen["image_wrist"][0]})[
                    "image_wrist"
                ]
            )
    episode = EpisodeDataset(tmp_path / "data")[0]
    assert np.array_equal(episode.views["wrist"], np.stack(wanted))


def test_a_world_model_that_forgets_a_camera_is_named():
    class Forgetful(JointsWorldModel):
        def step(self, state, actions, *, decode="all"):
            state, imagined = super().step(state, actions, decode=decode)
            imagined.views = {}
            return state, imagined

    envs = WorldModelVectorEnv(Forgetful(), None, starts())
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="Forgetful.step returned no frames of camera wrist"):
        envs.step(np.zeros((1, JOINTS), np.float32))
