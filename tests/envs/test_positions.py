"""Truth in pixels: what is drawn is where it is said to be."""

from __future__ import annotations

import numpy as np
import pytest

from envs.tabletop.positions import PARTS, WatchedTabletop, pixel_positions
from envs.tabletop.scene import COLOURS


@pytest.fixture(scope="module")
def env():
    env = WatchedTabletop(terminate_on_success=False, horizon=12)
    yield env
    env.close()


def test_the_pixel_that_is_named_has_the_objects_colour(env):
    right = total = 0
    for seed in range(12):
        observation, _ = env.reset(seed=seed, options={"task": "push"})
        found = pixel_positions(env.batch.simulation())
        for k, colour in enumerate(PARTS[1:], 1):
            if np.isnan(found[k, 0]):
                continue
            x, y = found[k].astype(int)
            pixel = observation["image"][y, x].astype(float)
            hue = np.array(COLOURS[colour])
            right += np.corrcoef(pixel, hue)[0, 1] > 0.9
            total += 1
    assert total == 36 and right >= 30  # the rest may be behind the hand


def test_positions_scale_with_the_picture(env):
    env.reset(seed=0, options={"task": "reach"})
    small, large = (pixel_positions(env.batch.simulation(), size) for size in (64, 256))
    assert np.allclose(4 * small, large, atol=1e-3, equal_nan=True)


def test_an_episode_is_noted_step_by_step_and_forgotten_at_reset(env):
    env.reset(seed=1, options={"task": "reach"})
    first = env.positions
    for _ in range(3):
        env.step(np.array([1, 0, 0, 1], np.float32))
    assert env.positions.shape == (4, len(PARTS), 2)
    assert env.positions[-1, 0, 0] > first[0, 0, 0] + 3  # the hand went right
    env.reset(seed=2, options={"task": "reach"})
    assert len(env.positions) == 1


def test_colours_that_are_not_on_the_table_are_nowhere(env):
    env.reset(seed=0, options={"task": "reach"})
    scene = env.batch.scene()
    there = {c for c in scene.colours if c}
    absent = [np.isnan(env.positions[0, PARTS.index(c)]).all() for c in COLOURS if c not in there]
    assert all(absent) and len(absent) == len(COLOURS) - len(there)
