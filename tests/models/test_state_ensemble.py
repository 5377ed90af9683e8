"""The state-only ensemble: shapes, uncertainty, likelihood, members, disk, and errors that explain themselves."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from worldgym.errors import CheckpointError, ConfigError, DatasetError
from worldgym.models.states import StateEnsemble, StateEnsembleConfig, check_episodes, gaussian_nll


def logs(count=6, steps=12, seed=0, static=False):
    """Episodes of a point mass: position and velocity, driven by an acceleration."""
    rng, episodes = np.random.default_rng(seed), []
    for _ in range(count):
        actions = rng.uniform(-1, 1, (steps, 2)).astype(np.float32)
        states = [np.concatenate([rng.uniform(-1, 1, 2), np.zeros(2), rng.uniform(-1, 1, int(static))])]
        for action in actions:
            velocity = 0.8 * states[-1][2:4] + 0.2 * action
            states.append(np.concatenate([states[-1][:2] + velocity, velocity, states[-1][4:]]))
        near = np.linalg.norm(np.array(states)[1:, :2], axis=1) < 0.2
        episodes.append({
            "states": np.array(states, np.float32), "actions": actions, "reward": near.astype(np.float32),
            "success": near,
        })  # fmt: skip
    return episodes


def tiny(episodes=None, **changes):
    config = StateEnsembleConfig.preset("tiny", **changes)
    return StateEnsemble(config.for_data(episodes or logs()))


def rolled(model, episodes, past=3, **kwargs):
    states = torch.from_numpy(np.stack([e["states"] for e in episodes]))
    actions = torch.from_numpy(np.stack([e["actions"] for e in episodes]))
    memory = model.begin(states[:, : past + 1], actions[:, :past])
    return model.step(memory, actions[:, past], **kwargs)


@pytest.mark.parametrize("shared", [False, True])
def test_a_step_has_the_documented_shapes_and_units(shared):
    model, episodes = tiny(shared_trunk=shared, layers=2), logs()
    memory, predicted = rolled(model, episodes)
    assert memory.hidden.shape == (2, 1 if shared else 5, 6, 32)
    assert predicted.states.shape == (6, 4) and predicted.means.shape == (5, 6, 4)
    scale = torch.tensor(model.config.state_std)
    expected = (predicted.means.std(0, correction=0) / scale).sum(-1)
    assert torch.allclose(predicted.epistemic, expected, atol=1e-5) and (predicted.epistemic > 1e-3).all()
    assert (predicted.aleatoric > 0).all()
    for chance in (predicted.success, predicted.terminated):
        assert ((chance > 0) & (chance < 1)).all()


def test_equal_members_have_no_uncertainty():
    model = tiny()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight[:1].expand_as(weight))
    assert rolled(model, logs())[1].epistemic.max() < 1e-6


def test_one_member_has_no_uncertainty():
    assert rolled(tiny(members=1), logs())[1].epistemic.abs().max() == 0


@pytest.mark.parametrize("shared", [False, True])
def test_the_members_computed_at_once_equal_single_members(shared):
    model, episodes = tiny(layers=2, shared_trunk=shared), logs()
    predicted = rolled(model, episodes)[1]
    for i in range(5):
        alone = rolled(model.member(i), episodes)[1]
        assert torch.allclose(alone.states, predicted.means[i], atol=1e-5)
        followed = rolled(model, episodes, member=torch.full((6,), i))[1]
        assert torch.allclose(followed.states, alone.states, atol=1e-5)
        assert torch.allclose(followed.reward, alone.reward, atol=1e-5)
        assert torch.allclose(followed.success, alone.success, atol=1e-5)


def test_a_forecast_of_means_equals_steps():
    model, episodes = tiny(), logs()
    states = torch.from_numpy(np.stack([e["states"] for e in episodes]))
    actions = torch.from_numpy(np.stack([e["actions"] for e in episodes]))
    made = model.forecast(states[:, :4], actions[:, :6], 3)
    memory = model.begin(states[:, :4], actions[:, :3])
    for k in range(3):
        assert torch.allclose(made.before[k, 2], memory.states, atol=1e-5)
        memory, _ = model.step(memory, actions[:, 3 + k], member=torch.full((6,), 2))


def test_the_likelihood_is_that_of_a_gaussian():
    mean, log_std, target = torch.randn(3, 50)
    expected = -torch.distributions.Normal(mean, log_std.exp()).log_prob(target)
    assert torch.allclose(gaussian_nll(mean, log_std, target), expected, atol=1e-5)
    # It is smallest at the true deviation, and not at zero.
    draws, tried = 0.5 * torch.randn(20000), torch.linspace(-2, 1, 31)
    losses = torch.stack([gaussian_nll(torch.tensor(0.0), x, draws).mean() for x in tried])
    assert abs(float(tried[losses.argmin()]) - math.log(0.5)) < 0.11


def test_the_deviation_stays_within_its_soft_bounds():
    model = tiny()
    with torch.no_grad():
        model.write.bias[:, :, 4:8] = 1e4
    made = model.forecast(torch.zeros(2, 1, 4), torch.zeros(2, 3, 2), 0)
    assert made.log_std.max() <= 1.02 and made.log_std.isfinite().all()
    with torch.no_grad():
        model.write.bias[:, :, 4:8] = -1e4
    assert model.forecast(torch.zeros(2, 1, 4), torch.zeros(2, 3, 2), 0).log_std.min() >= -3.0 - 1e-4


def test_a_dimension_that_never_changes_is_copied():
    episodes = logs(static=True)
    model = tiny(episodes)
    assert model.config.step_std[4] == 0
    predicted = rolled(model, episodes, generator=torch.Generator().manual_seed(0))[1]
    assert predicted.states[:, 4].tolist() == [float(e["states"][3, 4]) for e in episodes]


def test_samples_follow_the_generator():
    model, episodes = tiny(), logs()
    draw = lambda seed: rolled(model, episodes, generator=torch.Generator().manual_seed(seed))[1].states  # noqa: E731
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


def test_pairs_before_an_episode_are_ignored():
    model, episodes = tiny(), logs()
    states, actions = torch.from_numpy(episodes[0]["states"]), torch.from_numpy(episodes[0]["actions"])
    short = model.begin(states[None, :2], actions[None, :1])
    padded = torch.cat([torch.full((2, 4), 9.0), states[:2]])[None]
    valid = torch.tensor([[False, False, True]])
    long = model.begin(padded, torch.cat([torch.full((2, 2), 9.0), actions[:1]])[None], valid)
    assert torch.allclose(short.hidden, long.hidden, atol=1e-6)


def test_memories_are_merged_by_row():
    model, episodes = tiny(), logs()
    one = model.begin(torch.from_numpy(episodes[0]["states"])[:3, None], torch.zeros(3, 0, 2))
    other = model.begin(torch.from_numpy(episodes[1]["states"])[:1, None], torch.zeros(1, 0, 2))
    merged = one.merge(torch.tensor([1]), other)
    assert torch.equal(merged.states[1], other.states[0]) and torch.equal(merged.states[2], one.states[2])


@pytest.mark.parametrize("shared", [False, True])
def test_a_saved_ensemble_is_loaded_without_change(tmp_path, shared):
    model, episodes = tiny(shared_trunk=shared), logs()
    model.save_pretrained(tmp_path / "model")
    assert {p.name for p in (tmp_path / "model").iterdir()} >= {"config.json", "model.safetensors"}
    loaded = StateEnsemble.from_pretrained(tmp_path / "model")
    assert loaded.config == model.config
    assert torch.equal(rolled(loaded, episodes)[1].means, rolled(model, episodes)[1].means)
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        StateEnsemble.from_pretrained(tmp_path / "model")


def test_equal_seeds_give_equal_weights_and_members_differ():
    one, same, other = tiny(), tiny(), tiny(seed=1)
    weights = [m.head.weight for m in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert not torch.equal(one.head.weight[0], one.head.weight[1])


@pytest.mark.parametrize(
    "change, said",
    [
        ({"members": 0}, "members is 0, expected at least 1; try members=5"),
        ({"log_std_low": 2.0}, "expected the lower bound first"),
        ({"state_mean": (0.0,)}, "make them with for_data"),
        ({"reward_std": 0.0}, "a standard deviation is not positive"),
    ],
)
def test_a_bad_config_is_explained(change, said):
    with pytest.raises(ConfigError, match=said):
        StateEnsembleConfig(**change)


def test_an_unknown_preset_and_an_empty_config_are_explained():
    with pytest.raises(ConfigError, match="the presets are base, small, tiny"):
        StateEnsembleConfig.preset("huge")
    with pytest.raises(ConfigError, match="for_data"):
        StateEnsemble(StateEnsembleConfig())
    with pytest.raises(ConfigError, match="did you mean 'members'"):
        StateEnsembleConfig.from_dict({"member": 3})


def test_wrong_shapes_are_explained():
    model = tiny()
    with pytest.raises(ConfigError, match=r"states have shape \(2, 4\), expected \(B, H, 4\)"):
        model.begin(torch.zeros(2, 4), torch.zeros(2, 0, 2))
    with pytest.raises(ConfigError, match=r"actions have shape \(2, 1, 2\), expected \(2, 0, 2\)"):
        model.begin(torch.zeros(2, 1, 4), torch.zeros(2, 1, 2))
    memory = model.begin(torch.zeros(2, 1, 4), torch.zeros(2, 0, 2))
    with pytest.raises(ConfigError, match=r"actions have shape \(2, 3\), expected \(2, 2\)"):
        model.step(memory, torch.zeros(2, 3))
    with pytest.raises(ConfigError, match="values of 0 to 4"):
        model.step(memory, torch.zeros(2, 2), member=torch.tensor([0, 5]))
    with pytest.raises(ConfigError, match="expected 0 to 4"):
        model.member(5)


def test_bad_episodes_are_explained():
    good = logs(2)
    for changed, said in (
        ([], "got no episode"),
        ([{k: v for k, v in good[0].items() if k != "reward"}], "episode 0 has no reward"),
        ([good[0] | {"states": good[0]["states"][:-1]}], "add the state after the last action"),
        ([good[0], good[1] | {"actions": np.zeros((12, 3))}], r"episode 1 .* expected \(4, 2\)"),
        ([good[0] | {"success": np.zeros(3)}], r"success of shape \(3,\), expected \(12,\)"),
        ([good[0] | {"reward": np.full(12, np.nan)}], "NaN or infinity in reward"),
    ):
        with pytest.raises(DatasetError, match=said):
            check_episodes(changed)
    assert check_episodes(good) == (4, 2)


def test_statistics_of_constant_dimensions_are_finite():
    episodes = [e | {"reward": np.zeros(12), "actions": np.zeros((12, 2))} for e in logs(2)]
    config = StateEnsembleConfig.preset("tiny").for_data(episodes)
    assert config.reward_std == 1.0 and config.action_std == (1.0, 1.0)
    assert replace(config, members=2).state_dim == 4
