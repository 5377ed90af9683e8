"""FAST action tokens: the transform, its inverse, the tokenizer, and the head that draws them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

pytest.importorskip("transformers", reason="needs the extra `vla`")

from agents.policies.hf.fast import FastCodec, chunks_of
from agents.policies.hf.policy import HFVLAPolicy
from worldgym.errors import ConfigError
from worldgym.suite import load_suite

RNG = np.random.default_rng(0)
CHUNKS = np.clip(np.cumsum(RNG.normal(0, 0.15, (300, 8, 3)), 1), -1, 1)


@pytest.fixture(scope="module")
def codec() -> FastCodec:
    return FastCodec.fit(CHUNKS, vocabulary=254)


def test_chunks_come_back_within_the_rounding(codec):
    back = codec.decode(codec.encode(CHUNKS))
    # an orthonormal transform keeps the norm: an error of at most half a step in each of 8 coefficients
    error = np.sqrt(((back - CHUNKS) ** 2).sum(1))
    assert error.max() <= 0.5 / codec.scale * np.sqrt(8) + 1e-6


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float64, (1, 8, 3), elements=st.floats(-1, 1)))
def test_any_chunk_can_be_written_if_its_coefficients_are_in_range(codec, chunk):
    from scipy.fft import dct

    rounded = np.rint(codec.scale * dct(chunk, axis=1, norm="ortho"))
    wanted = rounded.clip(codec.low, codec.high) / codec.scale
    got = dct(codec.decode(codec.encode(chunk)).astype(np.float64), axis=1, norm="ortho")
    if np.abs(codec.decode(codec.encode(chunk))).max() < 1:  # not cut at the bounds of actions
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_smooth_chunks_need_fewer_tokens_than_numbers(codec):
    fresh = np.clip(np.cumsum(np.random.default_rng(1).normal(0, 0.15, (300, 8, 3)), 1), -1, 1)
    assert np.mean([len(code) for code in codec.encode(fresh)]) < 0.75 * 24


def test_a_constant_chunk_is_its_first_coefficients(codec):
    same = np.tile(np.array([0.3, -0.2, 0.0]), (1, 8, 1))
    np.testing.assert_allclose(codec.decode(codec.encode(same)), same, atol=0.5 / codec.scale)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 253), max_size=40))
def test_any_tokens_decode_to_actions_in_bounds(codec, tokens):
    actions = codec.decode([tokens])
    assert actions.shape == (1, 8, 3) and np.abs(actions).max() <= 1


def test_settings_survive_json_and_damaged_ones_are_refused(codec):
    again = FastCodec.from_json(codec.to_json())
    assert again.encode(CHUNKS[:5]) == codec.encode(CHUNKS[:5])
    for text in ("{}", "no", codec.to_json().replace('"high": ', '"high": 9')):
        with pytest.raises(ConfigError, match="damaged|lacks the coefficients|expected others"):
            FastCodec.from_json(text)


def test_too_few_tokens_for_the_coefficients_say_what_to_set():
    with pytest.raises(ConfigError, match="set fast_scale below 100.0, or n_bins above"):
        FastCodec.fit(CHUNKS, vocabulary=100, scale=100.0)


# -- the head ----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def policy() -> HFVLAPolicy:
    torch.manual_seed(0)
    chunks = np.concatenate([CHUNKS[:, :5], np.sign(CHUNKS[:, :5, :1] + 1e-9)], -1)
    codec = FastCodec.fit(chunks, vocabulary=120)
    return HFVLAPolicy.for_data(
        load_suite(None).specs, "tiny", settings={"head": "fast", "n_bins": 121, "fast": codec.to_json()}
    ).eval()


def seen(rows: int) -> dict:
    return {
        "image": torch.zeros(rows, 64, 64, 3, dtype=torch.uint8), "state": torch.zeros(rows, 4),
        "instruction": ["push"] * rows,
    }  # fmt: skip


def test_probabilities_end_with_the_chunk(policy):
    out = policy.act(seen(16), temperature=1.0, generator=torch.Generator().manual_seed(0))
    tokens, log_probs = out.trace["tokens"], out.log_probs["action"]
    behind = (tokens == policy.head.end).cumsum(1) - (tokens == policy.head.end).long() > 0
    assert (
        bool(behind.any()) and bool((log_probs[behind] == 0).all()) and bool((log_probs[~behind] < 0).all())
    )
    assert set(out.actions[..., 3].unique().tolist()) <= {-1.0, 1.0}


def test_the_loss_is_the_mean_negative_log_probability_of_the_tokens(policy):
    actions = np.clip(RNG.normal(0, 0.3, (4, 5, 4)), -1, 1).astype(np.float32)
    actions[..., 3] = 1.0
    tokens = policy.head.tokens_of(actions)
    trace = {"tokens": tokens, "action_temperature": torch.ones(4)}
    with torch.no_grad():
        log_probs = policy.evaluate(seen(4), trace).log_probs["action"]
        loss = policy.loss({"observation": seen(4), "actions": actions})["action"]
    counted = log_probs != 0
    torch.testing.assert_close(loss, -log_probs[counted].mean())
    torch.testing.assert_close(torch.from_numpy(actions), policy.head.actions_of(tokens), atol=0.12, rtol=0)


def test_an_unknown_end_of_a_chunk_repeats_the_last_action(policy):
    actions = np.full((1, 5, 4), 0.2, np.float32)
    actions[..., 3] = 1.0
    cut = actions.copy()
    cut[:, 3:] = np.nan
    assert torch.equal(policy.head.tokens_of(cut), policy.head.tokens_of(actions))


def test_a_few_steps_of_training_make_the_tokens_of_one_chunk_likely(policy):
    import copy

    learner = copy.deepcopy(policy).train()
    actions = np.tile(np.array([0.5, -0.5, 0.0, 1.0], np.float32), (8, 5, 1))
    optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        learner.loss({"observation": seen(8), "actions": actions})["action"].backward()
        optimizer.step()
    greedy = learner.eval().act(seen(1), temperature=0.0).actions
    torch.testing.assert_close(greedy, torch.from_numpy(actions[:1]), atol=0.12, rtol=0)


def test_without_data_the_head_says_what_makes_its_tokenizer():
    with pytest.raises(ConfigError, match="worldgym train policy --type hf_vla"):
        HFVLAPolicy.for_data(load_suite(None).specs, "tiny", settings={"head": "fast"})


def test_windows_do_not_cross_episodes():
    from types import SimpleNamespace

    actions = np.arange(9, dtype=np.float32)[:, None]
    arrays = SimpleNamespace(offsets=np.array([0, 4, 9]), has_action=np.array([True, True]), actions=actions)
    assert chunks_of(arrays, 3)[..., 0].tolist() == [[0, 1, 2], [4, 5, 6], [5, 6, 7]]
    with pytest.raises(ConfigError, match="no episode has 5 actions"):
        chunks_of(arrays, 5)
