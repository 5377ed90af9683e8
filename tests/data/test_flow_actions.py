"""Codes of optical flow: they follow what moves, whatever the logged actions are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_joined import robot

from worldgym.data.flow_actions import cell_flows, with_flow_actions
from worldgym.errors import ConfigError, DependencyError

cv2 = pytest.importorskip("cv2", reason='install it with: pip install "worldgym[flow]"')
SIDE = 32


def moving(steps: np.ndarray, seed: int = 0) -> np.ndarray:
    """Frames of a textured patch that moves by `steps (T,2)` pixels, x and y, in front of a still background."""
    rng = np.random.default_rng(seed)
    back = cv2.GaussianBlur(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8), (0, 0), 2)
    patch = cv2.GaussianBlur(rng.integers(0, 256, (12, 12, 3), np.uint8), (0, 0), 1)
    at, frames = np.array([10, 10]), []
    for step in [(0, 0), *steps.tolist()]:
        at = at + np.array(step)
        frame = back.copy()
        frame[at[1] : at[1] + 12, at[0] : at[0] + 12] = patch
        frames.append(frame)
    return np.stack(frames)


def episodes(count: int = 24, length: int = 6):
    """Episodes of a moving patch, and their steps `(N,T,2)`."""
    rng = np.random.default_rng(1)
    steps = rng.integers(-1, 2, (count, length - 1, 2))
    arrays, _ = robot(2, 3, [length] * count, size=(SIDE, SIDE))
    frames = np.concatenate([moving(s, seed) for seed, s in enumerate(steps)])
    return replace(arrays, frames=frames, has_action=np.zeros(count, bool)), steps


def test_the_flow_of_a_cell_is_the_motion_of_what_it_shows():
    found = cell_flows(moving(np.array([[2, 0], [0, -2], [0, 0]])))
    assert found.shape == (3, 8, 8, 2)
    inside = found[:, 3:5, 3:5].mean((1, 2))
    assert np.allclose(inside, [[2, 0], [0, -2], [0, 0]], atol=0.4)
    assert np.abs(found[:, 7]).max() < 0.5, "the background stands still"


def test_codes_tell_the_motion_linearly_and_need_no_actions():
    arrays, steps = episodes()
    coded = with_flow_actions(arrays, hz=5.0)
    assert coded.has_action.all() and not arrays.has_action.any(), "the recordings themselves are not changed"
    assert coded.specs.action.dim == 14 and coded.specs.action.hz == 5.0
    assert np.abs(coded.actions).max() <= 1
    assert not coded.actions[coded.offsets[1:] - 1].any(), "nothing follows the last frame"
    used = np.concatenate([coded.actions[coded.rows(i)][:-1] for i in range(len(coded))])
    target = steps.reshape(-1, 2).astype(float)
    fit = np.arange(len(target)) % 2 == 0
    x = np.c_[used, np.ones(len(used))]
    guess = x @ np.linalg.lstsq(x[fit], target[fit], rcond=None)[0]
    left = ((guess - target)[~fit] ** 2).sum() / ((target - target.mean(0))[~fit] ** 2).sum()
    assert left < 0.5


def test_the_code_is_the_same_every_time():
    arrays, _ = episodes(4)
    assert np.array_equal(with_flow_actions(arrays, 5.0).actions, with_flow_actions(arrays, 5.0).actions)


def test_recordings_that_cannot_give_actions_say_why(monkeypatch):
    arrays, _ = episodes(2)
    still = replace(arrays, frames=np.zeros_like(arrays.frames))
    small, _ = robot(2, 3, [3], size=(8, 8))
    for given, dims, message in (
        (still, 14, "nothing moves"), (small, 14, "at least 16 pixels, got 8x8"), (arrays, 0, "expected 1 to 128"),
        (replace(arrays, specs=None), 14, "load_arrays"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            with_flow_actions(given, 5.0, dims)
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(DependencyError, match=r"worldgym\[flow\]"):
        with_flow_actions(arrays, 5.0)
