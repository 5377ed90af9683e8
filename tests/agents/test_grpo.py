from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from line_world import BrightJudge, LineWorld, starts, tiny_policy

from agents import GRPO, FilteredBC, FilteredBCConfig, GRPOConfig, collect
from agents.algorithms.grpo import clipped_objective, group_advantages


def rollouts(policy, seed=0, count=4, group=8, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    return collect(
        LineWorld(),
        BrightJudge(),
        policy,
        starts(count),
        group_size=group,
        horizon=10,
        generator=generator,
        **kwargs,
    )


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 1.0]), min_size=8, max_size=8),
    st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_advantages_are_normalised_over_the_valid_members(reward, valid):
    r, v = torch.tensor(reward), torch.tensor(valid)
    advantages, keep = group_advantages(r, torch.zeros(8, dtype=torch.int64), v)
    mixed = len(set(r[v].tolist())) == 2
    assert bool(keep.any()) == mixed and not bool((keep & ~v).any())
    assert bool((advantages[~keep] == 0).all())
    if mixed:
        assert abs(float(advantages[keep].mean())) < 1e-5
        assert abs(float(advantages[keep].std()) - 1) < 1e-3
        assert bool((advantages[keep & (r > 0)] > 0).all())


def test_groups_do_not_mix():
    reward = torch.tensor([1.0, 0.0, 1.0, 1.0])
    advantages, keep = group_advantages(reward, torch.tensor([0, 0, 1, 1]), torch.ones(4, dtype=torch.bool))
    assert keep.tolist() == [True, True, False, False] and advantages[2:].tolist() == [0, 0]


def test_an_invalid_judgement_is_not_a_failure():
    reward = torch.tensor([1.0, 1.0, 1.0, 0.0])
    _, keep = group_advantages(
        reward, torch.zeros(4, dtype=torch.int64), torch.tensor([True, True, True, False])
    )
    assert not bool(keep.any())  # without the invalid one all rewards are equal: no advantage


def test_the_clip_binds_outside_its_bounds_and_only_there():
    log_ratio = torch.log(torch.tensor([0.5, 0.9, 1.0, 1.2, 1.5])).view(5, 1, 1).requires_grad_()
    for sign, binding in (
        (1.0, [False, False, False, False, True]),
        (-1.0, [True, False, False, False, False]),
    ):
        loss, binds = clipped_objective(log_ratio, torch.full((5,), sign), 0.2, 0.28)
        (gradient,) = torch.autograd.grad(loss.sum(), log_ratio)
        assert binds.flatten().bool().tolist() == binding
        assert [g == 0 for g in gradient.flatten().tolist()] == binding


def test_the_second_update_clips_when_steps_are_large():
    policy = tiny_policy()
    batch = rollouts(policy)
    scalars = GRPO(GRPOConfig(lr=3e-3, updates=2, epochs=3)).update(policy, batch)
    assert scalars["clip_fraction"] > 0 and scalars["approx_kl"] > 0 and scalars["ratio_max"] > 1.28


def test_equal_groups_change_nothing():
    policy = tiny_policy()
    batch = rollouts(policy)
    batch.reward[:] = 1.0
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    scalars = GRPO().update(policy, batch)
    assert scalars["groups_kept"] == 0
    assert all(torch.equal(before[k], v) for k, v in policy.state_dict().items())


def test_chunks_after_success_carry_no_gradient():
    policies = [tiny_policy(), tiny_policy()]
    batches = [rollouts(policies[0]), rollouts(policies[0])]
    after = ~batches[1].mask
    assert bool(after.any())
    tokens = batches[1].trace["tokens"]
    batches[1].trace["tokens"] = torch.where(
        after[..., None, None], torch.randint(0, 2, tokens.shape), tokens
    )
    batches[1].images[after] = 77
    for policy, batch in zip(policies, batches, strict=True):
        GRPO().update(policy, batch)
    for a, b in zip(policies[0].parameters(), policies[1].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("average", ["token", "trajectory"])
def test_it_learns_a_task_it_can_compute(average):
    torch.manual_seed(0)
    policy = tiny_policy()
    grpo = GRPO(GRPOConfig(lr=1e-3, average=average))
    rates = []
    for iteration in range(12):
        batch = rollouts(policy, seed=iteration, count=6)
        rates.append(batch.success_rate())
        scalars = grpo.update(policy, batch)
    final = rollouts(policy, seed=99, count=12).success_rate()
    assert rates[0] < 0.5 and final > 0.8, (rates, final)
    assert np.isfinite(list(scalars.values())).all()


def test_filtered_cloning_learns_it_too_and_ignores_failures():
    policy = tiny_policy()
    trainer = FilteredBC(FilteredBCConfig(lr=1e-3, epochs=2))
    first = rollouts(policy)
    for iteration in range(10):
        trainer.update(policy, rollouts(policy, seed=iteration, count=6))
    assert rollouts(policy, seed=99, count=12).success_rate() > first.success_rate() + 0.2
    first.reward[:] = 0
    assert trainer.update(policy, first)["steps"] == 0


def test_a_resumed_run_equals_an_unbroken_one(tmp_path):
    batches = [rollouts(tiny_policy(), seed=s) for s in range(2)]
    whole, unbroken = tiny_policy(), GRPO()
    for batch in batches:
        unbroken.update(whole, batch)
    first, before = tiny_policy(), GRPO()
    before.update(first, batches[0])
    before.save(first, tmp_path / "g", {"seen": 1})
    again, after = tiny_policy(seed=7), GRPO()
    assert after.load(again, tmp_path / "g") == {"seen": 1}
    after.update(again, batches[1])
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_cloning_term_needs_demonstrations():
    with pytest.raises(ValueError, match="needs demonstrations"):
        GRPO(GRPOConfig(bc_coef=0.1))


@pytest.mark.parametrize("bad", [{"lr": 0}, {"clip_low": 1.2}, {"updates": 0}, {"average": "median"}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError):
        GRPOConfig(**bad)
