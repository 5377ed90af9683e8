from __future__ import annotations

import numpy as np
import pytest
import torch
from line_world import BrightJudge, LineWorld, observation, starts, tiny_policy

from agents import GRPO, GRPOConfig, SelfImitationConfig, collect
from agents.demos import keyframes
from agents.grpo import _goal_log_ratio
from agents.rollouts import Rollouts
from agents.self_imitation import success_rows
from worldgym.errors import ConfigError


def explored(policy, noise=0.5, seed=0):
    return collect(
        LineWorld(),
        BrightJudge(),
        policy,
        starts(4),
        group_size=6,
        horizon=12,
        goal_noise=noise,
        generator=torch.Generator().manual_seed(seed),
    )


def test_goal_noise_moves_where_the_policy_acts_towards_and_says_so():
    policy, look = tiny_policy(), observation(64)
    quiet = policy.act(look, temperature=0, generator=torch.Generator().manual_seed(0))
    assert "aim" not in quiet.trace
    loud = policy.act(look, temperature=0, generator=torch.Generator().manual_seed(0), goal_noise=0.5)
    pointed = policy.run(look).goal[:, :2]
    assert torch.allclose(loud.trace["aim"] - loud.trace["aim_offset"], pointed, atol=1e-5)
    metres = (loud.trace["aim_offset"] * policy.state_std[:2]).std()
    assert 0.4 < float(metres) < 0.6
    given = policy.run(look, aim=loud.trace["aim"])
    assert torch.equal(given.logits.argmax(-1), loud.trace["tokens"])  # the aim is all that the noise changed


def test_rollouts_keep_the_goals_and_join_only_with_their_like():
    policy = tiny_policy()
    r = explored(policy)
    assert r.aims is not None and r.aims.shape == (24, 3, 2)
    assert bool((r.aims[~r.mask] == 0).all()) and bool((r.aim_offsets[r.mask] != 0).any())
    assert Rollouts.concatenate([r, r]).aims.shape == (48, 3, 2)
    with pytest.raises(ValueError, match="goal noise"):
        Rollouts.concatenate([r, explored(policy, noise=0.0)])


def test_the_goal_ratio_is_one_before_and_follows_the_pointer_after():
    policy = tiny_policy()
    r = explored(policy)
    row, chunk = r.mask.nonzero().unbind(1)
    goal = policy.run(r.observation(row, chunk)).goal.detach()
    assert float(_goal_log_ratio(policy, r, row, chunk, goal).abs().max()) < 1e-4
    nearer = goal.clone()
    nearer[:, :2] += 0.1 * r.aim_offsets[row, chunk]  # pointing towards what was tried makes it likelier
    assert bool((_goal_log_ratio(policy, r, row, chunk, nearer) > 0).all())


def test_grpo_trains_the_pointer_through_the_goals():
    policy = tiny_policy()
    r = explored(policy)
    r.reward = (torch.arange(24) % 2).float()
    before = policy.pointer_offset.weight.clone()
    scalars = GRPO(GRPOConfig(lr=1e-3)).update(policy, r)
    assert scalars["goal_kl"] >= 0 and "goal_clip_fraction" in scalars
    assert not torch.equal(policy.pointer_offset.weight, before)


def test_a_flickering_gripper_is_no_keyframe():
    actions = np.zeros((20, 4), np.float32)
    actions[:, -1] = 1
    actions[5, -1] = -1  # one step: noise
    actions[12:, -1] = -1  # closed for good
    states = np.full((21, 4), 0.1, np.float32)
    assert keyframes(states, actions, 20).tolist() == [12]


def test_an_uneven_descent_ends_once():
    height = np.array([0.2, 0.2, 0.16, 0.13, 0.09, 0.075, 0.06, 0.06, 0.06, 0.06])
    states = np.zeros((10, 4), np.float32)
    states[:, 2] = height
    actions = np.ones((9, 4), np.float32)
    assert keyframes(states, actions, 9).tolist() == [6]


def test_the_last_moves_before_a_success_weigh_most():
    r = explored(tiny_policy())
    rows, even = success_rows(r, floor=0.1)
    _, steep = success_rows(r, floor=0.1, discount=0.5)
    assert rows is not None
    for i in np.unique(rows.episode):
        n = int(r.lengths[i])
        ratio = (steep / even)[rows.episode == i]
        assert np.allclose(ratio, 0.5 ** np.arange(n - 1, -1, -1))
    first, weights = success_rows(r, floor=0.1, first_chunks=1)
    assert first is not None and len(first) == len(weights) == len(np.unique(rows.episode))
    for i, image in zip(first.episode, first.images, strict=True):
        assert (image == r.images[i, 0].numpy()).all()  # the true frame that imagination began with
    rare = r.select(torch.arange(len(r)))
    rare.reward = torch.zeros(len(r))
    rare.reward[0] = 1.0  # one of the six attempts at its start
    assert (
        success_rows(rare, floor=0.1)[0] is not None
        and success_rows(rare, floor=0.1, min_rate=0.5)[0] is None
    )
    with pytest.raises(ConfigError, match="discount"):
        SelfImitationConfig(discount=0.0)
