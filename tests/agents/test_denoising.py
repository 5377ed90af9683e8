"""DWL's loss and its controls, the recurrent state at the ends of episodes, distillation, and the pipeline."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.algorithms.distil import DistilConfig, distil
from agents.algorithms.ppo import PPOConfig, Sequences
from agents.policies.denoising import (
    DenoisingActorCritic,
    DenoisingConfig,
    StateActorCritic,
    denoising_loss,
)
from envs.tabletop.states import StateTabletop
from experiments.pipelines.dwl import ARMS, DWLSettings, first_episodes, run_arm
from worldgym.errors import ConfigError

CONFIG = DenoisingConfig(actor=5, privileged=7, action=2, hidden=16, latent=8, width=24)
T, B = 6, 3
ARM_VALUES = ("privileged", "own", None)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def arm(reconstruct: str | None, seed: int = 0) -> DenoisingActorCritic:
    return DenoisingActorCritic(replace(CONFIG, reconstruct=reconstruct), seed)


def batch(start: list[int] = (), seed: int = 0) -> Sequences:
    g = torch.Generator().manual_seed(seed)
    starts = torch.zeros(T, B, dtype=torch.bool)
    for t in start:
        starts[t] = True
    return Sequences(
        torch.randn(T, B, 5, generator=g), torch.randn(T, B, 7, generator=g), torch.randn(T, B, 2, generator=g),
        starts, torch.randn(B, 16, generator=g),
    )  # fmt: skip


def test_the_loss_is_the_mean_norm_plus_the_mean_absolute_latent():
    predicted = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    z = torch.tensor([[1.0, -2.0, 0.0], [0.0, 0.0, 3.0]])
    loss, error = denoising_loss(predicted, torch.zeros(2, 2), z, sparsity=0.5)
    assert float(error) == pytest.approx((5 + 0) / 2)
    assert float(loss) == pytest.approx(2.5 + 0.5 * 6 / 6)


@pytest.mark.parametrize("reconstruct", ["privileged", "own"])
def test_the_policy_adds_the_weighted_loss_of_its_target(reconstruct):
    policy = DenoisingActorCritic(replace(CONFIG, reconstruct=reconstruct, denoise=3.0, sparsity=0.1))
    data = batch()
    z = policy.sequence_features(data)
    target = data.privileged if reconstruct == "privileged" else data.actor
    with torch.no_grad():
        expected = (policy.decoder(z) - target).square().sum(-1).sqrt().mean() + 0.1 * z.abs().mean()
        got = policy.evaluate(data)
    assert float(got.auxiliary) == pytest.approx(3 * float(expected), rel=1e-5)
    assert got.scalars["reconstruction"] == pytest.approx(float(expected - 0.1 * z.detach().abs().mean()), rel=1e-4)


def test_arms_differ_only_in_the_loss():
    policies, data = [arm(value) for value in ARM_VALUES], batch([2])
    results = [policy.evaluate(data) for policy in policies]
    for policy, result in zip(policies[1:], results[1:], strict=True):
        for name, weight in policy.named_parameters():
            assert name.startswith("decoder") or torch.equal(weight, policies[0].get_parameter(name))
        for part in ("log_prob", "entropy", "value"):
            assert torch.equal(getattr(result, part), getattr(results[0], part))
    assert results[2].auxiliary.item() == 0 and policies[2].decoder is None
    assert len({result.auxiliary.item() for result in results}) == 3


def test_neither_the_decoder_nor_the_true_state_reaches_the_actor():
    policy, data = arm("privileged"), batch()
    obs = {"actor": data.actor[0], "privileged": data.privileged[0]}
    before = policy.act(obs, data.hidden, True)
    grads = torch.autograd.grad(
        policy.evaluate(data).log_prob.sum(), list(policy.decoder.parameters()), allow_unused=True
    )
    assert all(g is None for g in grads)
    with torch.no_grad():
        for weight in policy.decoder.parameters():
            weight += 1
    after = policy.act({**obs, "privileged": obs["privileged"] + 1}, data.hidden, True)
    assert torch.equal(before.action, after.action) and torch.equal(before.hidden, after.hidden)
    assert not torch.equal(before.value, after.value)
    blind = policy.act({"actor": obs["actor"]}, data.hidden, True)
    assert torch.equal(blind.action, before.action) and blind.value.tolist() == [0.0] * B


def test_the_denoising_loss_trains_the_encoder_but_not_the_actor():
    policy = arm("privileged")
    policy.evaluate(batch()).auxiliary.backward()
    assert float(policy.encoder.weight_ih.grad.abs().sum()) > 0
    assert all(p.grad is None for part in (policy.actor, policy.critic) for p in part.parameters())


def test_the_hidden_state_is_reset_where_an_episode_starts():
    policy, data = arm("privileged"), batch([3])
    whole = policy.sequence_features(data)
    late = Sequences(*(x[3:] for x in (data.actor, data.privileged, data.action, data.start)), policy.initial(B))
    torch.testing.assert_close(whole[3:], policy.sequence_features(late))
    unmasked = policy.sequence_features(replace(data, start=torch.zeros_like(data.start)))
    torch.testing.assert_close(whole[:3], unmasked[:3])
    assert not torch.allclose(whole[3:], unmasked[3:])


def test_act_samples_from_the_generator():
    policy, data = arm(None), batch()
    obs = {"actor": data.actor[0], "privileged": data.privileged[0]}
    draw = lambda seed: policy.act(obs, data.hidden, False, torch.Generator().manual_seed(seed)).action  # noqa: E731
    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))


@pytest.mark.parametrize("bad", [{"reconstruct": "other"}, {"latent": 0}, {"sparsity": -1.0}])
def test_config_errors_say_what_to_type(bad):
    with pytest.raises(ConfigError, match=r"got .*Try"):
        replace(CONFIG, **bad)


def test_the_student_copies_the_teacher():
    env = StateTabletop(8, horizon=10)
    config = DenoisingConfig(**env.sizes, hidden=32, latent=16, width=32, reconstruct=None)
    teacher, student = StateActorCritic(config, seed=1), DenoisingActorCritic(config)
    with torch.no_grad():
        teacher.actor[-1].weight *= 30
    before = copy.deepcopy(teacher.state_dict())
    rows: list[dict[str, float]] = []
    settings = DistilConfig(horizon=10, minibatches=2, teacher_rounds=2, memory=2, lr=5e-3, epochs=3)
    distil(teacher, student, env, 640, settings, rows.append)
    assert [row["teacher"] for row in rows[:3]] == [1.0, 0.5, 0.0]
    assert rows[-1]["loss"] < 0.4 * rows[0]["loss"] and rows[-1]["steps"] == 640
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_distil_refuses_a_recurrent_teacher_and_too_few_environments():
    env = StateTabletop(2)
    policy = DenoisingActorCritic(DenoisingConfig(**env.sizes))
    with pytest.raises(ConfigError, match="recurrent"):
        distil(policy, policy, env, 10, DistilConfig(minibatches=2))
    with pytest.raises(ConfigError, match=r"DistilConfig\(minibatches=2\)"):
        distil(policy, policy, env, 10)
    with pytest.raises(ConfigError, match=r"got 0.*Try"):
        DistilConfig(memory=0)


SETTINGS = DWLSettings(
    num_envs=4, episodes=3, horizon=6, ppo=PPOConfig(horizon=4, epochs=1), distil=DistilConfig(horizon=4, epochs=1)
)


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_runs(name):
    row = run_arm(name, 0, 0.03, 32, SETTINGS, levels=(0.0, 0.03))
    assert list(row["real"]) == ["0", "0.03"] and len(row["real"]["0"]["success"]) == 3
    assert row["rate"] == np.mean(row["real"]["0"]["success"]) and row["soft"][-1]["steps"] == 32


def test_a_seed_repeats_a_run():
    rows = [run_arm("teacher_student", seed, 0.03, 32, SETTINGS) for seed in (0, 0)]
    assert rows[0]["real"] == rows[1]["real"]


def test_unknown_arms_and_seeds_of_the_measurement_are_refused():
    with pytest.raises(ConfigError, match="unknown arm 'x'.*teacher_student"):
        run_arm("x", 0, 0.0, 1)
    with pytest.raises(ConfigError, match="seed must lie in"):
        run_arm("dwl", 900, 0.0, 1)


def test_first_episodes_counts_only_the_first():
    env = StateTabletop(3, horizon=4)
    policy = DenoisingActorCritic(DenoisingConfig(**env.sizes))
    success, length = first_episodes(policy, env, 0)
    assert success.shape == (3,) and np.all(length <= 4)
    with pytest.raises(ConfigError, match="have not ended after 2 steps"):
        first_episodes(policy, env, 0, limit=2)
