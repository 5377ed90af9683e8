"""The tabletop: contract with Gymnasium, start states, saving, experts, pictures."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

import worldgym  # noqa: F401  (registers the ids)
from envs.tabletop import SPLITS, TASKS, TabletopEnv, TabletopVectorEnv
from envs.tabletop.collect import BEHAVIOURS, rollout
from envs.tabletop.experts import expert_action
from envs.tabletop.grammar import task_of
from envs.tabletop.scene import COLOURS, Physics
from envs.tabletop.simulation import Simulation
from envs.tabletop.tasks import HELD_OUT_TARGETS, UNSEEN_COLOUR, Scene, draw_scene
from worldgym.data import SplitManifest
from worldgym.text import embed


def _actions(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (n, 4)).astype(np.float32)


@pytest.mark.parametrize("kwargs", [{}, {"domain": "soft", "gap": 0.5}, {"chunk": 3, "task": "reach"}])
def test_check_env_passes_without_warnings(kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(TabletopEnv(**kwargs), skip_render_check=True)


def test_the_id_makes_single_and_vector_environments():
    env = gym.make("worldgym/Tabletop-v0", task="push")
    observation, info = env.reset(seed=0)
    assert env.observation_space.contains(observation) and info["task"] == "push"
    envs = gym.make_vec("worldgym/Tabletop-v0", num_envs=2, task="push")
    assert isinstance(envs.unwrapped, TabletopVectorEnv)
    batch, _ = envs.reset(seed=0)
    np.testing.assert_array_equal(batch["image"][0], observation["image"])


@given(seed=st.integers(0, 2**31 - 1), task=st.sampled_from(TASKS), split=st.sampled_from(SPLITS))
@settings(max_examples=40, deadline=None)
def test_scenes_follow_from_seed_task_and_split_and_obey_the_split(seed, task, split):
    scene = draw_scene(seed, task, split)
    assert scene == draw_scene(seed, task, split) == Scene.from_json(scene.to_json())
    shown = [c for c in scene.colours if c]
    assert len(set(shown)) == len(shown) >= 3
    assert (UNSEEN_COLOUR in shown) == (split == "unseen_object")
    target = (scene.colours[scene.target], scene.name(scene.target).split()[1])
    assert (target in HELD_OUT_TARGETS) == (split == "unseen_combination")
    if task in ("push", "stack"):  # a ball rolls away
        assert target[1] != "ball" and "ball" not in scene.instruction


def test_the_split_manifest_is_the_one_that_the_code_follows():
    manifest = SplitManifest.load(Path(sys.modules["envs.tabletop"].__file__).parent / "manifest.json")
    assert manifest.rules["unseen_colour"] == UNSEEN_COLOUR
    assert {tuple(t) for t in manifest.rules["held_out_targets"]} == set(HELD_OUT_TARGETS)


def test_every_colour_can_be_told_apart_by_eye():
    values = np.array(list(COLOURS.values()))
    distance = np.linalg.norm(values[:, None] - values[None], axis=-1) + np.eye(len(values)) * 9
    assert distance.min() > 0.3


def test_restore_replays_bit_for_bit_in_another_process(tmp_path):
    env = TabletopEnv(task="pick_place", terminate_on_success=False)
    env.reset(seed=5)
    for action in _actions(4):
        env.step(action)
    (tmp_path / "state").write_bytes(env.save_state())
    frames = np.stack([env.step(a)[0]["image"] for a in _actions(5, 1)])
    np.save(tmp_path / "frames.npy", frames)
    code = f"""
import numpy as np
from envs.tabletop import TabletopEnv
env = TabletopEnv(terminate_on_success=False)
env.reset(seed=99, options={{"state": open({str(tmp_path / "state")!r}, "rb").read()}})
actions = np.random.default_rng(1).uniform(-1, 1, (5, 4)).astype(np.float32)
frames = np.stack([env.step(a)[0]["image"] for a in actions])
assert np.array_equal(frames, np.load({str(tmp_path / "frames.npy")!r}))
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(worldgym.__file__).parents[1])


def test_soft_at_gap_zero_is_real_and_grows_apart_from_it():
    last = []
    for kwargs in ({}, {"domain": "soft", "gap": 0.0}, {"domain": "soft", "gap": 1.0}):
        env = TabletopEnv(task="reach", terminate_on_success=False, **kwargs)
        env.reset(seed=3)
        for action in _actions(6):
            observation, *_ = env.step(action)
        last.append(observation["state"])
    np.testing.assert_array_equal(last[0], last[1])
    assert np.abs(last[0] - last[2]).max() > 0.02


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.full(4, np.nan, np.float32), "NaN"),
        (np.full(4, 1.5, np.float32), "outside"),
        (np.zeros(3, np.float32), "shape"),
    ],
)
def test_bad_actions_say_what_is_wrong(bad, words):
    env = TabletopEnv(task="reach")
    env.reset(seed=0)
    with pytest.raises(ValueError, match=words):
        env.step(bad)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"domain": "mars"},
        {"task": "dance"},
        {"split": "x"},
        {"gap": 0.3},
        {"domain": "soft", "gap": 2.0},
        {"render_mode": "ansi"},
    ],
)
def test_bad_settings_are_refused(kwargs):
    with pytest.raises(ValueError, match="expected|known|gap"):
        TabletopEnv(**kwargs)


@pytest.mark.parametrize("task", TASKS)
def test_experts_succeed(task):
    wins = 0
    simulation = Simulation(Physics())
    for seed in range(12):
        scene = draw_scene(7000 + seed, task)
        simulation.load(scene)
        for _ in range(40):
            simulation.step(expert_action(scene, simulation.privileged()))
            if simulation.truth()[0]:
                wins += 1
                break
    assert wins >= 10


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_experts_succeed_in_95_of_100(task):
    simulation = Simulation(Physics())
    wins = 0
    for seed in range(100):
        scene = draw_scene(2000 + seed, task)
        simulation.load(scene)
        for _ in range(40):
            simulation.step(expert_action(scene, simulation.privileged()))
            if simulation.truth()[0]:
                wins += 1
                break
    assert wins >= 95


def test_success_and_near_miss_are_four_pixels_apart():
    """The picture decides: an object at the zone's edge, moved back by a near miss's least distance, moves 4 px."""
    simulation = Simulation(Physics())
    scene = draw_scene(11, "push")
    simulation.load(scene)
    address = simulation._objects[scene.target]

    def draw(x: float, y: float) -> np.ndarray:
        simulation.data.qpos[address : address + 2] = (x, y)
        simulation._refresh()
        return simulation.draw(64).astype(int)

    empty = draw(0.6, -0.9)

    def centre(x: float) -> float:
        shows = np.abs(draw(x, 0.0) - empty).sum(-1)
        return float((shows.sum(0) * np.arange(64)).sum() / shows.sum())

    assert abs(centre(0.16) - centre(0.16 - 0.04)) >= 4


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_behaviours_log_complete_episodes(behaviour):
    env = TabletopEnv(terminate_on_success=False, horizon=12)
    episode = rollout(env, "reach", 3, behaviour, np.random.default_rng(3))
    again = rollout(env, "reach", 3, behaviour, np.random.default_rng(3))
    np.testing.assert_array_equal(episode.actions, again.actions)
    assert len(episode.frames) == len(episode.actions) + 1 == len(episode.success)
    assert episode.provenance["behaviour"] == behaviour


def test_near_misses_fail_more_often_than_the_expert_before_they_try_again():
    env = TabletopEnv(terminate_on_success=False, horizon=10)
    patient = TabletopEnv(terminate_on_success=False, horizon=24)
    missed = [
        rollout(env, "reach", s, "near_miss", np.random.default_rng(s)).success.any() for s in range(10)
    ]
    hit = [rollout(patient, "reach", s, "expert", np.random.default_rng(s)).success.any() for s in range(10)]
    assert sum(hit) >= 9 and sum(missed) <= 5


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_autoreset_modes(mode):
    envs = TabletopVectorEnv(2, task="reach", horizon=3, autoreset_mode=mode)
    first, _ = envs.reset(seed=1)
    still = np.zeros((2, 4), np.float32)
    for _ in range(3):
        observation, _, _, truncated, info = envs.step(still)
    ended = info["final_info"] if mode == "SameStep" else info
    assert truncated.all() and ended["episode_len"].tolist() == [3, 3]
    if mode == "SameStep":
        assert info["_final_obs"].all() and not np.array_equal(
            observation["image"], np.stack([last["image"] for last in info["final_obs"]])
        )
    elif mode == "NextStep":
        _, reward, _, truncated, _ = envs.step(still)
        assert not truncated.any() and not reward.any()
    else:
        with pytest.raises(ValueError, match="reset_mask"):
            envs.step(still)
        envs.reset(options={"reset_mask": np.array([True, True])})
        envs.step(still)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("chunk", [None, 2])
def test_batch_equals_gymnasiums_sync_of_single_environments(mode, chunk):
    """Observations, rewards, ends, final observations and metrics, over episodes that end by horizon and by success."""
    shape = {"task": "reach", "horizon": 6, "chunk": chunk}
    ours = TabletopVectorEnv(2, autoreset_mode=mode, **shape)
    theirs = SyncVectorEnv([lambda: TabletopEnv(**shape)] * 2, autoreset_mode=mode)
    assert ours.observation_space == theirs.observation_space
    assert data_equivalence(ours.reset(seed=3)[0], theirs.reset(seed=3)[0], exact=True)
    rng, ended = np.random.default_rng(0), 0
    for _ in range(9):
        actions = rng.uniform(-1, 1, ours.action_space.shape).astype(np.float32)
        left, right = ours.step(actions), theirs.step(actions)
        for a, b in zip(left[:4], right[:4], strict=True):
            assert data_equivalence(a, b, exact=True)
        over = left[2] | left[3]
        ended += over.sum()
        if not over.any():
            continue
        last, theirs_last = left[4].get("final_info", left[4]), right[4].get("final_info", right[4])
        for key in ("success_once", "success_at_end", "return", "episode_len"):
            assert np.array_equal(last[f"_{key}"], over) and np.array_equal(last[key][over], theirs_last[key][over])
        assert ("final_obs" in left[4]) == (mode is AutoresetMode.SAME_STEP)
        if mode is AutoresetMode.SAME_STEP:
            assert data_equivalence(left[4]["final_obs"], right[4]["final_obs"], exact=True)
            assert np.array_equal(left[4]["_final_obs"], over)
        elif mode is AutoresetMode.DISABLED:
            a = ours.reset(options={"reset_mask": over})[0]
            assert data_equivalence(a, theirs.reset(options={"reset_mask": over.copy()})[0], exact=True)
    assert ended >= 2


def test_the_action_of_a_slot_that_is_about_to_be_reset_is_not_looked_at():
    envs = TabletopVectorEnv(1, horizon=1)
    envs.reset(seed=0)
    assert envs.step(np.zeros((1, 4), np.float32))[3].all()
    assert not envs.step(np.full((1, 4), np.nan, np.float32))[3].any()
    with pytest.raises(ValueError, match="NaN"):
        envs.step(np.full((1, 4), np.nan, np.float32))


def test_instructions_as_numbers_are_the_embedded_words():
    envs = TabletopVectorEnv(2, instruction="embedding")
    observation, info = envs.reset(seed=0)
    assert envs.observation_space.contains(observation)
    assert np.array_equal(observation["instruction"], embed([str(text) for text in info["instruction_text"]]))
    check_env(TabletopEnv(instruction="embedding"), skip_render_check=True)
    with pytest.raises(ValueError, match="'text' or 'embedding'"):
        TabletopVectorEnv(1, instruction="tokens")


def test_starts_do_not_depend_on_the_number_of_slots():
    few, _ = TabletopVectorEnv(1).reset(seed=4)
    many, _ = TabletopVectorEnv(3).reset(seed=4)
    np.testing.assert_array_equal(few["image"][0], many["image"][0])
    assert few["instruction"][0] == many["instruction"][0]


@pytest.mark.parametrize("task", TASKS)
def test_crowded_scenes_find_a_layout(task):
    for seed in range(12):
        scene = draw_scene(5_000_070 + seed, task, "unseen_scene")
        assert sum(place is not None for place in scene.positions) == 4


def test_a_dark_table_stays_in_the_scene_that_has_one():
    """Environments of one process share the compiled model; a later one must not take over the last one's look."""
    first = TabletopEnv()
    before, _ = first.reset(seed=3, options={"task": "push"})
    first.reset(seed=3, options={"task": "push", "split": "unseen_scene"})
    later = TabletopEnv()
    after, _ = later.reset(seed=3, options={"task": "push"})
    assert np.array_equal(before["image"], after["image"])


def test_a_chunk_tells_of_every_step_in_it_and_repeats_the_last_after_an_end():
    by_chunk, by_step = TabletopVectorEnv(2, horizon=60, chunk=5), [TabletopEnv(horizon=60) for _ in range(2)]
    start = {"task": "reach"}
    by_chunk.reset(seed=[40, 41], options=start)
    for i, env in enumerate(by_step):
        env.reset(seed=40 + i, options=start)
    rng, running = np.random.default_rng(1), [True, True]
    for _ in range(12):
        sim = by_step[0].batch.simulation()
        actions = rng.uniform(-1, 1, (2, 5, 4)).astype(np.float32)
        actions[0] = 0
        actions[0, 1] = expert_action(sim.scene, sim.privileged())  # one of the two gets there
        info = by_chunk.step(actions)[4]
        for i, env in enumerate(by_step):
            if not running[i]:
                continue
            for t, action in enumerate(actions[i]):
                seen, _, ended, _, told = env.step(action)
                assert np.array_equal(info["path"][i, t], seen["state"])
                assert info["path_success"][i, t] == told["success"]
                assert info["path_progress"][i, t] == told["progress"] and "path" not in told
                if ended:
                    assert (info["path"][i, t:] == seen["state"]).all() and info["path_success"][i, t:].all()
                    running[i] = False
                    break
    assert running == [False, True]


@given(st.sampled_from(TASKS), st.sampled_from(SPLITS), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_an_instruction_says_which_task_it_is_of(task, split, seed):
    assert task_of(draw_scene(seed, task, split).instruction) == task
    with pytest.raises(ValueError, match="no known task"):
        task_of("dance with the red cube")
