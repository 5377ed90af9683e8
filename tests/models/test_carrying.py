"""What the dynamics knows of carrying: frames moved as the hand moves, the first frame along with what it carries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from worldgym.models import VideoWorldModel, WorldModelConfig

TINY = WorldModelConfig.preset("tiny")


def test_the_moved_frame_goes_where_the_hand_goes(monkeypatch):
    from worldgym.models.shift import move_bilinearly

    net = VideoWorldModel(TINY).dynamics
    monkeypatch.setattr(net.shift, "forward", move_bilinearly)  # an untrained net moves to nowhere
    spot = torch.zeros(1, 8, 8, 8)
    spot[..., 4, 3] = 1.0
    one = torch.tensor(net.config.shift[0]).argmax()
    action = torch.zeros(1, 4)
    action[0, one] = 2 / net.config.shift[0][one]  # two cells to the right
    with torch.no_grad():
        moved = net.move(spot, net.cells(action, torch.zeros(1, 4)))
    expected = torch.zeros_like(spot)
    expected[..., 4, 5] = 1.0
    assert torch.allclose(moved, expected, atol=1e-3)


def test_only_what_is_between_the_fingers_is_carried():
    net = VideoWorldModel(TINY).dynamics
    low, high = net.config.holding
    inside, wide = (low + high) / 2, high + 1.0
    states = torch.zeros(1, 6, 4)
    states[0, :, 0] = torch.arange(6.0)
    states[0, :, 3] = torch.tensor(
        [wide, inside, inside, wide, inside, low - 1.0]
    )  # the last closes on nothing
    states[0, :, 2] = net.config.low + 1.0
    place = net.hand(states)[0]
    carried = net.travel(states)[0]
    once = place[2] - place[1]
    assert not carried[:2].any()
    assert torch.allclose(carried[2:], once.expand(4, 2), atol=1e-6)


def test_what_a_low_hand_meets_is_pushed_sideways_only():
    net = VideoWorldModel(TINY).dynamics
    low, open_hand = net.config.low, net.config.holding[1] + 1.0
    states = torch.full((1, 5, 4), open_hand)
    states[0, :, 0] = torch.arange(5.0)
    states[0, :, 2] = torch.tensor([low + 1, low - 0.1, low - 0.7, low + 1, low + 0.1])
    carried = net.travel(states)[0]
    level = states.clone()
    level[..., 2] = low
    step = (net.hand(level)[0, 2] - net.hand(level)[0, 1]).detach()
    assert torch.allclose(carried.detach(), torch.stack([0 * step, 0 * step, step, step, step]), atol=1e-6)
    unaware = VideoWorldModel(replace(TINY, dynamics=replace(TINY.dynamics, low=None))).dynamics
    assert not unaware.travel(states).any()


def test_the_anchor_shows_what_is_carried_where_it_is_now(monkeypatch):
    from worldgym.models.shift import move_bilinearly

    net = VideoWorldModel(TINY).dynamics.requires_grad_(False)
    shown: list[torch.Tensor] = []
    monkeypatch.setattr(net.shift, "unfold", lambda z: z)
    monkeypatch.setattr(net, "move", lambda z, _: z)
    monkeypatch.setattr(net.shift, "fold", lambda z, c: shown.append(move_bilinearly(z, c)) or shown[-1])
    spot = torch.zeros(1, 8, 8, 8)
    spot[..., 4, 3] = 1.0
    closed = torch.full((1, 4), sum(net.config.holding) / 2)
    cache = net.empty_cache(spot, closed, torch.float32, carried=torch.tensor([[2.0, -1.0]]))
    monkeypatch.setattr(net, "cells", lambda *_: torch.zeros(1, 2))
    for _ in range(2):  # a second pass over the same frame adds nothing
        net.step(
            torch.zeros_like(spot), torch.zeros_like(spot), torch.ones(1), torch.zeros(1, 4), closed, cache
        )
        expected = torch.zeros_like(spot)
        expected[..., 3, 5] = 1.0
        assert torch.allclose(shown[-1], expected, atol=1e-3)


def test_the_place_of_the_hand_is_learned_from_its_motion():
    torch.manual_seed(0)
    net = VideoWorldModel(TINY).dynamics
    states = torch.randn(256, 2, 4)
    states[:, 1] = states[:, 0]
    actions = torch.rand(256, 1, 4) * 2 - 1
    states[:, 1, :2] += actions[:, 0, :2]
    optimiser = torch.optim.Adam(net.hand.parameters(), 1e-2)
    before = float(net.hand_loss(actions, states).mean().detach())
    for _ in range(150):
        optimiser.zero_grad()
        net.hand_loss(actions, states).mean().backward()
        optimiser.step()
    assert float(net.hand_loss(actions, states).mean().detach()) < 0.5 * before
    assert all(p.grad is None for p in net.motion.parameters())


def test_a_held_frame_needs_the_net_that_moves_it():
    with pytest.raises(ValueError, match="moved=True"):
        replace(TINY.dynamics, moved=False)


def test_a_model_that_knew_carrying_learns_of_pushing_in_its_own_units():
    from worldgym.models.growth import grown

    old = VideoWorldModel(
        replace(TINY, dynamics=replace(TINY.dynamics, low=None), state_mean=(0.0,) * 4, state_std=(0.5,) * 4)
    )
    states = np.random.default_rng(0).uniform(size=(2000, 4)).astype(np.float32)
    new = grown(old, states)
    assert new.config.dynamics.low == pytest.approx(0.2 / 0.5, abs=0.05)  # a fifth of the way up, in halves
    assert new.config.dynamics.holding == old.config.dynamics.holding
    assert all(torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True))
