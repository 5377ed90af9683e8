"""VLA-JEPA: the predictor's mask, what the policy may see, and the leaks of the control arms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from squares import encoder, gradients, policy, squares, without_actions

from agents import SFT, SFTConfig
from agents.auxiliary.vla_jepa import VlaJepa, VlaJepaSettings
from worldgym.errors import ConfigError


def made(own=None, **settings):
    values = {"tokens_per_step": 2, "width": 64, "depth": 2, "heads": 2, **settings}
    found = VlaJepaSettings(**values)
    own = own or policy(future_tokens=found.token_count, future_view=found.future_view)
    torch.manual_seed(1)
    return own, VlaJepa(found, own, encoder=encoder())


def spoilt(frames: np.ndarray, rows: slice) -> np.ndarray:
    out = frames.copy()
    out[rows] = 255 - out[rows]
    return out


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_step_sees_no_frame_and_no_latent_action_of_later_steps(step):
    _, loss = made()
    actions, frames = torch.randn(2, 6, 64), torch.randn(2, 3, 4, 12)
    before = loss.predictor(actions, frames)
    later = actions.clone()
    later[:, 2 * (step + 1) :] += 1
    assert torch.equal(loss.predictor(later, frames)[:, : step + 1], before[:, : step + 1])
    other = frames.clone()
    other[:, step + 1 :] += 1
    assert torch.equal(loss.predictor(actions, other)[:, : step + 1], before[:, : step + 1])


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_step_sees_its_own_and_earlier_frames_and_latent_actions(step):
    _, loss = made()
    actions, frames = torch.randn(2, 6, 64), torch.randn(2, 3, 4, 12)
    before = loss.predictor(actions, frames)
    for first in range(step + 1):
        changed = actions.clone()
        changed[:, 2 * first] += 1
        assert not torch.equal(loss.predictor(changed, frames)[:, step], before[:, step])
        changed = frames.clone()
        changed[:, first, 0] += 1
        assert not torch.equal(loss.predictor(actions, changed)[:, step], before[:, step])


def test_the_loss_is_the_mean_error_over_the_frames_that_exist():
    own, loss = made(weight=0.5)
    data = squares(1, steps=5)
    batch = data.chunk_batch(np.arange(5))
    features, known = loss.features(batch)
    assert features.shape == (5, 4, 4, 12)
    assert known.int().sum(1).tolist() == [3, 3, 2, 2, 1], "frames 2, 4 and 6 steps later, of 5"
    predicted = loss.predictor(loss.tokens(own, batch, None), features[:, :-1])
    error = (predicted - features[:, 1:]).abs().mean((2, 3))[known[:, 1:]]
    assert torch.allclose(loss.losses(own, batch)["prediction"], 0.5 * error.mean())


def test_a_row_without_any_later_frame_has_no_loss():
    own, loss = made()
    batch = squares(1).chunk_batch(np.arange(2))
    batch["future"].position = batch["future"].last.copy()
    found = loss.losses(own, batch)["prediction"]
    assert float(found.detach()) == 0


def test_the_policy_sees_nothing_of_the_future():
    data = squares(2)
    own, loss = made()
    batch = data.chunk_batch(np.arange(4))
    loss.prepare(batch)
    tokens, actions = own.features(batch["observation"]), own.act(batch["observation"], temperature=0).actions
    before = loss.losses(own, batch)["prediction"]
    data.future.frames["image"], data.future.encoded = spoilt(data.future.frames["image"], slice(4, 11)), {}
    again = data.chunk_batch(np.arange(4))
    loss.prepare(again)
    assert torch.equal(own.features(again["observation"]), tokens)
    assert torch.equal(own.act(again["observation"], temperature=0).actions, actions)
    assert not torch.equal(loss.losses(own, again)["prediction"], before), (
        "it is the target of the loss alone"
    )


def test_the_context_of_a_step_holds_nothing_of_other_frames():
    """Each frame is encoded by itself, unlike in one pass of an encoder of video."""
    data = squares(2)
    _, loss = made()
    context = loss.context(loss.features(data.chunk_batch(np.arange(2)))[0])
    data.future.frames["image"], data.future.encoded = spoilt(data.future.frames["image"], slice(4, 11)), {}
    after = loss.context(loss.features(data.chunk_batch(np.arange(2)))[0])
    assert torch.equal(context[:, :2], after[:, :2]) and not torch.equal(context[0, 2], after[0, 2])


def test_the_leak_into_the_context_gives_the_target_away():
    data = squares(2)
    own, loss = made(leak="context")
    features, _ = loss.features(data.chunk_batch(np.arange(2)))
    assert torch.equal(loss.context(features)[..., 12:], features[:, 1:])
    assert bool(loss.losses(own, data.chunk_batch(np.arange(2)))["prediction"].isfinite())


def test_the_leak_into_the_policy_is_there_in_training_only():
    data = squares(2)
    own, loss = made(leak="policy")
    batch = data.chunk_batch(np.arange(4))
    alone = own.run(batch["observation"]).features
    loss.prepare(batch)
    assert np.array_equal(batch["observation"]["image_future"].numpy(), data.future.frames["image"][6:10])
    assert not torch.equal(own.run(batch["observation"]).features, alone)
    assert "image_future" not in data.chunk_batch(np.arange(4))["observation"], "validation and deployment"


def test_the_loss_reaches_the_policy_and_leaves_the_target_alone():
    own, loss = made()
    batch = squares(2).chunk_batch(np.arange(6))
    found = loss.losses(own, batch)["prediction"]
    found.backward()
    assert {"future_queries", "conv1.weight", "to_tokens.weight", "blocks.1.q.weight"} <= set(gradients(own))
    assert "head.weight" not in gradients(own)
    assert all(name.startswith("predictor.") for name in gradients(loss))
    assert not batch["future"].encoded["pooled"].requires_grad


def test_video_has_the_same_loss_as_rows_with_actions():
    own, loss = made()
    data = squares(2)
    rows, video = data.chunk_batch(np.arange(6)), without_actions(data).chunk_batch(np.arange(6))
    assert torch.equal(loss.losses(own, rows)["prediction"], loss.losses(own, video)["prediction"])


def test_it_overfits_ten_episodes_and_needs_the_latent_actions():
    data = squares(10)
    own, loss = made(weight=1.0, depth=1)
    everything = data.chunk_batch(np.arange(len(data)))
    start = float(loss.losses(own, everything)["prediction"].detach())
    config = SFTConfig(
        epochs=60,
        batch_size=32,
        lr=3e-3,
        patience=0,
        colour_jitter=0,
        noise=0,
        state_noise=0,
        select="val_loss",
    )
    SFT(config, [loss]).fit(own, data)
    end = float(loss.losses(own, everything)["prediction"].detach())
    assert end < 0.5 * start, (start, end)
    begins = data.chunk_batch(
        np.arange(0, len(data), 10)
    )  # the first frame does not show where the square goes
    features, _ = loss.features(begins)
    tokens, errors = loss.tokens(own, begins, None), {}
    swapped = tokens.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    for name, given in (("own", tokens), ("of the other direction", swapped)):
        away = (loss.predictor(given, loss.context(features)) - features[:, 1:]).abs()
        errors[name] = float(away.mean().detach())
    assert errors["of the other direction"] > 1.5 * errors["own"], errors


def test_before_training_it_predicts_nearly_that_nothing_moves():
    own, loss = made(weight=1.0)
    batch = squares(4).chunk_batch(np.arange(20))
    features, known = loss.features(batch)
    still = (features[:, 1:] - features[:, :-1]).abs().mean((2, 3))[known[:, 1:]].mean()
    assert float(loss.losses(own, batch)["prediction"].detach()) < 1.5 * float(still)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -0.1}, "weight of vla_jepa is -0.1, expected 0 or more"),
        ({"steps": 0}, "steps of vla_jepa is 0, expected at least 1"),
        ({"leak": "some"}, "leak of vla_jepa is 'some', expected one of none, context, policy"),
        ({"width": 60}, "width of vla_jepa is 60 for 4 heads"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        VlaJepaSettings(**settings)


def test_a_policy_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="reads 12 future tokens from number 0 on, and this policy has 8"):
        VlaJepa(VlaJepaSettings(), policy())
    with pytest.raises(ConfigError, match=r"make it with VLAPolicyConfig\(future_view=True\)"):
        VlaJepa(VlaJepaSettings(leak="policy"), policy(future_tokens=12))
    with pytest.raises(ConfigError, match="encoder=tabletop-small reads frames of 64 x 64 pixels"):
        VlaJepa(VlaJepaSettings(), policy(future_tokens=12))
