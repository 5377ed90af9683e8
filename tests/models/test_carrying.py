"""What the dynamics knows of carrying: frames moved as the hand moves, the first frame along with what it carries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldgym.models import HandColumns, ObjectMotionConfig, VideoWorldModel, WorldModelConfig
from worldgym.models.video.object_motion import ObjectMotion, bounds_of, window_odds
from worldgym.specs import ObservationSpec, StateField

TINY = WorldModelConfig.preset("tiny")


def _with(**changes) -> WorldModelConfig:
    motion = replace(TINY.dynamics.motion, **changes)
    return replace(TINY, dynamics=replace(TINY.dynamics, motion=motion))


def test_the_moved_frame_goes_where_the_hand_goes(monkeypatch):
    from worldgym.models.video.latent_shift import move_bilinearly

    net = VideoWorldModel(TINY).dynamics.objects
    monkeypatch.setattr(net.shift, "forward", move_bilinearly)  # an untrained net moves to nowhere
    spot = torch.zeros(1, 8, 8, 8)
    spot[..., 4, 3] = 1.0
    one = torch.tensor(net.config.projection[0]).argmax()
    action = torch.zeros(1, 4)
    action[0, one] = 2 / net.config.projection[0][one]  # two cells to the right
    with torch.no_grad():
        moved = net.warp(spot, net.image_motion(action, torch.zeros(1, 4)))
    expected = torch.zeros_like(spot)
    expected[..., 4, 5] = 1.0
    assert torch.allclose(moved, expected, atol=1e-3)


def test_only_what_is_between_the_fingers_is_carried():
    net = VideoWorldModel(TINY).dynamics.objects
    low, high = net.config.grasp_range
    inside, wide = (low + high) / 2, high + 1.0
    states = torch.zeros(1, 6, 4)
    states[0, :, 0] = torch.arange(6.0)
    states[0, :, 3] = torch.tensor(
        [wide, inside, inside, wide, inside, low - 1.0]
    )  # the last closes on nothing
    states[0, :, 2] = net.config.contact_height + 1.0
    place = net.place(states)[0]
    carried = net.displacement(states)[0]
    once = place[2] - place[1]
    assert not carried[:2].any()
    assert torch.allclose(carried[2:], once.expand(4, 2), atol=1e-6)


def test_what_a_low_hand_meets_is_pushed_sideways_only():
    net = VideoWorldModel(TINY).dynamics.objects
    low, open_hand = net.config.contact_height, net.config.grasp_range[1] + 1.0
    states = torch.full((1, 5, 4), open_hand)
    states[0, :, 0] = torch.arange(5.0)
    states[0, :, 2] = torch.tensor([low + 1, low - 0.1, low - 0.7, low + 1, low + 0.1])
    carried = net.displacement(states)[0]
    level = states.clone()
    level[..., 2] = low
    step = (net.place(level)[0, 2] - net.place(level)[0, 1]).detach()
    assert torch.allclose(carried.detach(), torch.stack([0 * step, 0 * step, step, step, step]), atol=1e-6)
    unaware = VideoWorldModel(_with(contact_height=None)).dynamics.objects
    assert not unaware.displacement(states).any()


def test_the_anchor_shows_what_is_carried_where_it_is_now(monkeypatch):
    from worldgym.models.video.latent_shift import move_bilinearly

    dynamics = VideoWorldModel(TINY).dynamics.requires_grad_(False)
    net = dynamics.objects
    shown: list[torch.Tensor] = []
    monkeypatch.setattr(net.shift, "unfold", lambda z: z)
    monkeypatch.setattr(net, "warp", lambda z, _: z)
    monkeypatch.setattr(net.shift, "fold", lambda z, c: shown.append(move_bilinearly(z, c)) or shown[-1])
    spot = torch.zeros(1, 8, 8, 8)
    spot[..., 4, 3] = 1.0
    closed = torch.full((1, 4), sum(net.config.grasp_range) / 2)
    cache = dynamics.empty_cache(spot, closed, torch.float32, displacement=torch.tensor([[2.0, -1.0]]))
    monkeypatch.setattr(net, "image_motion", lambda *_: torch.zeros(1, 2))
    for _ in range(2):  # a second pass over the same frame adds nothing
        dynamics.step(
            torch.zeros_like(spot), torch.zeros_like(spot), torch.ones(1), torch.zeros(1, 4), closed, cache
        )
        expected = torch.zeros_like(spot)
        expected[..., 3, 5] = 1.0
        assert torch.allclose(shown[-1], expected, atol=1e-3)


def test_the_place_of_the_hand_is_learned_from_its_motion():
    torch.manual_seed(0)
    net = VideoWorldModel(TINY).dynamics.objects
    states = torch.randn(256, 2, 4)
    states[:, 1] = states[:, 0]
    actions = torch.rand(256, 1, 4) * 2 - 1
    states[:, 1, :2] += actions[:, 0, :2]
    optimiser = torch.optim.Adam(net.place.parameters(), 1e-2)
    before = float(net.loss(actions, states).mean().detach())
    for _ in range(150):
        optimiser.zero_grad()
        net.loss(actions, states).mean().backward()
        optimiser.step()
    assert float(net.loss(actions, states).mean().detach()) < 0.5 * before
    assert all(p.grad is None for p in net.residual.parameters())


def test_motion_that_does_not_fit_the_data_is_refused():
    with pytest.raises(ValueError, match="projection needs 4"):
        _with(projection=((1.0,), (0.0,)))
    with pytest.raises(ValueError, match="motion=None"):
        _with(hand=HandColumns((0, 1, 2), 4))
    for columns in (((0, 1), 3), ((0, 1, 1), 3), ((0, 1, 2), 2), ((-1, 1, 2), 3)):
        with pytest.raises(ValueError, match="three columns"):
            HandColumns(*columns)


@given(order=st.permutations(range(6)), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_the_columns_of_the_hand_may_be_anywhere(order, seed):
    """The same numbers in other columns give the same grasps, heights, odds and bounds."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(60, 6)).astype(np.float32)
    hand = HandColumns((0, 1, 2), 3)
    moved = HandColumns(tuple(order.index(i) for i in range(3)), order.index(3))
    shuffled = np.ascontiguousarray(states[:, list(order)])
    offsets = np.array([0, 20, 60])
    assert np.array_equal(
        window_odds(states, offsets, 5, 2.0, hand), window_odds(shuffled, offsets, 5, 2.0, moved)
    )
    (grasp, low), (same_grasp, same_low) = bounds_of(states, hand), bounds_of(shuffled, moved)
    assert grasp == pytest.approx(same_grasp, abs=1e-5) and low == pytest.approx(same_low, abs=1e-5)
    still = ((0.0,) * 4,) * 2
    nets = [ObjectMotion(ObjectMotionConfig(h, still, contact_height=-0.5), 8, 4, 6) for h in (hand, moved)]
    one, other = (net.carries(torch.from_numpy(s)) for net, s in zip(nets, (states, shuffled), strict=True))
    assert torch.equal(one, other)


def test_the_hand_is_found_by_its_roles():
    roles = ["joint", "gripper", "ee_position", "ee_position", "ee_position"]
    spec = ObservationSpec(state=tuple(StateField(f"s{i}", role) for i, role in enumerate(roles)))
    assert HandColumns.of(spec) == HandColumns((2, 3, 4), 1)
    assert HandColumns.of(ObservationSpec(state=spec.state[:3])) is None


def test_a_model_that_knew_carrying_learns_of_pushing_in_its_own_units():
    from worldgym.models.video.growth import grown

    old = VideoWorldModel(replace(_with(contact_height=None), state_std=(0.5,) * 4))
    states = np.random.default_rng(0).uniform(size=(2000, 4)).astype(np.float32)
    new = grown(old, states)
    # a fifth of the way up, in halves
    assert new.config.dynamics.motion.contact_height == pytest.approx(0.2 / 0.5, abs=0.05)
    assert new.config.dynamics.motion.grasp_range == old.config.dynamics.motion.grasp_range
    assert all(torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True))
