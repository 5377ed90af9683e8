"""Attempts of a group try different places, keep them until they are there, and are weighted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agents.algorithms.grpo import group_advantages
from agents.policies.goal_head import distinct
from agents.rollouts.exploration import GoalExploration
from worldgym.errors import ConfigError


def places(count: int, size: int = 3) -> torch.Tensor:
    """`count` places of `size` choices each: whether two choices are the same place."""
    owner = torch.arange(count).repeat_interleave(size)
    return owner[:, None] == owner[None]


def test_draws_are_different_places_while_there_are_any():
    same = places(5)
    for seed in range(20):
        drawn, weights = distinct(torch.randn(15), 5, same, torch.Generator().manual_seed(seed))
        assert sorted(i // 3 for i in drawn) == [0, 1, 2, 3, 4]
        assert weights.mean() == pytest.approx(1.0, abs=1e-5)


def test_more_draws_than_places_draw_likely_ones_again():
    scores = torch.log(torch.tensor([0.7, 0.3]))
    drawn, _ = distinct(scores, 6, torch.eye(2, dtype=torch.bool), torch.Generator().manual_seed(0))
    assert sorted(drawn) == [0, 0, 0, 1, 1, 1]


def test_weighted_draws_estimate_the_mean_under_the_policy():
    """Self-normalised weights of draws without replacement give the mean that independent draws would give."""
    p = torch.tensor([0.55, 0.2, 0.15, 0.07, 0.03])
    values = torch.tensor([0.0, 1.0, 0.5, 2.0, -1.0])
    generator = torch.Generator().manual_seed(0)
    estimates, plain = [], []
    for _ in range(4000):
        drawn, weights = distinct(p.log(), 3, torch.eye(5, dtype=torch.bool), generator)
        estimates.append(float((weights * values[drawn]).mean()))
        plain.append(float(values[drawn].mean()))
    truth = float((p * values).sum())
    assert abs(np.mean(estimates) - truth) < 0.06
    assert abs(np.mean(plain) - truth) > 0.1  # without weights, rare places would count too much


def test_weights_enter_the_advantages():
    reward, groups, valid = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.zeros(4, dtype=torch.int64), torch.ones(4).bool()
    plain, _ = group_advantages(reward, groups, valid)
    same, _ = group_advantages(reward, groups, valid, weights=torch.ones(4))
    torch.testing.assert_close(plain, same)
    rare, _ = group_advantages(reward, groups, valid, weights=torch.tensor([0.1, 1.3, 1.3, 1.3]))
    assert 0 < rare[0] < plain[0]


class Goals:
    """A policy with goals whose hand is where the state says."""

    components = ("action", "goal")

    def __init__(self):
        self.shown = []

    def distinct_goals(self, observation, groups, temperature, generator=None):
        return torch.arange(len(groups) * 2.0).view(-1, 2), torch.ones(len(groups))

    def reached(self, observation, goals):
        return (observation["state"] - goals).norm(dim=-1) < 0.5

    def act(self, observation, *, temperature=1.0, generator=None):
        from worldgym.protocols import PolicyOutput

        self.shown.append(observation["goal"].clone())
        goal = torch.where(observation["goal"].isnan(), torch.full_like(observation["goal"], 99.0), observation["goal"])
        return PolicyOutput(torch.zeros(len(goal), 5, 3), torch.zeros(len(goal)), {"aim": goal})


def test_a_goal_is_kept_until_it_is_reached_or_patience_ends():
    policy = Goals()
    explore = GoalExploration(policy, 2, {"goal": 2.0, "action": 0.0}, patience=2)
    far = torch.full((4, 2), -5.0)
    explore({"state": far}, np.arange(4))
    torch.testing.assert_close(policy.shown[0], torch.arange(8.0).view(4, 2))
    near = far.clone()
    near[1] = torch.tensor([2.0, 3.0])  # row 1 is at its goal
    explore({"state": near}, np.arange(4))
    assert policy.shown[1].isnan().all(1).tolist() == [False, True, False, False]
    explore({"state": far[:2]}, np.array([0, 3]))  # finished rows left the batch; patience ends for the others
    assert policy.shown[2].isnan().all()


def test_a_policy_without_goals_is_refused():
    with pytest.raises(ConfigError, match="has no goals to explore"):
        GoalExploration(object(), 2, 1.0)
