"""Advantage-conditioned policies: returns, indicators, effect of the condition, and predicted future tokens."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import VLAPolicy, VLAPolicyConfig
from agents.algorithms.advantage_conditioned import (
    AdvantageConditioned,
    AdvantageConfig,
    advantages,
    indicators,
    log_rows,
    value_targets,
)
from agents.data.demonstrations import ChunkDataset
from agents.policies.conditioned import (
    FLAG_REPEATS,
    FLAGS,
    ConditionedPolicy,
    ForesightPolicy,
    condition_vector,
)
from agents.rollouts.trajectories import Rollouts
from worldgym.errors import ConfigError
from worldgym.models import FrameTokenizer, TokenizerConfig
from worldgym.models.foresight import Foresight

WORDS = "reach the red cube"


def plain():
    torch.manual_seed(0)
    return VLAPolicy(VLAPolicyConfig.preset("tiny", image_size=16)).eval()


def look(n, texts):
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (n, 16, 16, 3), dtype=torch.uint8, generator=generator)
    return {"image": image, "state": torch.randn(n, 4, generator=generator), "instruction": texts}


def episodes(n=4, chunks=3, won=(0,), lengths=(2, 3, 3, 1)):
    out = Rollouts.empty(
        torch.zeros(n, 16, 16, 3, dtype=torch.uint8), torch.zeros(n, 4), [WORDS] * n, 1, (chunks, 5, 4)
    )
    for i, length in enumerate(lengths):
        out.mask[i, :length] = True
    out.reward[list(won)] = 1.0
    return out


def test_returns_count_the_steps_that_success_still_takes():
    values, chunks = value_targets(episodes(), horizon=20)
    assert chunks.tolist() == [2, 3, 3, 1]
    assert values[0, :3] == pytest.approx([-0.5, -0.25, 0.0]) and np.isnan(values[0, 3])
    assert values[1].tolist() == [-1.0] * 4, "a failure is worth -1 from its first frame"


def test_an_exact_critic_sees_no_advantage_in_a_success_and_a_surprise_is_one():
    targets, chunks = value_targets(episodes(), horizon=20)
    won = np.array([True, False, False, False])
    exact = advantages(np.nan_to_num(targets), won, chunks, 5, 20)
    assert exact[0, :2] == pytest.approx([0.0, 0.0]) and np.isnan(exact[0, 2])
    doubtful = np.nan_to_num(targets)
    doubtful[0, :2] = -0.9
    surprised = advantages(doubtful, won, chunks, 5, 20)
    assert surprised[0, 1] == pytest.approx(0.65) and surprised[3, 0] < 0


@given(st.integers(0, 1000), st.floats(0.1, 0.9))
@settings(max_examples=30, deadline=None)
def test_about_the_stated_share_of_every_task_is_good(seed, quantile):
    rng = np.random.default_rng(seed)
    values = rng.random((60, 4)) + np.repeat([0.0, 5.0], 30)[:, None]
    values[:, 3] = np.nan
    good = indicators(values, ["reach"] * 30 + ["push"] * 30, quantile)
    assert not good[:, 3].any()
    for rows in (slice(0, 30), slice(30, 60)):
        assert good[rows, :3].mean() == pytest.approx(1 - quantile, abs=0.03)


def test_told_nothing_new_it_does_what_it_did_before():
    policy = plain()
    made = ConditionedPolicy.of(policy, tokens=3)
    texts = [WORDS, "push the blue ball"]
    asked = {name: np.stack([condition_vector(*how, size=3)] * 2) for name, how in (
        ("bad", (False, np.ones(3))), ("nothing", ())
    )}  # fmt: skip
    for condition in ({}, *({"condition": value} for value in asked.values())):
        one, other = made({**look(2, texts), **condition}), policy(look(2, texts))
        assert torch.allclose(made.head.logits(one.features), policy.head.logits(other.features), atol=1e-5)
    with pytest.raises(ConfigError, match=r"condition must be \(2, 27\); got \(2, 24\)"):
        made({**look(2, texts), "condition": np.stack([condition_vector(True)] * 2)})
    assert condition_vector(True, size=2)[::FLAG_REPEATS].tolist() == [1, 0, 0, 0]
    seen = condition_vector(False, np.array([2.0, 3.0]))
    assert seen[[0, FLAG_REPEATS, 2 * FLAG_REPEATS, -2, -1]].tolist() == [0, 1, 1, 2, 3]
    with pytest.raises(ConfigError, match="ConditionedPolicy.of"):
        ConditionedPolicy(policy.config)


def test_asked_for_good_actions_it_does_what_was_good(tmp_path):
    rng = np.random.default_rng(0)
    n = 64
    actions = np.zeros((n, 5, 4), np.float32)
    good = np.arange(n) % 2 == 0
    actions[good, :, 0], actions[~good, :, 0] = 0.9, -0.9  # good actions move right
    images = np.repeat(
        rng.integers(0, 256, (n // 2, 16, 16, 3), dtype=np.uint8), 2, 0
    )  # both directions from each
    logs = ChunkDataset(
        images,
        np.zeros((n, 4), np.float32),
        [WORDS] * n,
        actions,
        np.arange(n),
        np.full((n, 4), np.nan, np.float32),
    )
    policy = ConditionedPolicy.of(plain())
    policy.train()
    config = AdvantageConfig(lr=3e-3, batch_size=32, demo_share=0.0, learn="all")
    improver = AdvantageConditioned(logs, config)
    first = improver.update(policy, logs, good, steps=1)
    last = improver.update(policy, logs, good, steps=100)
    assert last["loss"] < first["loss"] and last["good"] == 0.5
    seen = {"image": torch.from_numpy(images[:16]), "state": torch.zeros(16, 4)}

    def way(good):
        asked = {} if good is None else {"condition": np.stack([condition_vector(good)] * 16)}
        out = policy.act({**seen, "instruction": [WORDS] * 16, **asked}, temperature=0.0)
        return float(out.actions[:, :, 0].mean())

    assert way(True) > 0.5 > -0.5 > way(False)
    assert way(None) > 0.5, "without a condition it acts as for good=True"
    policy.save_pretrained(tmp_path / "p")
    again = ConditionedPolicy.from_pretrained(tmp_path / "p")
    one, other = (p(look(2, [WORDS] * 2)).features for p in (again, policy))
    assert torch.allclose(one, other, atol=1e-5)


def test_the_pointer_alone_can_be_told_where_it_is_good_to_go():
    rng, n = np.random.default_rng(0), 64
    good = np.arange(n) % 2 == 0
    goals = np.zeros((n, 4), np.float32)
    goals[:, 0] = np.where(good, 1.0, -1.0)  # in standard deviations, since this policy has no data statistics
    images = np.repeat(rng.integers(0, 256, (n // 2, 16, 16, 3), dtype=np.uint8), 2, 0)
    logs = ChunkDataset(
        images,
        np.zeros((n, 4), np.float32),
        [WORDS] * n,
        np.zeros((n, 5, 4), np.float32),
        np.arange(n),
        goals,
    )
    policy = ConditionedPolicy.of(plain())
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    improver = AdvantageConditioned(logs, AdvantageConfig(lr=1e-3, batch_size=32, demo_share=0.0))
    improver.update(policy, logs, good, steps=150)
    changed = {k for k, v in policy.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(name.startswith("pointer.") for name in changed)

    def right(good):
        seen = {
            "image": torch.from_numpy(images[:16]),
            "state": torch.zeros(16, 4),
            "instruction": [WORDS] * 16,
        }
        seen |= {} if good is None else {"condition": np.stack([condition_vector(good)] * 16)}
        with torch.no_grad():
            pointing = policy.point(seen)
        return float((pointing.scores.softmax(-1) * (pointing.places[..., 0] > 0)).sum(-1).mean())

    assert right(True) > 0.9 > 0.1 > right(False)
    assert right(None) > 0.9, "without a condition it acts as for good=True"


def test_failures_are_rows_too():
    data, episode, chunk = log_rows(episodes())
    assert episode.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 3] and chunk.tolist() == [0, 1, 0, 1, 2, 0, 1, 2, 0]
    assert len(data) == 9


def test_foresight_is_told_before_every_chunk(tmp_path):
    tokenizer = FrameTokenizer(
        TokenizerConfig(image_size=16, latent_channels=4, widths=(8, 8, 8), blocks=(1, 1, 1))
    )
    foresight = Foresight.of(tokenizer, futures=1, width=32, depth=1, heads=2, tokens=3).eval()
    policy = ConditionedPolicy.of(plain(), tokens=3)
    heard = []
    whole = ForesightPolicy(policy, foresight)
    policy.act = lambda observation, **how: heard.append(observation["condition"])
    whole.act(look(2, [WORDS] * 2), temperature=0.0)
    assert (
        heard[0].shape == (2, FLAGS + 3)
        and (heard[0][:, :FLAG_REPEATS] == 1).all()
        and heard[0][:, FLAGS:].any()
    )
    del policy.act
    policy.save_pretrained(tmp_path / "policy")
    foresight.save_pretrained(tmp_path / "foresight")
    again = ForesightPolicy.from_pretrained(tmp_path)
    assert again.chunk == 5 and again.config.text_dim == 384 + FLAGS + 3
    one, other = (p.act(look(2, [WORDS] * 2), temperature=0.0).actions for p in (again, whole))
    assert torch.equal(one, other)


def test_impossible_settings_are_refused():
    for bad in ({"quantile": 1.0}, {"dropout": 1.0}, {"lr": 0.0}, {"demo_share": 2.0}):
        with pytest.raises(ConfigError):
            AdvantageConfig(**bad)
    assert dataclasses.asdict(AdvantageConfig())["dropout"] == 0.2
