from __future__ import annotations

import numpy as np
import pytest
import torch
from line_world import BrightJudge, LineWorld, logits, observation, starts, tiny_policy

from agents import GRPO, GRPOConfig, SelfImitationConfig, collect
from agents.algorithms.self_imitation import success_rows
from agents.data.demonstrations import keyframes
from agents.policies.goal_head import GoalProposals
from agents.rollouts.trajectories import Rollouts
from worldgym.errors import ConfigError


def explored(policy, seed=0, **kwargs):
    return collect(
        LineWorld(),
        BrightJudge(),
        policy,
        starts(4),
        group_size=6,
        horizon=12,
        generator=torch.Generator().manual_seed(seed),
        **kwargs,
    )


def test_a_steady_hand_explores_places_alone():
    policy, look = tiny_policy(), observation(64)
    out = policy.act(look, temperature={"action": 0.0}, generator=torch.Generator().manual_seed(0))
    given = logits(policy, look, out.trace["aim"])
    assert torch.equal(given.argmax(-1), out.trace["tokens"])  # only the goal position was sampled
    greedy = policy.act(look, temperature=0.0)
    assert float((out.trace["aim"] - greedy.trace["aim"]).norm(dim=-1).max()) > 0.1
    assert torch.allclose(policy.log_prob_of(look, out), out.log_prob, atol=1e-4)


def test_a_place_is_as_likely_as_all_cells_that_speak_of_it():
    pointer = tiny_policy().pointer
    places = torch.zeros(1, 16, 2)
    places[0, 8:] = 2.0  # two objects on the table, eight cells for each
    scores = torch.where(torch.arange(16) < 8, 1.0, 0.0)[None]
    many = GoalProposals(scores.expand(4000, -1), places.expand(4000, -1, -1))
    for temperature in (1.0, 2.0):
        drawn = pointer.sample(many, temperature, torch.Generator().manual_seed(0))
        first = drawn.norm(dim=-1) < 0.1
        p = pointer.log_prob(many, drawn, temperature).exp()
        assert abs(float(first.float().mean()) - float(p[first][0])) < 0.03
        assert abs(float(p[first][0] + p[~first][0]) - 1.0) < 1e-3


def test_the_greedy_place_is_where_most_cells_agree():
    pointer = tiny_policy().pointer
    scores, places = torch.zeros(1, 16), torch.zeros(1, 16, 2)
    scores[0, :4], scores[0, 15] = 2.0, 2.5  # four neighbours in a row against one isolated cell
    places[0, 15] = 3.0
    pointing = GoalProposals(scores, places)
    assert float(pointer.likeliest(pointing).norm()) < 0.1


def test_rollouts_keep_the_places_and_join_only_with_those_of_such_a_policy():
    policy = tiny_policy()
    r = explored(policy)
    aims = r.trace["aim"]
    assert aims.shape == (24, 3, 2) and r.log_probs["goal"].shape == (24, 3)
    assert bool((aims[~r.mask] == 0).all()) and bool((aims[r.mask] != 0).any())
    both = Rollouts.concatenate([r, explored(policy, temperature={"action": 0.0})])
    assert both.trace["aim"].shape == (48, 3, 2)
    with pytest.raises(ValueError, match="different policies"):
        Rollouts.concatenate([r, explored(tiny_policy(goal_dims=0))])
    row, chunk = both.mask.nonzero().unbind(1)  # each choice at its own sampling temperature
    again = policy.evaluate(both.observation(row, chunk), both.trace_at(row, chunk)).log_probs
    for name, value in again.items():
        assert torch.allclose(value, both.log_probs[name][row, chunk], atol=1e-4), name


def test_grpo_can_train_the_pointer_alone():
    policy = tiny_policy()
    r = explored(policy, temperature={"goal": 1.0, "action": 0.0})
    r.reward = (torch.arange(24) % 2).float()
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    where = r.mask.nonzero().unbind(1)
    density = lambda: policy.evaluate(r.observation(*where), r.trace_at(*where)).log_probs["goal"].detach()  # noqa: E731
    good, was = r.reward[where[0]] > 0, density()
    scalars = GRPO(GRPOConfig(lr=1e-3, learn="pointer")).update(policy, r)
    assert scalars["goal_approx_kl"] >= 0 and "goal_clip_fraction" in scalars
    change = density() - was
    assert float(change[good].mean()) > float(change[~good].mean())  # rewarded choices became more likely
    for key, value in policy.state_dict().items():
        assert key.startswith("pointer.") or torch.equal(before[key], value), key


def test_a_flickering_gripper_is_no_keyframe():
    actions = np.zeros((20, 4), np.float32)
    actions[:, -1] = 1
    actions[5, -1] = -1  # one step: noise
    actions[12:, -1] = -1  # remains closed
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
        assert (image == r.images[i, 0].numpy()).all()  # the real start frame
    rare = r.select(torch.arange(len(r)))
    rare.reward = torch.zeros(len(r))
    rare.reward[0] = 1.0  # one of the six attempts from its start
    assert (
        success_rows(rare, floor=0.1)[0] is not None
        and success_rows(rare, floor=0.1, min_rate=0.5)[0] is None
    )
    with pytest.raises(ConfigError, match="discount"):
        SelfImitationConfig(discount=0.0)
