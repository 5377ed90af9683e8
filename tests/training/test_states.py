"""Training of the state-only ensemble: masks by episode, the loss, resuming, and uncertainty away from the data."""

import numpy as np
import pytest
import torch

from worldgym.errors import ConfigError, DatasetError
from worldgym.models.states import StateEnsemble, StateEnsembleConfig, gaussian_nll
from worldgym.training.states import StateLogs, StateTrainingConfig, bootstrap_masks, state_loss, train_states


def logs(count=16, steps=12, seed=0, width=0.5):
    """Episodes of a point mass within `width` of the origin at the start."""
    rng, episodes = np.random.default_rng(seed), []
    for n in range(count):
        actions = rng.uniform(-1, 1, (steps + n % 3, 2)).astype(np.float32)
        states = [np.concatenate([rng.uniform(-width, width, 2), np.zeros(2)])]
        for action in actions:
            velocity = 0.5 * states[-1][2:] + 0.1 * action
            states.append(np.concatenate([states[-1][:2] + velocity, velocity]))
        near = np.linalg.norm(np.array(states)[1:, :2], axis=1) < 0.2
        episodes.append({
            "states": np.array(states, np.float32), "actions": actions, "reward": near.astype(np.float32),
            "success": near,
        })  # fmt: skip
    return episodes


def tiny(episodes, **changes):
    return StateEnsemble(
        StateEnsembleConfig.preset("tiny", **{"history": 4, "forecast": 4, **changes}).for_data(episodes)
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    episodes = logs(24)
    model, out = tiny(episodes), tmp_path_factory.mktemp("states")
    metrics = train_states(
        model, episodes, StateTrainingConfig(steps=150, batch_size=16, lr=1e-2, ema=0.95), out
    )
    return model, episodes, metrics, out


def test_masks_are_by_episode_and_seeded():
    masks = bootstrap_masks(5, 400, 0.8, seed=3)
    assert masks.shape == (5, 400) and masks.dtype == torch.bool
    assert torch.equal(masks, bootstrap_masks(5, 400, 0.8, seed=3))
    assert not torch.equal(masks, bootstrap_masks(5, 400, 0.8, seed=4))
    assert ((masks.float().mean(1) - 0.8).abs() < 0.07).all() and not torch.equal(masks[0], masks[1])
    assert bootstrap_masks(5, 7, 1.0, seed=0).all()


def test_no_member_and_no_episode_is_left_out():
    masks = bootstrap_masks(3, 4, 0.01, seed=0)
    assert masks.any(0).all() and masks.any(1).all()


def test_episodes_outside_a_members_mask_do_not_change_it():
    episodes = logs(4)
    model, data = tiny(episodes, members=2), StateLogs.of(episodes)
    masks = torch.tensor([[True, False, True, True], [True, True, True, False]])
    rows, first = torch.tensor([1, 1]), torch.tensor([0, 3])
    loss, _ = state_loss(model, data, masks, rows, first, StateTrainingConfig(), None)
    loss.backward()
    assert model.head.weight.grad[0].abs().max() == 0 and model.head.weight.grad[1].abs().max() > 0


def test_the_loss_is_the_discounted_likelihood():
    episodes = logs(1, steps=8)
    model, data = tiny(episodes, members=1, forecast=3), StateLogs.of(episodes)
    settings = StateTrainingConfig(alpha=0.5, reward_weight=0, event_weight=0)
    loss, parts = state_loss(
        model, data, torch.ones(1, 1, dtype=torch.bool), torch.tensor([0]), torch.tensor([2]), settings, None
    )
    made = model.forecast(data.states[:, :3], data.actions[:, :5], 2)
    scale = torch.tensor(model.config.step_std)
    expected = sum(
        0.5**k
        * gaussian_nll(
            made.mean[k, 0], made.log_std[k, 0], (data.states[:, 3 + k] - made.before[k, 0]) / scale
        ).mean()
        for k in range(3)
    ) / (1 + 0.5 + 0.25)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert parts["nll"] == pytest.approx(loss.item(), abs=1e-6)


def test_steps_after_the_end_of_an_episode_do_not_count():
    episodes = logs(2)
    model = tiny(episodes, members=1)
    masks, where = torch.ones(1, 2, dtype=torch.bool), (torch.tensor([0, 1]), torch.tensor([11, 11]))
    data = StateLogs.of(episodes)
    assert data.lengths.tolist() == [12, 13]
    before, _ = state_loss(model, data, masks, *where, StateTrainingConfig(), None)
    data.states[0, 13:], data.reward[0, 12:], data.actions[0, 12:] = 99.0, 99.0, 99.0  # padding
    after, _ = state_loss(model, data, masks, *where, StateTrainingConfig(), None)
    assert float(before.detach()) == pytest.approx(float(after.detach()), abs=1e-6)


def test_members_with_equal_weights_and_data_stay_equal(tmp_path):
    episodes = logs(6)
    model = tiny(episodes, members=3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight[:1].expand_as(weight))
    train_states(model, episodes, StateTrainingConfig(steps=5, batch_size=8, bootstrap=1.0), tmp_path)
    memory = model.begin(torch.randn(9, 1, 4), torch.zeros(9, 0, 2))
    assert model.step(memory, torch.zeros(9, 2))[1].epistemic.max() < 1e-5


def test_training_lowers_the_loss_and_saves_the_result(trained):
    model, episodes, metrics, out = trained
    assert metrics["nll"] < 0.5 and not model.training
    loaded = StateEnsemble.from_pretrained(out)
    assert torch.equal(loaded.head.weight, model.head.weight)


def test_uncertainty_is_larger_away_from_the_data(trained):
    model, _, _, _ = trained
    near, far = logs(12, seed=5), logs(12, seed=5)
    for episode in far:
        episode["states"] = episode["states"] + np.array([3.0, -3.0, 0, 0], np.float32)

    def uncertainty(episodes):
        states = torch.from_numpy(np.stack([e["states"][:4] for e in episodes]))
        actions = torch.from_numpy(np.stack([e["actions"][:4] for e in episodes]))
        return model.step(model.begin(states, actions[:, :3]), actions[:, 3])[1].epistemic

    assert uncertainty(far).median() > 2 * uncertainty(near).median()


def test_a_run_is_the_same_when_resumed(tmp_path):
    episodes = logs(4)
    whole, first, rest = (tiny(episodes, members=2) for _ in range(3))
    train_states(whole, episodes, StateTrainingConfig(steps=6, batch_size=4), tmp_path / "whole")

    class Stopped(Exception):
        pass

    original, seen = first.forecast, []

    def interrupted(*args, **kwargs):
        seen.append(1)
        if len(seen) == 4:
            raise Stopped
        return original(*args, **kwargs)

    first.forecast = interrupted
    with pytest.raises(Stopped):
        train_states(first, episodes, StateTrainingConfig(steps=6, batch_size=4), tmp_path / "parts")
    train_states(rest, episodes, StateTrainingConfig(steps=6, batch_size=4), tmp_path / "parts")
    assert torch.equal(whole.head.weight, rest.head.weight)


def test_other_data_in_the_same_folder_are_refused(trained):
    model, _, _, out = trained
    with pytest.raises(ConfigError, match="data"):
        train_states(
            model, logs(24, seed=9), StateTrainingConfig(steps=150, batch_size=16, lr=1e-2, ema=0.95), out
        )


def test_bad_settings_and_data_are_explained(tmp_path):
    episodes = logs(2)
    with pytest.raises(ConfigError, match="alpha is 0, expected above 0 and at most 1; try alpha=1"):
        StateTrainingConfig(alpha=0)
    with pytest.raises(ConfigError, match=r"bootstrap is 1\.5"):
        StateTrainingConfig(bootstrap=1.5)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        StateTrainingConfig(batch_size=0)
    model = tiny(episodes)
    other = [e | {"actions": e["actions"][:, :1]} for e in episodes]
    with pytest.raises(
        DatasetError, match="the episodes have 4 state and 1 action dimensions, expected 4 and 2"
    ):
        train_states(model, other, StateTrainingConfig(steps=1), tmp_path)
