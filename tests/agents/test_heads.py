"""Action heads: `evaluate` reproduces log-probabilities; supervised training and GRPO work with every head."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from line_world import BrightJudge, LineWorld, observation, starts, tiny_policy

from agents import (
    GRPO,
    SFT,
    FilteredBC,
    FilteredBCConfig,
    GRPOConfig,
    SFTConfig,
    VLAPolicy,
    VLAPolicyConfig,
    collect,
)
from agents.data.demonstrations import ChunkDataset
from agents.policies.heads import FlowHead, L1Head, make_head
from worldgym.errors import ConfigError
from worldgym.protocols import TrainablePolicy

HEAD = pytest.mark.parametrize("head", ("bins", "autoregressive", "l1", "flow"))
WIDTH, K, A = 16, 3, 4


def head_of(name, **more):
    torch.manual_seed(0)
    made = make_head(name, width=WIDTH, chunk=K, action_dim=A, n_bins=7, binary_dims=(3,), settings=more)
    for parameter in made.parameters():  # heads predict zero for every input at initialisation
        parameter.data += 0.3 * torch.randn_like(parameter) * parameter.requires_grad
    return made


def policy_with(head, **more):
    return tiny_policy(goal_dims=0, head=head, **more)


@HEAD
@settings(max_examples=10, deadline=None)
@given(temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]), seed=st.integers(0, 1000), batch=st.integers(1, 4))
def test_a_head_scores_its_own_samples_as_it_said(head, temperature, seed, batch):
    made, features = (
        head_of(head),
        torch.randn(batch, K, WIDTH, generator=torch.Generator().manual_seed(seed)),
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        actions, said, trace = made.sample(features, temperature, generator)
        again, entropy = made.evaluate(features, trace, torch.full((batch,), temperature))
    assert actions.shape == (batch, K, A) and float(actions.abs().max()) <= 1
    assert said.shape == again.shape == entropy.shape and bool(torch.isfinite(entropy).all())
    assert torch.allclose(said, again, atol=1e-5)
    assert all(len(value) == batch for value in trace.values())
    repeated = made.sample(features, temperature, torch.Generator().manual_seed(seed))[0]
    assert torch.equal(actions, repeated)


@HEAD
def test_each_row_has_its_own_temperature(head):
    made, features = head_of(head), torch.randn(2, K, WIDTH)
    with torch.no_grad():
        rows = [made.sample(features[i : i + 1], heat, None) for i, heat in enumerate((0.5, 2.0))]
        trace = {name: torch.cat([row[2][name] for row in rows]) for name in rows[0][2]}
        again, _ = made.evaluate(features, trace, torch.tensor([0.5, 2.0]))
    assert torch.allclose(again, torch.cat([row[1] for row in rows]), atol=1e-5)


def test_a_laplace_distribution_is_sampled_as_its_density_says():
    head, features = L1Head(WIDTH, 1, scale=0.1), torch.zeros(20_000, 1, WIDTH)
    with torch.no_grad():
        _, log_prob, trace = head.sample(features, 1.0, torch.Generator().manual_seed(0))
    drawn = trace["drawn"].flatten()
    assert abs(float(drawn.abs().mean()) - 0.1) < 0.005 and abs(float(drawn.mean())) < 0.005
    assert abs(float(log_prob.mean()) + 1 + math.log(0.2)) < 0.02, "the mean log-probability is minus the entropy"


def test_the_stochastic_flow_has_the_marginals_of_the_deterministic_one():
    """Flow-GRPO, equation 8: adding noise with the drift correction leaves the sampled distribution unchanged."""
    torch.manual_seed(0)
    exact = FlowHead(WIDTH, 1, 1, steps=60, noise=1.0)
    mean, spread = 0.4, 0.1  # Gaussian data, for which the velocity is known

    def velocity(features, x, t):
        t = t.view(-1, 1, 1)
        variance = (1 - t) ** 2 * spread**2 + t**2
        clean = mean + (1 - t) * spread**2 / variance * (x - (1 - t) * mean)
        return ((x - (1 - t) * clean) / t.clamp(min=1e-6)) - clean

    exact.velocity = velocity
    with torch.no_grad():
        drawn = exact.sample(torch.zeros(20_000, 1, WIDTH), 1.0, torch.Generator().manual_seed(0))[2]["path"][
            :, -1
        ]
    assert abs(float(drawn.mean()) - mean) < 0.02 and abs(float(drawn.std()) - spread) < 0.06
    greedy = exact.sample(torch.zeros(1, 1, WIDTH), 0.0, None)[0]
    assert abs(float(greedy) - mean) < 0.02


def demos(count=48):
    """Demonstrations that move right if the image is dark, left if it is bright."""
    rng = np.random.default_rng(0)
    bright = np.arange(count) % 2 == 0
    images = rng.integers(0, 40, (count, 16, 16, 3)).astype(np.uint8)
    images[bright] += 200
    actions = np.zeros((count, 5, 4), np.float32)
    actions[..., 0] = np.where(bright, -0.8, 0.8)[:, None]
    actions[..., 3] = np.where(bright, -1.0, 1.0)[:, None]
    actions[0, 3:] = np.nan  # unknown continuation
    states, goals = np.zeros((count, 4), np.float32), np.full((count, 4), np.nan, np.float32)
    return ChunkDataset(images, states, ["go"] * count, actions, np.arange(count), goals), bright


@HEAD
def test_every_head_learns_from_demonstrations(head, tmp_path):
    data, bright = demos()
    policy = policy_with(head)
    assert isinstance(policy, TrainablePolicy)
    fitted = SFT(SFTConfig(epochs=30, batch_size=16, lr=2e-3, patience=0)).fit(policy, data)
    assert fitted["frames"] > 0 and np.isfinite(fitted["best_val_loss"])
    seen = data.batch(np.arange(len(data)))[0]
    moves = policy.act(seen, temperature=0.0).actions[:, :, 0].mean(1).numpy()
    assert moves[bright].max() < -0.3 < 0.3 < moves[~bright].min()
    policy.save_pretrained(tmp_path / "policy")
    again = VLAPolicy.from_pretrained(tmp_path / "policy")
    assert torch.equal(again.act(seen, temperature=0.0).actions, policy.act(seen, temperature=0.0).actions)
    assert again.config.head == head


def attempts(policy, seed, count=6):
    return collect(
        LineWorld(), BrightJudge(), policy, starts(count), group_size=8, horizon=10,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


@HEAD
def test_grpo_improves_every_head_from_true_reward(head):
    """With known dynamics and the true reward, the policy learns to move right."""
    more = {"l1": {"scale": 0.6}, "flow": {"steps": 4, "noise": 0.7}}.get(head, {})
    policy = policy_with(head, head_settings=more)
    grpo = GRPO(GRPOConfig(lr=1e-3))
    before = np.mean([attempts(policy, 900 + i).success_rate() for i in range(2)])
    for iteration in range(16):
        batch = attempts(policy, iteration)
        scalars = grpo.update(policy, batch)
    assert set(batch.log_probs) == {"action"} and np.isfinite(list(scalars.values())).all()
    after = np.mean([attempts(policy, 990 + i).success_rate() for i in range(2)])
    assert after > before + 0.25, (before, after)


@HEAD
def test_filtered_cloning_improves_every_head(head):
    policy = policy_with(head, head_settings={"l1": {"scale": 0.6}}.get(head, {}))
    trainer, before = (
        FilteredBC(FilteredBCConfig(lr=1e-3, epochs=2)),
        attempts(policy, 900, 12).success_rate(),
    )
    for iteration in range(10):
        trainer.update(policy, attempts(policy, iteration))
    assert attempts(policy, 990, 12).success_rate() > before + 0.15


@HEAD
def test_a_head_goes_with_a_goal(head):
    policy, seen = tiny_policy(head=head), observation(3)
    out = policy.act(seen, temperature={"goal": 0.7, "action": 1.2})
    assert set(out.log_probs) == {"action", "goal"} == set(policy.components)
    assert torch.allclose(policy.log_prob_of(seen, out), out.log_prob, atol=1e-4)
    assert (
        policy.features(seen, 0).shape
        == policy.features(seen).shape
        == (3, 3 + policy.chunk, policy.config.width)
    )


def test_unknown_heads_and_settings_are_refused():
    with pytest.raises(ConfigError, match="'bin' .did you mean 'bins'.*autoregressive, bins, flow, l1"):
        VLAPolicyConfig.preset("tiny", head="bin")
    with pytest.raises(ConfigError, match="head 'l1' does not accept these settings"):
        head_of("l1", steps=3)
    with pytest.raises(ConfigError, match="expected steps >= 1"):
        head_of("flow", steps=0)
    with pytest.raises(ConfigError, match="try 0.2"):
        head_of("l1", scale=0.0)
    with pytest.raises(ConfigError, match="unknown components \\['token'\\] of temperature"):
        policy_with("l1").act(observation(1), temperature={"token": 1.0})
