from __future__ import annotations

import numpy as np
import pytest
import torch
from line_world import BrightJudge, LineWorld, starts, tiny_policy

from agents import GRPO, GRPOConfig, SelfImitation, SelfImitationConfig, collect
from agents.algorithms.self_imitation import success_rows
from agents.data.demonstrations import ChunkDataset, keyframes
from worldgym.errors import ConfigError


def rollouts(policy=None, seed=0, count=4):
    return collect(
        LineWorld(),
        BrightJudge(),
        policy or tiny_policy(),
        starts(count),
        group_size=6,
        horizon=12,
        generator=torch.Generator().manual_seed(seed),
    )


def demos(policy, rows=24, goals=float("nan")):
    rng = np.random.default_rng(0)
    size, k = policy.config.image_size, policy.chunk
    return ChunkDataset(
        rng.integers(0, 256, (rows, size, size, 3), dtype=np.uint8),
        np.zeros((rows, 4), np.float32),
        ["move right"] * rows,
        np.ones((rows, k, 4), np.float32),
        np.arange(rows) // 6,
        np.full((rows, 4), goals, np.float32),
    )


def test_only_valid_successes_are_remembered_and_rare_ones_weigh_more():
    r = rollouts()
    r.valid[int((r.reward > 0).nonzero()[0])] = False
    good = (r.reward > 0) & r.valid
    rows, weights = success_rows(r, floor=0.1)
    assert rows is not None and set(rows.episode) == set(good.nonzero().squeeze(1).tolist())
    assert len(rows) == int(r.lengths[good].sum()) == len(weights)
    for i in np.unique(rows.episode):
        mates = (r.groups == r.groups[i]) & r.valid
        expected = 1.1 - float(good[mates].float().mean())
        assert np.allclose(weights[rows.episode == i], expected)


def test_of_each_start_only_the_fastest_successes_are_cloned():
    r = rollouts()
    good = (r.reward > 0) & r.valid
    every, _ = success_rows(r, floor=0.1)
    fastest, weights = success_rows(r, floor=0.1, fastest=True)
    assert 0 < len(fastest) < len(every)
    for group in np.unique(r.groups[good]):
        mates = ((r.groups == group) & good).nonzero().squeeze(1).tolist()
        fewest = min(int(r.lengths[i]) for i in mates)
        kept = [i for i in mates if (fastest.episode == i).any()]
        assert kept == [i for i in mates if int(r.lengths[i]) == fewest]
        rate = float(good[(r.groups == group) & r.valid].float().mean())  # of all attempts, as without it
        assert np.allclose(weights[np.isin(fastest.episode, kept)], 1.1 - rate)


def test_goals_are_places_the_imagined_hand_passed_later():
    r = rollouts()
    rows, _ = success_rows(r, floor=0.1)
    assert r.path is not None and rows is not None
    for i in np.unique(rows.episode):
        n = int(r.lengths[i])
        path = r.path[i, : n * 5].numpy()
        for c, goal in enumerate(rows.goals[rows.episode == i]):
            assert (np.abs(path[c * 5 :] - goal).max(1) < 1e-6).any()
    r.path = None
    rows, _ = success_rows(r, floor=0.1)
    assert rows is not None and np.isnan(rows.goals).all()


def test_imitation_makes_the_successful_actions_likelier():
    policy = tiny_policy()
    r = rollouts(policy)
    rows, _ = success_rows(r, 0.1, fastest=True)

    def likelihood():
        with torch.no_grad():
            return -float(policy.loss(rows.chunk_batch(np.arange(len(rows))))["action"])

    before = likelihood()
    imitation = SelfImitation(
        demos(policy),
        SelfImitationConfig(steps=20, lr=1e-3, batch_size=32, demo_share=0.0, min_rate=0, first_chunks=0),
    )
    scalars = imitation.update(policy, r)
    assert scalars["imitation_steps"] == 20 and scalars["memory"] == len(rows)
    assert likelihood() > before + 0.02


def test_steps_on_the_action_head_change_no_other_weights_and_make_successful_actions_likelier():
    def trained(steps):
        policy = tiny_policy()
        r = rollouts(policy)
        settings = SelfImitationConfig(
            steps=1, lr=1e-2, batch_size=32, demo_share=0.0, min_rate=0, learn="goal", reached_goals=False,
            action_head_steps=steps,
        )  # fmt: skip
        imitation = SelfImitation(demos(policy), settings)
        scalars = imitation.update(policy, r)
        assert scalars["imitation_steps"] == 1 + steps
        rows = imitation.memory
        with torch.no_grad():
            loss = float(policy.loss(rows.chunk_batch(np.arange(len(rows))), ("action_head",))["action"])
        return dict(policy.named_parameters()), loss

    (before, loss_before), (after, loss_after) = trained(0), trained(20)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head"} and loss_after < loss_before - 0.02


def test_demonstrations_alone_need_no_success():
    policy = tiny_policy()
    before = [p.detach().clone() for p in policy.parameters()]
    cloning = SelfImitation(demos(policy, goals=0.1), SelfImitationConfig(steps=2, demo_share=1.0))
    assert cloning.update(policy)["imitation_steps"] == 2 and cloning.memory is None
    assert any(not torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


def test_without_any_success_nothing_changes():
    policy = tiny_policy()
    r = rollouts(policy)
    r.reward[:] = 0
    before = [p.clone() for p in policy.parameters()]
    scalars = SelfImitation(demos(policy)).update(policy, r)
    assert scalars["imitation_steps"] == 0
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


def test_the_oldest_successes_are_forgotten_first():
    policy = tiny_policy()
    imitation = SelfImitation(demos(policy), SelfImitationConfig(steps=0, capacity=5))
    imitation.remember(policy, rollouts(seed=0))
    imitation.remember(policy, rollouts(seed=1))
    assert imitation.memory is not None and len(imitation.memory) == len(imitation.weight) == 5


def test_stopping_and_resuming_changes_nothing(tmp_path):
    def fine_tune(interrupt):
        policy = tiny_policy()
        grpo, imitation = GRPO(GRPOConfig()), SelfImitation(demos(policy), SelfImitationConfig(steps=2))
        for i in range(3):
            r = rollouts(policy, seed=i)
            grpo.update(policy, r)
            imitation.update(policy, r)
            if interrupt and i == 1:
                imitation.save(policy, tmp_path / "memory")
                grpo.save(policy, tmp_path / "grpo")
                policy = tiny_policy(seed=5)
                grpo, imitation = (
                    GRPO(GRPOConfig()),
                    SelfImitation(demos(policy), SelfImitationConfig(steps=2)),
                )
                imitation.load(policy, tmp_path / "memory")
                grpo.load(policy, tmp_path / "grpo")
        return torch.cat([p.detach().flatten() for p in policy.parameters()])

    assert torch.equal(fine_tune(False), fine_tune(True))


@pytest.mark.parametrize(
    "bad", [{"steps": -1}, {"action_head_steps": -1}, {"demo_share": 1.5}, {"lr": 0.0}, {"floor": 0.0}]
)
def test_settings_that_cannot_work_are_refused(bad):
    with pytest.raises(ConfigError):
        SelfImitationConfig(**bad)


def test_keyframes_are_gripper_turns_and_ends_of_descents():
    z = np.array([0.17, 0.15, 0.09, 0.03, 0.028, 0.028, 0.08, 0.12])
    states = np.stack([np.zeros(8), np.zeros(8), z, np.zeros(8)], 1)
    actions = np.zeros((7, 4))
    actions[:, 3] = [1, 1, 1, 1, 1, -1, -1]
    assert keyframes(states, actions, 7).tolist() == [3, 5]
    assert keyframes(states, actions, 2).tolist() == []


def test_the_pointer_imitates_the_places_that_it_chose():
    policy = tiny_policy()
    imitation = SelfImitation(demos(policy), SelfImitationConfig(steps=0, learn="goal", reached_goals=False))
    r = rollouts(policy)
    imitation.update(policy, r)
    memory = imitation.memory
    assert memory is not None and len(memory) > 1
    aims = torch.from_numpy(memory.goals[:, :2]).sub(policy.state_mean[:2]).div(policy.state_std[:2])
    first = np.flatnonzero(np.diff(memory.episode, prepend=-1))
    assert torch.allclose(aims[first], r.trace["aim"][torch.from_numpy(memory.episode[first]), 0], atol=1e-5)


def test_a_place_that_was_chosen_but_not_reached_is_not_imitated():
    policy = tiny_policy()
    r = rollouts(policy)
    good = (r.valid & (r.reward > 0.5)).nonzero().squeeze(1)
    spread = policy.state_std[:2]
    for row in good.tolist():  # every goal is where the hand ends, but for the first of one attempt
        length = int(r.lengths[row]) * r.actions.shape[2]
        end = (r.path[row, length - 1, :2] - policy.state_mean[:2]) / spread
        r.trace["aim"][row] = end
    wrong = int(good[0])
    r.trace["aim"][wrong, 0] += 5.0

    def remembered(**settings) -> SelfImitation:
        imitation = SelfImitation(demos(policy), SelfImitationConfig(steps=0, learn="goal", **settings))
        imitation.remember(policy, r)
        return imitation

    every, reached = remembered(reached_goals=False), remembered()
    assert 0 < len(reached.memory) < len(every.memory)
    assert len(reached.weight) == len(reached.memory)
    far = r.trace["aim"][wrong, 0] * spread + policy.state_mean[:2]
    assert np.isclose(every.memory.goals[:, :2], far.numpy(), atol=1e-5).all(1).any()
    assert not np.isclose(reached.memory.goals[:, :2], far.numpy(), atol=1e-5).all(1).any()
