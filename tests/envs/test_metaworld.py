"""Meta-World as a suite: episodes take turns in one simulation, pictures show the goal, experts succeed."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from worldgym.errors import ConfigError
from worldgym.suite import Suite, load_suite

pytest.importorskip("metaworld", reason="the extra metaworld is not installed: pip install 'worldgym[metaworld]'")

from envs.metaworld.physics import Physics  # noqa: E402
from envs.metaworld.tasks import DEFAULT_TASKS, TASKS, UNSEEN_TASKS, task_of  # noqa: E402
from envs.metaworld.vector import MetaWorldEnv, MetaWorldVectorEnv  # noqa: E402
from envs.metaworld.world import shared_world  # noqa: E402
from envs.thin_meshes import thin_meshes  # noqa: E402

SUITE = load_suite("metaworld")


def test_names_and_specs_need_no_simulator():
    code = (
        "import sys; from worldgym.suite import load_suite; s = load_suite('metaworld'); s.specs_for(('wrist',)); "
        "s.manifest(); assert not {'mujoco', 'metaworld'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert isinstance(SUITE, Suite) and set(SUITE.default_tasks) < set(SUITE.tasks)


def test_an_episode_does_not_depend_on_the_other_slots():
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 4, 4)).astype(np.float32)
    envs = MetaWorldVectorEnv(4, cameras=("front", "wrist"))
    first, info = envs.reset(seed=3)
    seen = [first, *(envs.step(action)[0] for action in actions)]
    assert len(set(info["task"])) > 1
    for slot in range(4):
        alone = MetaWorldVectorEnv(1, cameras=("front", "wrist"))
        observation, _ = alone.reset(seed=3 + slot)
        for t, expected in enumerate(seen):
            for key in ("image", "image_wrist", "state"):
                assert np.array_equal(observation[key][0], expected[key][slot]), (slot, t, key)
            if t < len(actions):
                observation, *_ = alone.step(actions[t, slot : slot + 1])


@given(task=st.sampled_from(sorted(TASKS)), seed=st.integers(0, 10**6), steps=st.integers(0, 8))
@settings(max_examples=12, deadline=None)
def test_a_continued_episode_is_bit_identical(task, seed, steps):
    world = shared_world(task, Physics())
    actions = np.random.default_rng(seed).uniform(-1, 1, (steps + 4, 4))
    world.start(seed)
    for action in actions[:steps]:
        world.step(action)
    saved = world.save()

    def rest():
        for action in actions[steps:]:
            world.step(action)
        return world.observation.copy(), world.state(), world.success, world.progress, world.draw("front", (32, 32))

    expected = rest()
    world.start(seed + 1)
    world.load(saved)
    for got, wanted in zip(rest(), expected, strict=True):
        assert np.array_equal(got, wanted)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_the_first_observation_is_of_the_state_in_which_the_episode_begins(task):
    world = shared_world(task, Physics())
    for seed in range(3):
        world.start(seed)
        before = world.distance
        assert not world.success and world.progress == 0
        world.step(np.zeros(4))
        assert abs(world.distance - before) < 0.01 and not world.success


@pytest.mark.parametrize("task", DEFAULT_TASKS)
def test_experts_succeed_and_their_logs_end_after_it(task):
    env = SUITE.make_single(terminate_on_success=False)
    episodes = [SUITE.demonstrate(env, "expert", seed=s, task=task, rng=np.random.default_rng(s)) for s in (1, 2, 3)]
    assert sum(episode.success.any() for episode in episodes) >= 2
    for episode in episodes:
        assert episode.task == task and task_of(episode.instruction) == task
        assert episode.progress[0] < 0.5 and np.abs(episode.actions).max() <= 1
        if episode.success.any():
            assert len(episode.actions) < env.batch.horizon and episode.progress[episode.success].min() == 1


def test_the_goal_is_seen_where_it_would_be_invisible_and_nowhere_else():
    def green(task):
        observation, _ = MetaWorldEnv(task=task, image_size=96).reset(seed=0)
        red, middle, blue = np.moveaxis(observation["image"].astype(int), -1, 0)
        return int(((middle > 150) & (red < 90) & (blue < 90)).sum())

    assert min(green(task) for task in ("reach", "push", "pick_place")) > 10
    assert max(green(task) for task in ("window_open", "button_press_topdown", "plate_slide")) == 0


def test_positions_are_where_the_picture_shows_the_parts():
    env = SUITE.watched(task="push", image_size=96)
    observation, _ = env.reset(seed=4)
    at = dict(zip(SUITE.parts, env.positions[0], strict=True))
    for part, channel in (("goal", 1), ("puck", 2)):
        right, down = at[part].astype(int)
        pixel = observation["image"][down, right].astype(int)
        assert pixel.argmax() == channel and pixel.max() > 1.3 * np.median(pixel), (part, pixel)
    assert np.isfinite(at["hand"]).all() and np.isnan(at["drawer"]).all()
    env.step(np.array([0, 0, 1, -1], np.float32))
    assert env.positions.shape == (2, len(SUITE.parts), 2) and env.positions[1, 0, 1] < env.positions[0, 0, 1]


def test_splits_change_the_sentence_or_the_task_and_not_the_start():
    env = MetaWorldEnv(task="faucet_open")
    seen, _ = env.reset(seed=5)
    other, _ = env.reset(seed=5, options={"split": "unseen_instruction"})
    assert seen["instruction"] in TASKS["faucet_open"].sentences
    assert other["instruction"] == TASKS["faucet_open"].held_out
    assert np.array_equal(seen["image"], other["image"])
    envs = MetaWorldVectorEnv(6, split="unseen_task")
    _, info = envs.reset(seed=0)
    assert set(info["task"]) <= set(UNSEEN_TASKS)


def test_every_sentence_names_one_task():
    sentences = [text for task in TASKS.values() for text in (*task.sentences, task.held_out)]
    assert len(sentences) == len(set(sentences))
    with pytest.raises(ConfigError, match="no task"):
        task_of("make coffee")


def test_any_thread_draws_the_same_picture():
    env = MetaWorldEnv(task="door_open")
    env.reset(seed=1)
    expected = env.batch.draw_slot(0, env.batch.specs.observation.main)
    with ThreadPoolExecutor(2) as pool:
        drawn = list(pool.map(lambda _: env.batch.draw_slot(0, env.batch.specs.observation.main), range(4)))
    assert expected.std() > 10 and all(np.array_equal(picture, expected) for picture in drawn)


def test_copies_and_measurements_leave_an_episode_as_it_was():
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 4)).astype(np.float32)

    def last(disturb):
        env = SUITE.make_single(task="drawer_open", image_size=32)
        env.reset(seed=5)
        for action in actions[:3]:
            env.step(action)
        env = disturb(env)
        for action in actions[3:]:
            observation, *_ = env.step(action)
        return observation

    def measured(env):
        SUITE.measure_gap(0.0, tasks=("drawer_open",), episodes=1, horizon=4)
        return env

    expected = last(lambda env: env)
    for disturb in (measured, copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))):
        found = last(disturb)
        assert np.array_equal(found["state"], expected["state"]) and np.array_equal(found["image"], expected["image"])


def test_positions_are_those_of_the_front_camera_whichever_is_the_main_one():
    def places(cameras):
        env = SUITE.watched(task="push", cameras=cameras)
        env.reset(seed=3)
        return env.positions

    np.testing.assert_array_equal(places(("front", "wrist")), places(("wrist", "front")))


def test_an_unknown_split_of_a_reset_is_refused():
    with pytest.raises(ConfigError, match="unknown split"):
        MetaWorldEnv(task="reach").reset(seed=0, options={"split": "seen_twice"})


def test_gymnasium_accepts_the_environment():
    check_env(MetaWorldEnv(task="reach"), skip_render_check=True)


def test_the_software_simulator_moves_and_looks_otherwise():
    action = np.array([1.0, 0.5, 0, -1], np.float32)

    def after(**where):
        env = MetaWorldEnv(task="reach", **where)
        first, _ = env.reset(seed=2)
        for _ in range(6):
            last, *_ = env.step(action)
        return first["image"].astype(int), last["state"][:3]

    (stock, there), (same, still), (soft, elsewhere) = after(), after(domain="soft"), after(domain="soft", gap=1.0)
    assert np.array_equal(stock, same) and np.array_equal(there, still)
    assert np.abs(stock - soft).mean() > 3 and np.linalg.norm(there - elsewhere) > 0.02


@pytest.mark.parametrize(
    "bad",
    [{"task": "make_coffee"}, {"split": "seen_twice"}, {"domain": "moon"}, {"gap": 0.5}, {"domain": "soft", "gap": 2},
     {"cameras": ("back",)}, {"image_size": 8}],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(bad):
    with pytest.raises(ConfigError):
        MetaWorldVectorEnv(1, **bad)


def test_the_frozen_gap_follows_from_its_measurements_and_the_physics_are_those():
    from envs.metaworld.gap import freeze, frozen, measure_gap

    facts = frozen()
    again = freeze(facts["measured"])
    assert again["gap"] == facts["gap"] == SUITE.frozen_gap() and again["physics_at_gap_1"] == facts["physics_at_gap_1"]
    found = measure_gap(0.0, tasks=("drawer_open",), episodes=2)["tasks"]["drawer_open"]
    assert found["soft"] == found["real"] == found["replay"] == 1


def test_thin_meshes_keep_the_outline():
    world = shared_world("drawer_open", Physics())
    full = int(world.model.mesh_facenum.sum())
    model = copy.deepcopy(world.model)
    assert thin_meshes(model, 0.02) < full / 5
    used = [
        model.mesh_face[a : a + n].max() < v
        for a, n, v in zip(model.mesh_faceadr, model.mesh_facenum, model.mesh_vertnum, strict=True)
        if n
    ]
    assert all(used)
    with pytest.raises(ValueError, match="cell"):
        thin_meshes(model, 0.0)


def test_a_step_as_the_package_draws_it_goes_on_through_resets():
    step = load_suite("metaworld").stock(seed=1)
    assert [step() for _ in range(3)] == [1, 1, 1]
