"""FLARE: what its loss reads, and where its gradient goes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from squares import encoder, gradients, policy, squares, without_actions

from agents import SFT, SFTConfig
from agents.auxiliary.flare import Flare, FlareSettings
from worldgym.errors import ConfigError


def made(own=None, **settings):
    own = own or policy()
    torch.manual_seed(1)
    loss = Flare(FlareSettings(**settings), own, encoder=encoder())
    loss.begin(own)
    return own, loss


@pytest.fixture(params=["ema", "frozen"])
def target(request):
    return request.param


def test_it_reads_the_future_tokens_of_its_layer_and_nothing_else():
    own, loss = made()
    batch = squares(2).chunk_batch(np.arange(6))
    _, hidden = own.loss_and_hidden(batch)
    before = loss.losses(own, batch, hidden)["alignment"]
    others = [torch.zeros_like(h) for h in hidden]
    others[loss.layer][:, -8:] = hidden[loss.layer][:, -8:]
    assert torch.equal(loss.losses(own, batch, others)["alignment"], before)
    others[loss.layer][:, -8:] += torch.randn(6, 8, 64)
    assert not torch.equal(loss.losses(own, batch, others)["alignment"], before)


def test_the_future_enters_through_the_target_only(target):
    own, loss = made(target=target)
    data = squares(2)
    batch = data.chunk_batch(np.arange(6))
    before, tokens = loss.losses(own, batch), own.features(batch["observation"])
    actions = own.act(batch["observation"], temperature=0).actions
    data.future.encoded.clear()
    data.future.frames["image"] = data.future.frames["image"].copy()
    data.future.frames["image"][6:11] = (
        255 - data.future.frames["image"][6:11]
    )  # later than these rows, in time
    data.future.position = np.array([*range(6), *data.future.position[6:]])
    batch = data.chunk_batch(np.arange(5))
    after = loss.losses(own, batch)
    assert torch.equal(own.features(batch["observation"]), tokens[:5])
    assert torch.equal(own.act(batch["observation"], temperature=0).actions, actions[:5])
    assert not torch.equal(after["alignment"], before["alignment"])


def test_the_alignment_is_one_minus_the_cosine_times_the_weight():
    own, loss = made(weight=0.5)
    batch = squares(2).chunk_batch(np.arange(6))
    ours = loss.projector(own.features(batch["observation"], loss.layer)[:, -8:])
    goal = loss.target(batch, batch["future"])
    wanted = 0.5 * (1 - torch.nn.functional.cosine_similarity(ours, goal, dim=-1)).mean()
    assert torch.allclose(loss.losses(own, batch)["alignment"], wanted)
    assert goal.shape == (6, 8, 64) and not goal.requires_grad


def test_the_alignment_reaches_the_policy_and_never_its_target(target):
    own, loss = made(target=target)
    batch = squares(2).chunk_batch(np.arange(6))
    loss.losses(own, batch)["alignment"].backward()
    found, mine = gradients(own), gradients(loss)
    assert {"future_queries", "conv1.weight", "to_tokens.weight", "blocks.0.q.weight"} <= set(found)
    assert "head.weight" not in found and not any(name.startswith("pointer.") for name in found)
    assert mine and all(name.startswith("projector.") for name in mine)


def test_making_the_target_aware_of_actions_trains_the_q_former_alone(target):
    own, loss = made(target=target)
    batch = squares(2).chunk_batch(np.arange(6))
    loss.losses(own, batch)["target_action"].backward()
    assert not gradients(own)
    assert {name.split(".")[0] for name in gradients(loss)} == {"former", "action_head"}


def test_the_target_moves_by_one_minus_rho():
    own, loss = made(rho=0.995)
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    with torch.no_grad():
        for parameter in (*own.parameters(), *loss.former.parameters()):
            parameter.add_(1.0)
    own.state_mean.add_(3.0)
    loss.after_step(own)
    after = loss.state_dict()
    for name, parameter in own.named_parameters():
        start = before[f"target_encoder.{name}"]
        wanted = torch.lerp(start, parameter.detach(), 1 - 0.995)
        assert torch.equal(after[f"target_encoder.{name}"], wanted), name
        assert torch.allclose(
            after[f"target_encoder.{name}"] - start, torch.full_like(start, 0.005), atol=1e-6
        )
    for name, parameter in loss.former.named_parameters():
        start = before[f"target_former.{name}"]
        assert torch.equal(after[f"target_former.{name}"], torch.lerp(start, parameter.detach(), 1 - 0.995))
    assert torch.equal(after["target_encoder.state_mean"], own.state_mean), "input statistics are copied"


def test_a_frozen_encoder_stays_and_only_its_q_former_follows():
    own, loss = made(target="frozen")
    assert loss.target_encoder is None and not any("encoder" in name for name in loss.state_dict())
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(1.0)
    batch = squares(2).chunk_batch(np.arange(6))
    before = loss.target(batch, batch["future"])
    loss.after_step(own)
    assert torch.allclose(loss.target(batch, batch["future"]), before, atol=1e-5)


def test_rows_without_actions_have_no_action_loss_and_still_train_the_encoder():
    own, loss = made()
    video = without_actions(squares(2)).chunk_batch(np.arange(6))
    found = loss.losses(own, video)
    assert set(found) == {"alignment"} and bool(found["alignment"].isfinite())
    found["alignment"].backward()
    assert {"conv1.weight", "conv3.weight", "future_queries"} <= set(gradients(own))


def test_partly_known_actions_count_where_they_are_known():
    own, loss = made(standardise=False)
    batch = squares(2).chunk_batch(np.arange(6))
    whole = loss.losses(own, batch)["target_action"]
    batch["actions"] = batch["actions"].copy()
    batch["actions"][3:] = np.nan
    half = loss.losses(own, batch)["target_action"]
    first = squares(2).chunk_batch(np.arange(3))
    assert torch.allclose(half, loss.losses(own, first)["target_action"]) and not torch.equal(half, whole)


def test_rows_without_a_later_frame_have_no_loss():
    own, loss = made()
    batch = squares(1).chunk_batch(np.arange(3))
    batch["future"].position = batch["future"].last.copy()
    alignment = loss.losses(own, batch)["alignment"]
    assert float(alignment.detach()) == 0
    alignment.backward()
    assert not gradients(own)


def test_raw_tokens_hardly_tell_frames_apart_before_training_and_standardised_ones_do():
    shares = {}
    for standardise in (False, True):
        own, loss = made(standardise=standardise)
        batch = squares(10).chunk_batch(np.arange(0, 100, 5))
        unit = torch.nn.functional.normalize(loss.target(batch, batch["future"]), dim=-1)
        shares[standardise] = float(1 - unit.mean(0).square().sum(-1).mean())
    assert shares[False] < 0.1 < 0.8 < shares[True], shares


def test_the_usual_layer_is_three_quarters_of_the_depth():
    assert [Flare.usual_layer(depth) for depth in (1, 2, 3, 4, 8, 12)] == [0, 1, 1, 2, 5, 8]


def test_it_overfits_ten_episodes():
    data, own = squares(10), policy()
    loss = Flare(FlareSettings(), own)
    start = float(loss.losses(own, data.chunk_batch(np.arange(len(data))))["alignment"].detach())
    seen: list[dict[str, float]] = []
    config = SFTConfig(epochs=40, batch_size=32, lr=2e-3, patience=0, colour_jitter=0, noise=0, state_noise=0)
    SFT(config, [loss]).fit(own, data, on_epoch=seen.append)
    assert seen[-1]["aux/flare/alignment"] < 0.4 * start, (start, seen[-1])
    assert seen[-1]["aux/flare/target_action"] < 0.5 * seen[0]["aux/flare/target_action"]
    goal = loss.target(data.chunk_batch(np.arange(20)), data.select(np.arange(20)).future)
    assert float(goal.flatten(1).std(0).mean()) > 0.5, "the target tells frames apart"


def test_a_deep_copy_of_the_policy_is_the_start_of_the_target():
    own, loss = made()
    held = copy.deepcopy(own)
    own.set_state_stats(np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32) * 7)
    loss.begin(own)
    assert torch.equal(loss.target_encoder.state_std, own.state_std) and not torch.equal(
        held.state_std, own.state_std
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -1.0}, "weight of flare is -1, expected 0 or more"),
        ({"weight": float("nan")}, "weight of flare is nan"),
        ({"tokens": 0}, "tokens of flare is 0, expected at least 1"),
        ({"rho": 1.5}, "rho of flare is 1.5, expected 0 to 1; try 0.995"),
        ({"target": "siglip"}, "target of flare is 'siglip', expected one of ema, frozen"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        FlareSettings(**settings)


def test_a_policy_that_does_not_fit_is_refused():
    with pytest.raises(
        ConfigError, match=r"reads 8 future tokens .* and this policy has 0; make it with .*tokens=8"
    ):
        Flare(FlareSettings(), policy(future_tokens=0))
    with pytest.raises(
        ConfigError, match="layer is 2, and this policy has 2 transformer layers, expected -2 to 1"
    ):
        Flare(FlareSettings(layer=2), policy())
    with pytest.raises(ConfigError, match="reads frames of 64 x 64 pixels, and the policy those of 16 x 16"):
        Flare(FlareSettings(target="frozen"), policy())
    with pytest.raises(ConfigError, match="needs a policy with future_tokens"):
        Flare(FlareSettings(), torch.nn.Linear(2, 2))
    own, loss = made()
    with pytest.raises(ConfigError, match=r"needs later frames, .* chunk_dataset\(episodes, future=True\)"):
        loss.losses(own, squares(2, future=False).chunk_batch(np.arange(2)))
