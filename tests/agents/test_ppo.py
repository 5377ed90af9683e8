"""PPO on states: advantages, masks at the ends of episodes, seeds, and learning on a point that moves to a goal."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.algorithms.ppo import PPO, PPOConfig, Sequences, advantages, tensors
from agents.policies.denoising import DenoisingActorCritic, DenoisingConfig, StateActorCritic
from worldgym.errors import ConfigError, DivergedError

CONFIG = DenoisingConfig(actor=2, privileged=2, action=1, hidden=16, latent=8, width=32)
SMALL = PPOConfig(horizon=8, epochs=2, minibatches=2)


class Point:
    """N points on a line that succeed near their goal; `step` writes into the same arrays every time."""

    sizes = {"actor": 2, "privileged": 2}
    action_dim = 1

    def __init__(self, num_envs: int = 16, horizon: int = 12, bad_reward: float = 0.0) -> None:
        self.num_envs, self.horizon, self.bad_reward = num_envs, horizon, bad_reward
        self._obs = {name: np.zeros((num_envs, 2), np.float32) for name in self.sizes}

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        self._rng = np.random.default_rng(seed)
        self._x = self._rng.uniform(-1, 1, (self.num_envs, 2))
        self._t = np.zeros(self.num_envs, int)
        return self._observe()

    def _observe(self) -> dict[str, np.ndarray]:
        for value in self._obs.values():
            value[:] = self._x
        return self._obs

    def step(self, actions: np.ndarray) -> tuple:
        before = np.abs(self._x[:, 0] - self._x[:, 1])
        self._x[:, 0] += 0.2 * np.clip(actions[:, 0], -1, 1)
        now = np.abs(self._x[:, 0] - self._x[:, 1])
        self._t += 1
        success = now < 0.1
        done = success | (self._t >= self.horizon)
        final = {name: value.copy() for name, value in self._observe().items()}
        reward = before - now + success + self.bad_reward
        self._x[done] = self._rng.uniform(-1, 1, (int(done.sum()), 2))
        self._t[done] = 0
        return self._observe(), reward, done, {"terminated": success, "final": final, "success": success}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recurrent(seed: int = 0) -> DenoisingActorCritic:
    return DenoisingActorCritic(CONFIG, seed)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_advantages_equal_a_direct_sum():
    g, lam, generator = 0.9, 0.8, torch.Generator().manual_seed(0)
    T, B = 7, 3
    reward, value, after = torch.randn(3, T, B, generator=generator)
    done = torch.rand(T, B, generator=generator) < 0.4
    terminated = done & (torch.rand(T, B, generator=generator) < 0.5)
    got = advantages(reward, value, after, done, terminated, g, lam)
    assert terminated.any() and (done & ~terminated).any()
    for b in range(B):
        for t in range(T):
            total, k = 0.0, t
            while k < T:
                future = 0.0 if terminated[k, b] else g * float(after[k, b])
                total += (g * lam) ** (k - t) * (float(reward[k, b]) + future - float(value[k, b]))
                if done[k, b]:
                    break
                k += 1
            assert float(got[t, b]) == pytest.approx(total, abs=1e-5)


def test_one_step_advantages_are_temporal_differences_and_a_time_limit_bootstraps():
    one = torch.ones(1, 2)
    done, terminated = torch.tensor([[True, True]]), torch.tensor([[False, True]])
    got = advantages(one, 0 * one, 10 * one, done, terminated, 0.5, 0.0)
    assert got.tolist() == [[6.0, 1.0]]


def test_learns_to_move_to_the_goal():
    policy = StateActorCritic(CONFIG, "actor")
    rates: list[float] = []
    PPO(policy, PPOConfig(horizon=16, lr=3e-3)).train(Point(32), 8_000, lambda row: rates.append(row["success"]))
    assert rates[0] < 0.5 and np.mean(rates[-3:]) > 0.85


def test_two_calls_equal_one_and_a_seed_repeats():
    per_update = 16 * SMALL.horizon
    one, two, other = recurrent(), recurrent(), recurrent()
    PPO(one, SMALL).train(Point(), 4 * per_update)
    split, env = PPO(two, SMALL), Point()
    split.train(env, 2 * per_update)
    last = split.train(env, per_update + 1)  # rounded up to whole updates
    assert last["steps"] == 4 * per_update
    assert same(one, two)
    PPO(other, replace(SMALL, seed=1)).train(Point(), 4 * per_update)
    assert not same(one, other)


def test_evaluate_repeats_the_log_probabilities_of_a_rollout_across_ends_of_episodes():
    policy, env = recurrent(), Point(horizon=3)
    trainer = PPO(policy, SMALL)
    trainer.train(env, 1)  # so that the next rollout begins within episodes
    batch, data, _ = trainer._collect(env, torch.Generator().manual_seed(0))
    assert batch.start.any() and not batch.start.all() and batch.hidden.abs().sum() > 0
    now = policy.evaluate(batch)
    torch.testing.assert_close(now.log_prob, data["log_prob"])
    torch.testing.assert_close(now.value, data["value"])
    rows = torch.tensor([3, 1])
    torch.testing.assert_close(policy.evaluate(batch.rows(rows)).log_prob, data["log_prob"][:, rows])


def test_values_after_an_end_are_those_of_the_final_observation():
    policy, env = recurrent(), Point(4, horizon=2)
    trainer = PPO(policy, replace(SMALL, horizon=2))
    trainer.train(env, 1)
    _, data, _ = trainer._collect(env, torch.Generator().manual_seed(0))
    ended = data["done"][0]
    assert torch.equal(data["after"][0][~ended], data["value"][1][~ended])
    assert not torch.equal(data["after"][1], policy.value(trainer._obs, trainer._hidden))


def test_the_learning_rate_follows_the_divergence():
    trainer = PPO(recurrent(), PPOConfig(lr=1e-3, kl=0.01))
    trainer._adapt(0.03)
    assert trainer.lr == pytest.approx(1e-3 / 1.5)
    trainer._adapt(0.001)
    assert trainer.lr == pytest.approx(1e-3)
    fixed = PPO(recurrent(), PPOConfig(lr=1e-3, kl=0.0))
    fixed._adapt(9.0)
    assert fixed.lr == 1e-3


def test_a_reward_that_is_not_finite_raises_before_any_step():
    policy = recurrent()
    before = copy.deepcopy(policy)
    with pytest.raises(DivergedError, match="reward of a rollout"):
        PPO(policy, SMALL).train(Point(bad_reward=float("nan")), 1)
    assert same(policy, before)


def test_weights_that_are_not_finite_raise():
    policy = recurrent()
    with torch.no_grad():
        policy.latent.bias[0] = float("nan")
    with pytest.raises(DivergedError, match="actions"):
        PPO(policy, SMALL).train(Point(), 1)


@pytest.mark.parametrize(
    "bad", [{"horizon": 0}, {"gamma": 1.1}, {"gae": -0.1}, {"lr": 0.0}, {"clip": float("nan")}, {"entropy": -1}]
)
def test_config_errors_say_what_to_type(bad):
    with pytest.raises(ConfigError, match=r"got .*Try PPOConfig"):
        PPOConfig(**bad)


def test_too_few_environments_or_steps():
    with pytest.raises(ConfigError, match=r"PPOConfig\(minibatches=1\)"):
        PPO(recurrent(), SMALL).train(Point(1), 1)
    with pytest.raises(ConfigError, match="steps must be at least 1"):
        PPO(recurrent(), SMALL).train(Point(), 0)


def test_observations_are_copied():
    array = np.zeros((2, 2), np.float32)
    seen = tensors({"actor": array, "privileged": array})
    array += 1
    assert seen["actor"].sum() == 0 and isinstance(Sequences(*[seen["actor"]] * 5), Sequences)
