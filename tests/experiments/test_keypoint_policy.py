"""Policies learned on keypoints of a judge: they act as the network they come from, load by type, know their judge."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from agents import load_policy
from agents.algorithms.parameters import learned_parameters
from experiments.bundle import Bundle
from experiments.pipelines import keypoint_policy
from experiments.pipelines.keypoint_policy import Checkpoints, KeypointConfig, KeypointPolicy
from rewards.judge_features import JudgeFeatures
from rewards.models.learned import load_bundled
from worldgym.errors import CheckpointError, ConfigError
from worldgym.specs import check_fit
from worldgym.suite import load_suite
from worldgym.text import embed


@pytest.fixture(scope="module")
def seen():
    """Three observations with texts, and the judge's features of them."""
    envs = load_suite().make(3, task="reach", chunk=2)
    observation, _ = envs.reset(seed=0)
    envs.close()
    texts = [str(text) for text in observation["instruction"]]
    features = JudgeFeatures(load_suite().make(1, instruction="embedding").single_observation_space)
    rows = {k: torch.as_tensor(observation[k]) for k in ("image", "state")}
    found = features({**rows, "instruction": torch.from_numpy(embed(texts))})
    return {**rows, "instruction": texts}, found, features.reach


def layers_of(dim, sizes=(16, 16), actions=4):
    torch.manual_seed(0)
    widths = [dim, *sizes, actions]
    return [nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)]


@pytest.mark.parametrize("squash", ["clip", "tanh"])
@pytest.mark.parametrize("sizes", [(16, 16), (16,), ()])
def test_it_acts_as_the_layers_it_was_made_of_also_after_loading(tmp_path, seen, squash, sizes):
    observation, found, reach = seen
    layers = layers_of(found.shape[1], sizes)
    layers[-1].weight.data *= 5  # so that some actions lie beyond the bounds
    KeypointPolicy.of_layers(layers, torch.zeros(4), reach, 3, squash).save_pretrained(tmp_path / "policy")
    hidden = found
    for layer in layers[:-1]:
        hidden = layer(hidden).tanh()
    wanted = layers[-1](hidden)
    assert (wanted.abs() > 1).any()
    wanted = wanted.tanh() if squash == "tanh" else wanted.clamp(-1, 1)
    actions = load_policy(tmp_path / "policy").act(observation, temperature=0).actions
    assert actions.shape == (3, 3, 4)
    assert torch.allclose(actions, wanted[:, None].expand(-1, 3, -1), atol=1e-4)


@pytest.mark.parametrize("linear", [False, True])
def test_samples_spread_as_the_temperature_says_and_repeat_with_the_seed(seen, linear):
    observation, found, reach = seen
    layers = layers_of(found.shape[1])
    spread = nn.Linear(16, 4) if linear else torch.full((4,), -2.0)
    if linear:
        nn.init.zeros_(spread.weight)
        nn.init.constant_(spread.bias, -2.0)
    policy = KeypointPolicy.of_layers(layers, spread, reach, 2)

    def draw(temperature, seed=0):
        return policy.act(observation, temperature=temperature, generator=torch.Generator().manual_seed(seed))

    greedy = draw(0).actions
    assert torch.equal(greedy, draw({"action": 0.0}, 1).actions) and (draw(0).log_prob == 0).all()
    assert torch.equal(draw(1.0).actions, draw({"action": 1.0}).actions)
    assert not torch.equal(draw(1.0).actions, draw(1.0, 1).actions)
    apart = [
        torch.stack([draw(t, seed).actions[:, 0] for seed in range(200)]).std(0).mean() for t in (0.5, 1.0)
    ]
    assert float(apart[1]) == pytest.approx(np.exp(-2.0), rel=0.15)
    assert float(apart[0] / apart[1]) == pytest.approx(0.5, rel=0.15)
    out = draw(1.0)
    normal = torch.distributions.Normal(greedy[:, 0], np.exp(-2.0))
    assert torch.allclose(out.log_prob, normal.log_prob(out.actions[:, 0]).sum(-1), atol=1e-4)


def test_a_policy_of_another_judge_s_keypoints_is_refused(seen, tmp_path, monkeypatch):
    _, found, reach = seen
    policy = KeypointPolicy.of_layers(layers_of(found.shape[1]), torch.zeros(4), reach, 2)
    policy.save_pretrained(tmp_path / "policy")
    other = copy.deepcopy(load_bundled())
    with torch.no_grad():
        next(other.parameters()).add_(0.01)
    monkeypatch.setattr(keypoint_policy, "load_bundled", lambda: other)
    with pytest.raises(CheckpointError, match="another judge than the bundled one"):
        load_policy(tmp_path / "policy")


def test_acting_changes_neither_parameters_nor_buffers(seen):
    observation, found, reach = seen
    policy = KeypointPolicy.of_layers(layers_of(found.shape[1]), torch.zeros(4), reach, 2)
    other = copy.deepcopy(policy)
    before = policy.act(observation, temperature=0).actions
    assert [name for name, _ in policy.named_buffers()] == [name for name, _ in other.named_buffers()]
    other.load_state_dict({**other.state_dict(), "reach": 2 * reach})
    assert not torch.equal(other.act(observation, temperature=0).actions, before)
    policy.load_state_dict(other.state_dict())  # also what was computed from the earlier values is new
    assert torch.equal(policy.act(observation, temperature=0).actions, other.act(observation, temperature=0).actions)


def test_it_fits_the_tabletop_and_no_other_suite_and_is_not_trained_further(seen):
    observation, found, reach = seen
    policy = KeypointPolicy.of_layers(layers_of(found.shape[1]), torch.zeros(4), reach, 2)
    check_fit(load_suite(), policy, "the suite", "the policy")
    with pytest.raises(ConfigError, match="specs"):
        check_fit(Bundle.find("metaworld-small").world_model(), policy, "the world model", "the policy")
    for wrong in ({"state": observation["state"][:, :1]}, {"image": observation["image"][:, :32]}):
        with pytest.raises(ConfigError, match="image and state have the shapes"):
            policy.act({**observation, **wrong})
    with pytest.raises(ConfigError, match="cannot be trained further"):
        learned_parameters(policy, "all")


@pytest.mark.parametrize(
    "wrong", [{"widths": (4,)}, {"widths": (0, 4)}, {"chunk": 0}, {"squash": "sigmoid"}, {"spread": "none"}]
)
def test_sizes_that_make_no_network_are_refused(wrong):
    with pytest.raises(ConfigError, match="expected"):
        KeypointConfig(**{"widths": (40, 4), **wrong})


def test_fewer_inputs_than_keypoints_are_refused():
    with pytest.raises(ConfigError, match="keypoints"):
        KeypointPolicy(KeypointConfig((5, 4)))


def test_each_checkpoint_is_due_once_when_its_share_is_passed(tmp_path):
    checkpoints = Checkpoints(tmp_path, (0.1, 0.25, 0.5))
    due = [[folder.name for folder in checkpoints.passed(share)] for share in (0.05, 0.1, 0.2, 0.6, 1.0)]
    assert due == [[], ["10"], [], ["25", "50"], []]
    assert checkpoints.last == tmp_path / "policy"
