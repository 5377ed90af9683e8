"""Rewards shaped by the judge's log odds: they sum to the ends alone, and pay the way as well as the success."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldgym.imagination.rules import potential


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.floats(0.5, 1.0))
def test_shaping_by_potential_telescopes_so_that_it_changes_no_ranking(said, discount):
    """Ng, Harada, Russell 1999: the discounted sum of what is added depends on the two ends alone."""
    p = np.array(said)
    phi = potential(p)
    added = discount * phi[1:] - phi[:-1]
    total = sum(discount**t * x for t, x in enumerate(added))
    assert total == pytest.approx(discount ** (len(p) - 1) * phi[-1] - phi[0], abs=1e-9)
    assert (np.abs(phi) <= 0.5 + 1e-9).all() and (np.diff(phi[np.argsort(p)]) >= 0).all()


def test_potential_rewards_pay_the_success_and_the_way_there(make_one):
    env = make_one(noise=0.0, judge_every=1, horizon=6, reward_kind="potential", discount=0.9)
    env.reset(seed=0)
    last, seen = None, []
    for _ in range(6):
        _, reward, terminated, truncated, info = env.step(np.zeros(4, np.float32))
        if last is not None:
            expected = 0.9 * potential(np.array(info["p_success"])) - potential(np.array(last))
            assert reward == pytest.approx(float(expected) + float(info["success"]))
        last = info["p_success"]
        seen.append(reward)
        if terminated or truncated:
            break
    assert len(seen) > 1
