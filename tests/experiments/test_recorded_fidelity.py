"""Fidelity on recordings: windows, whose actions are shuffled, what is measured, and intervals over episodes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments.pipelines.recorded_fidelity import HORIZONS, measure, other_actions, over_episodes, windows
from worldgym.errors import ConfigError


def moving(steps, seed):
    """An episode whose picture brightens by 10 times the action, on average."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (steps, 1)).astype(np.float32)
    level = 120 + np.concatenate([[0], np.cumsum(10 * actions[:, 0])])
    frames = np.clip(level, 0, 255).astype(np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8)
    return SimpleNamespace(frames=frames, actions=actions, state=np.zeros((steps + 1, 2), np.float32))


class Knowing:
    """A world model that knows the rule of `moving`; with `deaf` it ignores the actions."""

    def __init__(self, deaf=False):
        self.deaf = deaf
        self.tokenizer = SimpleNamespace(encode=lambda frames: frames, decode=lambda latents: latents)

    def begin(self, frames, actions, generator, states=None):
        return frames[:, -1, 0, 0, 0].double()

    def step(self, level, actions):
        moved = level[:, None] + (0 if self.deaf else 1) * 10 * actions[..., 0].double().cumsum(1)
        frames = moved.clamp(0, 255).byte()[..., None, None, None].expand(-1, -1, 32, 32, 3)
        return moved[:, -1], SimpleNamespace(frames=frames, uncertainty=torch.zeros(len(level)))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(1, 25), st.integers(1, 5))
def test_windows_lie_in_their_episode_and_do_not_overlap(lengths, length, per_episode):
    episodes = [
        SimpleNamespace(
            frames=np.full((n + 1, 1, 1, 3), i, np.uint8), actions=np.arange(n, dtype=np.float32)[:, None],
            state=np.zeros((n + 1, 0), np.float32),
        )
        for i, n in enumerate(lengths)
    ]  # fmt: skip
    if not max(lengths):
        with pytest.raises(ConfigError, match="no episode has an action"):
            windows(episodes, length, per_episode)
        return
    cut = windows(episodes, length, per_episode)
    steps = min(length, max(lengths))
    assert cut.actions.shape[1] == steps and cut.frames.shape[1] == steps + 1
    for number, n in enumerate(lengths):
        own = cut.episode == number
        assert own.sum() == min(per_episode, n // steps)
        assert (cut.frames[own] == number).all()
        covered = cut.actions[own].ravel()
        assert len(np.unique(covered)) == len(covered)
        assert (np.diff(cut.actions[own][..., 0], axis=1) == 1).all()


def test_actions_are_never_those_of_the_same_episode():
    cut = windows([moving(40, seed) for seed in range(3)], 20)
    other = other_actions(cut)
    for window, number in enumerate(cut.episode):
        mine = cut.actions[cut.episode == number]
        assert not any(np.array_equal(other[window], actions) for actions in mine)
    one = windows([moving(40, 0)], 20)
    assert other_actions(one) is None
    donated = other_actions(one, cut)
    assert donated.shape == one.actions.shape and any(np.array_equal(donated[0], a) for a in cut.actions)


def test_a_model_that_follows_actions_is_told_from_one_that_ignores_them():
    cut = windows([moving(40, seed) for seed in range(4)], 20)
    good, deaf = measure(Knowing(), cut), measure(Knowing(deaf=True), cut)
    assert set(good["psnr"]["model"]) == {str(h) for h in HORIZONS}
    assert good["psnr"]["model"]["20"] > 40 > good["psnr"]["first_frame"]["20"]
    assert good["action_sensitivity"]["mean"] > 0.9 and good["gain"]["20"]["low"] > 0
    assert deaf["action_sensitivity"]["mean"] == pytest.approx(0, abs=1e-6)
    assert deaf["psnr"]["model"] == deaf["psnr"]["first_frame"] and deaf["gain"]["20"]["high"] == 0
    assert good["psnr"]["tokenizer"]["20"] == pytest.approx(60) and good["ssim"]["model"]["1"] > 0.99
    assert good["features"]["model"]["20"] < good["features"]["shuffled_actions"]["20"]


def test_short_episodes_are_measured_at_their_own_length():
    facts = measure(Knowing(), windows([moving(3, seed) for seed in range(2)], 20))
    assert facts["steps"] == 3 and set(facts["gain"]) == {"1"}


def test_intervals_resample_episodes_and_not_windows():
    episode = np.repeat(np.arange(4), 50)
    values = np.array([0.0, 0.0, 1.0, 1.0])[episode]
    wide = over_episodes(values, episode)
    assert wide["mean"] == 0.5 and wide["low"] == 0 and wide["high"] == 1
    assert over_episodes(values, np.zeros(200, int)) == {"mean": 0.5, "low": None, "high": None}
