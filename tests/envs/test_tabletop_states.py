"""The tabletop as vectors: starts, late and noisy sensors, dropout, autoreset, rewards, and bad settings."""

from __future__ import annotations

import numpy as np
import pytest

from envs.tabletop.experts import expert_action
from envs.tabletop.states import DISTANCE, HALF, MIDDLE, TASKS, StateTabletop
from worldgym.errors import ConfigError

STILL = np.array([0, 0, 0, 1], np.float32)


def still(env: StateTabletop) -> np.ndarray:
    return np.tile(STILL, (env.num_envs, 1))


def moves(env: StateTabletop, steps: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng, seen = np.random.default_rng(seed), [env.reset(0)]
    for _ in range(steps):
        seen.append(env.step(rng.uniform(-1, 1, (env.num_envs, 4)))[0])
    return seen


@pytest.mark.parametrize("task", TASKS)
def test_observations_agree_with_the_simulation(task):
    env = StateTabletop(2, task)
    obs = env.reset(3)
    for i, simulation in enumerate(env._simulations):
        truth, scene = simulation.privileged(), simulation.scene
        target = truth.objects[scene.target]
        expected = np.concatenate([(truth.hand - MIDDLE) / HALF, (target - truth.hand) / DISTANCE])
        np.testing.assert_allclose(obs["actor"][i, [0, 1, 2, 4, 5, 6]], expected, atol=1e-6)
        np.testing.assert_allclose(obs["privileged"][i, 4:7], (target - MIDDLE) / HALF, atol=1e-6)
        place = {
            "reach": [0, 0, 0],
            "push": [0, 0, 1 if scene.side == "right" else -1],
            "pick_place": [*((np.array(scene.tray) - truth.hand[:2]) / DISTANCE), 0],
        }[task]
        np.testing.assert_allclose(obs["actor"][i, 7:10], place, atol=1e-6)
        np.testing.assert_allclose(obs["privileged"][i, 10:], place, atol=1e-6)
    assert {name: value.shape[1] for name, value in obs.items()} == env.sizes
    assert all(value.dtype == np.float32 and np.abs(value).max() < 4 for value in obs.values())


def test_the_start_depends_only_on_seed_and_index():
    few, many = StateTabletop(2, horizon=1, noise=0.03), StateTabletop(4, horizon=1, noise=0.03)
    first = many.reset(5)
    np.testing.assert_array_equal(few.reset(5)["actor"], first["actor"][:2])
    second = few.step(still(few))[0]  # every episode has one step
    np.testing.assert_array_equal(second["actor"], first["actor"][2:])
    assert not np.array_equal(few.reset(6)["actor"], first["actor"][:2])


def test_a_seed_repeats_an_episode():
    settings = {"domain": "soft", "randomise": 1.0, "noise": 0.02, "latency": 1, "dropout": 0.3, "horizon": 5}
    env = StateTabletop(2, **settings)
    runs = [moves(env, 8), moves(env, 8), moves(StateTabletop(2, **settings), 8)]
    for other in runs[1:]:
        assert all(np.array_equal(a[k], b[k]) for a, b in zip(runs[0], other, strict=True) for k in a)


def test_sensors_are_late_by_the_latency_and_the_own_action_is_not():
    seen = moves(StateTabletop(2, latency=2), 6)
    for t, obs in enumerate(seen):
        np.testing.assert_array_equal(obs["actor"][:, :4], seen[max(0, t - 2)]["privileged"][:, :4])
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 4))
    np.testing.assert_allclose(seen[1]["actor"][:, 10:], actions, atol=1e-6)


def test_noise_has_its_standard_deviation_in_metres_and_leaves_the_true_state():
    noisy, clean = StateTabletop(64, noise=0.03), StateTabletop(64)
    a, b = noisy.reset(0), clean.reset(0)
    np.testing.assert_array_equal(a["privileged"], b["privileged"])
    error = (a["actor"] - b["actor"])[:, :7] * np.array([*HALF, 0.065, *[DISTANCE] * 3])
    np.testing.assert_allclose(error.std(0), 0.03, rtol=0.3)
    np.testing.assert_array_equal(a["actor"][:, 7:], b["actor"][:, 7:])


def test_the_side_of_a_push_is_known():
    obs = StateTabletop(8, "push", noise=0.1).reset(0)
    assert set(np.abs(obs["actor"][:, 9])) == {1.0} and not obs["actor"][:, 7:9].any()


def test_dropout_repeats_the_last_reading():
    env = StateTabletop(4, noise=0.01, dropout=0.5, horizon=30)
    seen = [obs["actor"][:, :10] for obs in moves(env, 20)]
    repeats = np.mean([(a == b).all(1) for a, b in zip(seen[:-1], seen[1:], strict=True)])
    assert 0.3 < repeats < 0.7


def test_a_time_limit_ends_an_episode_and_the_next_one_starts():
    env = StateTabletop(2, horizon=3)
    env.reset(0)
    for t in range(1, 4):
        obs, reward, done, info = env.step(still(env))
        assert done.tolist() == [t == 3] * 2 and not info["terminated"].any() and not info["success"].any()
        assert np.array_equal(info["final"]["actor"], obs["actor"]) == (t < 3)
    assert reward.dtype == np.float32
    assert obs["actor"][:, 10:].tolist() == [[0.0] * 4] * 2
    assert not env.step(still(env))[2].any()


def test_rewards_add_up_to_the_progress_plus_one_at_success():
    env = StateTabletop(1)
    env.reset(0)
    simulation = env._simulations[0]
    total, begin = 0.0, simulation.truth()[1]
    for _ in range(40):
        _, reward, done, info = env.step(expert_action(simulation.scene, simulation.privileged())[None])
        total += float(reward[0])
        if done[0]:
            break
    assert info["terminated"][0] and info["success"][0]
    assert total == pytest.approx(1.0 - begin + 1.0, abs=1e-5)


def test_randomised_physics_differ_between_environments_and_not_in_real():
    soft = StateTabletop(3, domain="soft", randomise=1.0)
    soft.reset(0)
    gains = [simulation.physics.gain for simulation in soft._simulations]
    assert len(set(gains)) == 3
    soft.reset(1)
    assert gains != [simulation.physics.gain for simulation in soft._simulations]
    assert StateTabletop(1, gap=0.5).physics.gain == 1.0 and StateTabletop(1, domain="soft").physics.gain < 1.0


@pytest.mark.parametrize(
    "bad",
    [
        {"task": "stack"}, {"domain": "sim"}, {"num_envs": 0}, {"latency": -1}, {"horizon": 1.5}, {"noise": -0.1},
        {"noise": float("nan")}, {"dropout": 1.0}, {"gap": 2, "domain": "soft"}, {"randomise": -1},
    ],
)  # fmt: skip
def test_bad_settings_are_refused(bad):
    with pytest.raises(ConfigError, match="got|unknown"):
        StateTabletop(**{"num_envs": 1, **bad})


def test_bad_calls_are_refused():
    env = StateTabletop(2)
    with pytest.raises(ConfigError, match=r"reset\(seed=0\)"):
        env.step(still(env))
    with pytest.raises(ConfigError, match="seed"):
        env.reset(-1)
    env.reset(0)
    for wrong in (np.zeros((1, 4)), np.full((2, 4), np.nan)):
        with pytest.raises(ConfigError, match="finite"):
            env.step(wrong)
