"""Future tokens of a policy, and the later frames of its training rows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from squares import SIZE, episode, policy, squares

from agents import VLAPolicy, VLAPolicyConfig, chunk_dataset
from worldgym.errors import ConfigError


def test_without_them_nothing_is_saved_about_them(tmp_path):
    policy(future_tokens=0).save_pretrained(tmp_path / "plain")
    config = json.loads((tmp_path / "plain/config.json").read_text())
    assert "future_tokens" not in config and "future_view" not in config
    policy().save_pretrained(tmp_path / "with")
    loaded = VLAPolicy.from_pretrained(tmp_path / "with")
    assert loaded.config.future_tokens == 8 and not loaded.config.future_view


def test_they_are_the_only_new_weights_and_leave_the_initial_values_of_the_others():
    plain, more = policy(future_tokens=0).state_dict(), policy().state_dict()
    assert set(more) - set(plain) == {"future_queries"}
    assert all(torch.equal(plain[name], more[name]) for name in plain)


def test_actions_are_read_from_the_action_queries_alone():
    observation, _ = squares(2).batch(np.arange(4))
    own = policy()
    out = own.run(observation)
    assert out.features.shape == (4, own.chunk, 64)
    assert own.features(observation).shape == (4, 3 + own.chunk + 8, 64)
    last = own.blocks[-1]
    before, seen = own.act(observation, temperature=0).actions, []

    def spoil(module, args, tokens):
        seen.append(1)
        return torch.cat([tokens[:, :-8], tokens[:, -8:] + 100], 1)

    hook = last.register_forward_hook(
        spoil
    )  # after the last layer the future tokens can change nothing any more
    assert torch.equal(own.act(observation, temperature=0).actions, before) and seen
    hook.remove()


def test_the_tokens_are_read_by_the_actions_in_the_layers():
    observation, _ = squares(2).batch(np.arange(4))
    own = policy()
    before = own.run(observation).features
    with torch.no_grad():
        own.future_queries.add_(torch.randn_like(own.future_queries))
    assert not torch.equal(own.run(observation).features, before), "they share one self-attention"


def test_features_are_the_tokens_of_the_pass_that_acts():
    observation, _ = squares(2).batch(np.arange(4))
    own = policy()
    hidden = own.run(observation).hidden
    for layer in (0, 1, -1):
        assert torch.equal(own.features(observation, layer), hidden[layer].float())


def test_the_loss_is_that_of_the_pass_whose_tokens_it_returns():
    batch, own = squares(2).chunk_batch(np.arange(4)), policy()
    losses, hidden = own.loss_and_hidden(batch)
    assert losses == own.loss(batch) and len(hidden) == own.depth and hidden[0].shape[1] == 3 + own.chunk + 8


def test_image_tokens_depend_on_image_and_instruction_alone():
    observation, _ = squares(2).batch(np.arange(4))
    own = policy()
    before = own.image_tokens(observation)
    assert before.shape == (4, 4, 64) and before.dtype == torch.float32
    observation["state"] = observation["state"] + 1
    assert torch.equal(own.image_tokens(observation), before)
    observation["instruction"] = observation["instruction"][::-1]
    assert torch.equal(own.image_tokens(observation), before), "these rows have one instruction"
    observation["image"] = 255 - observation["image"]
    assert not torch.equal(own.image_tokens(observation), before)


def test_a_policy_that_sees_the_future_gets_the_current_frame_in_its_place():
    observation, _ = squares(2).batch(np.arange(4))
    own = policy(future_view=True)
    alone = own.act(observation, temperature=0).actions
    assert torch.equal(
        own.act({**observation, "image_future": observation["image"]}, temperature=0).actions, alone
    )
    later = own.run({**observation, "image_future": 255 - observation["image"]}).features
    assert not torch.equal(later, own.run(observation).features)


def test_a_policy_without_that_view_never_reads_a_later_frame():
    observation, _ = squares(2).batch(np.arange(4))
    own = policy()
    shown = {**observation, "image_future": 255 - observation["image"]}
    assert torch.equal(own.run(shown).features, own.run(observation).features)


def test_later_frames_stop_at_the_end_of_their_episode():
    data = chunk_dataset([episode(0, steps=6), episode(1, steps=4)], future=True)
    later = data.chunk_batch(np.arange(len(data)))["future"]
    frames, there = later.at(5)
    assert there.all() and frames["image"].shape == (10, SIZE, SIZE, 3)
    assert np.array_equal(frames["image"][0].numpy(), episode(0, 6).frames[5])
    assert np.array_equal(frames["image"][3].numpy(), episode(0, 6).frames[6]), "clamped"
    assert np.array_equal(frames["image"][9].numpy(), episode(1, 4).frames[4])
    index, known = later.index(3)
    assert known.tolist() == [True] * 4 + [False] * 2 + [True] * 2 + [False] * 2 and index.max() == 11


def test_the_current_frame_is_the_row_and_selections_share_the_frames():
    data = squares(3)
    rows = np.array([12, 3, 25])
    future = data.select(rows).future
    assert np.array_equal(future.at(0)[0]["image"].numpy(), data.images[rows])
    assert future.frames is data.future.frames and len(future) == 3


def test_rows_at_the_end_of_a_video_have_no_later_frame():
    future = squares(1).future
    future.position[-1] = future.last[-1]
    assert future.at(2)[1].tolist() == [True] * 9 + [False]


def test_each_frame_is_encoded_once_and_by_itself():
    data, calls = squares(2), []

    def encode(frames):
        calls.append(len(frames))
        return frames.float().mean((1, 2, 3))

    first, known = data.future.features("mean", encode, (0, 2, 4))
    again, _ = data.select(np.arange(4)).future.features("mean", encode, (0, 2, 4))
    assert calls == [22] and torch.equal(first[:4], again) and known[0].all() and not known[9].all()
    assert torch.equal(first[0, 1], torch.from_numpy(data.images[2]).float().mean())


def test_negative_counts_are_refused():
    with pytest.raises(ConfigError, match="future_tokens must not be negative; got -1. Try 8"):
        VLAPolicyConfig.preset("tiny", future_tokens=-1)
