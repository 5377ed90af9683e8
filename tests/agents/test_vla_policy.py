from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from line_world import logits, observation, tiny_policy

from agents import VLAPolicy, VLAPolicyConfig
from worldgym.errors import CheckpointError, ConfigError
from worldgym.protocols import Policy


def test_it_is_a_policy_and_has_the_promised_sizes():
    assert isinstance(tiny_policy(), Policy)
    sizes = {
        name: sum(p.numel() for p in VLAPolicy(VLAPolicyConfig.preset(name)).parameters())
        for name in ("tiny", "small")
    }
    assert 1e5 < sizes["tiny"] < 4e5 and 2e6 <= sizes["small"] <= 4e6


@settings(max_examples=12, deadline=None)
@given(st.floats(0.2, 2.0), st.integers(0, 1000), st.integers(1, 6))
def test_log_prob_of_gives_back_what_act_reported(temperature, seed, batch):
    policy, obs = tiny_policy(), observation(batch, seed)
    out = policy.act(obs, temperature=temperature, generator=torch.Generator().manual_seed(seed))
    again = policy.log_prob_of(obs, out)
    assert again.requires_grad and out.log_prob.shape == (batch,)
    assert torch.allclose(again, out.log_prob, atol=1e-4)
    parts = out.log_probs["action"].sum((1, 2)) + out.log_probs["goal"]
    assert torch.allclose(parts, out.log_prob, atol=1e-4)


def test_greedy_takes_the_mode_and_repeats():
    policy, obs = tiny_policy(), observation(4)
    a, b = policy.act(obs, temperature=0), policy.act(obs, temperature=0)
    assert torch.equal(a.actions, b.actions)
    assert torch.equal(a.trace["tokens"], logits(policy, obs).argmax(-1))


def test_the_same_generator_gives_the_same_chunk():
    policy, obs = tiny_policy(), observation(4)
    draw = lambda seed: policy.act(obs, generator=torch.Generator().manual_seed(seed)).actions  # noqa: E731
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


def test_sampling_frequencies_match_the_probabilities():
    policy = tiny_policy(n_bins=5, chunk=1)
    one = observation(1)
    with torch.no_grad():
        policy.head.weight.mul_(40)  # a peaked distribution is a stricter test than a flat one
        p = torch.softmax(logits(policy, one), -1)[0, 0]  # (A, 5)
    n = 6000
    many = {
        "image": np.repeat(one["image"], n, 0),
        "state": np.repeat(one["state"], n, 0),
        "instruction": one["instruction"] * n,
    }
    policy.pointer.sample = lambda pointing, *_: policy.pointer.likeliest(pointing)
    tokens = policy.act(many, generator=torch.Generator().manual_seed(0)).trace["tokens"][:, 0]
    for dim in range(4):
        seen = torch.bincount(tokens[:, dim], minlength=5).float() / n
        # Five standard errors: false alarms are rarer than one in a million.
        assert bool(((seen - p[dim]).abs() <= 5 * (p[dim] * (1 - p[dim]) / n).sqrt() + 1e-6).all())


def test_actions_are_bin_centres_and_the_gripper_has_two():
    policy, obs = tiny_policy(), observation(16)
    actions = policy.act(obs, temperature=2.0, generator=torch.Generator().manual_seed(0)).actions
    assert actions.shape == (16, 5, 4) and float(actions.abs().max()) <= 1
    assert set(actions[..., 3].unique().tolist()) <= {-1.0, 1.0}
    centres = torch.linspace(-1, 1, 21)
    assert float((actions[..., :3, None] - centres).abs().min(-1).values.max()) < 1e-6


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4))
def test_an_action_survives_the_bins_to_half_a_bin(values):
    policy = tiny_policy()
    action = torch.tensor(values)
    back = policy.actions_of(policy.tokens_of(action))
    assert float((back[:3] - action[:3]).abs().max()) <= 0.05 + 1e-6
    assert float(back[3]) == (1.0 if float(action[3]) >= 0 else -1.0)


def test_entropy_is_that_of_the_available_bins():
    policy, obs = tiny_policy(), observation(3)
    with torch.no_grad():
        policy.head.weight.zero_()
    expected = (3 * np.log(21) + np.log(2)) / 4
    entropy = policy.evaluate(obs, policy.act(obs).trace).entropies["action"].mean((1, 2))
    assert torch.allclose(entropy, torch.full((3,), float(expected)), atol=1e-5)


def test_words_change_the_answer_and_a_row_ignores_its_neighbours():
    policy, obs = tiny_policy(), observation(3)
    other = {**obs, "instruction": ["press the button"] * 3}
    assert not torch.allclose(logits(policy, obs), logits(policy, other), atol=1e-5)
    alone = {"image": obs["image"][:1], "state": obs["state"][:1], "instruction": obs["instruction"][:1]}
    assert torch.allclose(logits(policy, obs)[:1], logits(policy, alone), atol=1e-4)


def test_embeddings_may_replace_strings():
    from worldgym.text import embed

    policy, obs = tiny_policy(), observation(3)
    assert torch.allclose(
        logits(policy, obs), logits(policy, {**obs, "instruction": embed(obs["instruction"])})
    )


def test_save_and_load_give_the_same_policy(tmp_path):
    policy, obs = tiny_policy(seed=3), observation(2)
    policy.set_state_stats(np.random.default_rng(0).normal(2, 3, (50, 4)))
    policy.save_pretrained(tmp_path / "p")
    names = sorted(path.name for path in (tmp_path / "p").iterdir())
    assert names == ["config.json", "manifest.json", "model.safetensors"]
    again = VLAPolicy.from_pretrained(tmp_path / "p")
    assert again.config == policy.config and not again.training
    assert torch.equal(logits(policy, obs), logits(again, obs))


def test_a_missing_or_damaged_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no folder"):
        VLAPolicy.from_pretrained(tmp_path / "none")
    tiny_policy().save_pretrained(tmp_path / "p")
    weights = tmp_path / "p" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        VLAPolicy.from_pretrained(tmp_path / "p")
    weights.unlink()
    with pytest.raises(CheckpointError, match="holds no model.safetensors"):
        VLAPolicy.from_pretrained(tmp_path / "p")


def test_an_unknown_key_in_the_config_is_refused_with_a_suggestion(tmp_path):
    tiny_policy().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "widht": 64}))
    (tmp_path / "manifest.json").unlink()  # otherwise the manifest check would fail first
    with pytest.raises(CheckpointError, match="did you mean 'width'"):
        VLAPolicy.from_pretrained(tmp_path)


def test_a_full_disk_leaves_the_old_weights(tmp_path, monkeypatch):
    policy = tiny_policy(seed=1)
    policy.save_pretrained(tmp_path / "p")
    before = (tmp_path / "p" / "model.safetensors").read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("worldgym.hub.save_tensors", full)
    with pytest.raises(OSError, match="No space"):
        tiny_policy(seed=2).save_pretrained(tmp_path / "p")
    assert (tmp_path / "p" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"image": np.zeros((2, 16, 16, 3), np.float32)}, TypeError, "uint8"),
        ({"image": np.zeros((2, 32, 32, 3), np.uint8)}, ValueError, r"\(B, 16, 16, 3\)"),
        ({"state": np.zeros((2, 3), np.float32)}, ValueError, "state must be"),
        ({"instruction": ["one"]}, ValueError, "give one for each row"),
    ],
)
def test_bad_observations_say_what_was_expected(change, error, words):
    with pytest.raises(error, match=words):
        tiny_policy().act({**observation(2), **change})


@pytest.mark.parametrize("bad", [{"n_bins": 20}, {"heads": 5}, {"image_size": 8}, {"binary_dims": (7,)}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError):
        VLAPolicyConfig.preset("tiny", **bad)
    with pytest.raises(ValueError, match="temperature"):
        tiny_policy().act(observation(1), temperature=-1)


def test_lerobot_calls_play_a_chunk_out():
    policy, obs = tiny_policy(), observation(2)
    chunk = policy.predict_action_chunk(obs)
    played = torch.stack([policy.select_action(obs) for _ in range(5)], 1)
    assert torch.equal(chunk, played)
    lerobot = {
        "observation.images.top": torch.from_numpy(obs["image"]).permute(0, 3, 1, 2).float() / 255,
        "observation.state": torch.from_numpy(obs["state"]),
        "task": obs["instruction"],
    }
    policy.reset()
    assert torch.equal(policy.select_action(lerobot), chunk[:, 0])
    with pytest.raises(KeyError, match="observation.state"):
        policy.predict_action_chunk({"pixels": 1})


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 26), st.integers(0, 26), st.integers(1, 4), st.floats(0.2, 2.0))
def test_any_shape_acts_without_a_pointer(actions, state, batch, temperature):
    shape = {"action_dim": actions, "state_dim": state, "goal_dims": 0, "binary_dims": (), "image_size": 16}
    policy = VLAPolicy(VLAPolicyConfig.preset("tiny", **shape)).eval()
    seen = observation(batch)
    seen = {"image": seen["image"], "instruction": seen["instruction"]}
    if state:
        seen["state"] = np.ones((batch, state), np.float32)
    out = policy.act(seen, temperature=temperature)
    assert out.actions.shape == (batch, 5, actions) and set(out.log_probs) == {"action"}
    assert torch.allclose(policy.log_prob_of(seen, out), out.log_prob, atol=1e-4)
    policy.reset()
    assert policy.select_action(seen).shape == (batch, actions)


@pytest.mark.parametrize("state", [0, 2])
def test_a_policy_without_a_pointer_is_saved_and_loaded(tmp_path, state):
    shape = {"action_dim": 2, "state_dim": state, "goal_dims": 0, "binary_dims": ()}
    policy = VLAPolicy(VLAPolicyConfig.preset("tiny", **shape)).eval()
    policy.save_pretrained(tmp_path / "p")
    again = VLAPolicy.from_pretrained(tmp_path / "p")
    assert again.config == policy.config
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in policy.state_dict().items())


def test_a_pointer_needs_goals(tmp_path):
    from agents import SFT, SFTConfig
    from worldgym.errors import ConfigError

    with pytest.raises(ConfigError, match="goal_dims"):
        VLAPolicyConfig.preset("tiny", state_dim=2)
    policy = VLAPolicy(VLAPolicyConfig.preset("tiny", goal_dims=0))
    with pytest.raises(ConfigError, match="no 'goal' that can be trained alone"):
        SFT(SFTConfig(learn="pointer")).optimizer(policy)


def test_importing_agents_and_rewards_loads_no_torch():
    import subprocess
    import sys

    code = "import sys, agents, rewards; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_goal_and_action_have_weights_of_their_own_that_make_up_the_policy():
    policy = VLAPolicy(VLAPolicyConfig.preset("tiny"))
    goal, action = ({id(w) for w in policy.parameters_of(name)} for name in ("goal", "action"))
    assert goal and action and not goal & action
    assert goal | action == {id(w) for w in policy.parameters()}
    assert {id(w) for w in policy.parameters_of("action_head")} == {id(w) for w in policy.head.parameters()} < action
    with pytest.raises(ConfigError, match="'gripper'"):
        list(policy.parameters_of("gripper"))


def test_goals_within_two_centimetres_are_one_place():
    policy = VLAPolicy(VLAPolicyConfig.preset("tiny"))
    policy.state_std.copy_(torch.tensor([0.1, 0.05, 0.1, 0.1])[: len(policy.state_std)])
    here = np.zeros((3, 2), np.float32)
    there = np.array([[0.03, 0.0], [0.0, 0.03], [0.04, 0.0]], np.float32)
    assert policy.same_goal(here, there).tolist() == [True, False, False]
