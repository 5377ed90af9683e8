"""Training of positions: windows from the start of episodes, and slots for the objects that are in the image."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldgym.training.chunk_data import Labels
from worldgym.training.chunk_positions import chosen, in_image, position_loss, roll_positions
from worldgym.training.world_model import LatentEpisodes

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from test_chunk_world_model import model_of  # noqa: E402

MODEL = model_of(("hand", "red", "blue", "green"))


def labelled(rows: int = 4, chunks: int = 3, k: int = 5, seed: int = 0) -> Labels:
    rng = torch.Generator().manual_seed(seed)
    parts = len(MODEL.config.parts)
    states = torch.randn(rows, chunks * k + 1, MODEL.state_dim, generator=rng)
    actions = torch.rand(rows, chunks * k, MODEL.action_dim, generator=rng) * 2 - 1
    where = torch.rand(rows, chunks + 1, parts, 2, generator=rng)
    present = torch.rand(rows, chunks + 1, parts, generator=rng) < 0.6
    none = torch.zeros(rows, MODEL.action_dim)
    return Labels(
        states, torch.zeros(rows, MODEL.state_dim), none, actions, torch.ones(rows, chunks * k, dtype=torch.bool),
        where, present,
    )  # fmt: skip


@given(st.permutations([0, 1, 2]), st.integers(0, 99), st.booleans())
@settings(max_examples=20, deadline=None)
def test_the_order_of_the_slots_does_not_matter(order, seed, true_path):
    labels = labelled(seed=seed)
    which = torch.tensor(order).expand(4, -1)
    path, (slots,) = roll_positions(MODEL, labels, 5, true_path)
    other, (moved,) = roll_positions(MODEL, labels, 5, true_path, which)
    torch.testing.assert_close(path, other, atol=1e-5, rtol=1e-4)
    for a, b in zip(slots, moved, strict=True):
        torch.testing.assert_close(chosen(a.positions, which), b.positions, atol=1e-5, rtol=1e-4)
    losses = [float(position_loss(MODEL, labels, 5, true_path, x)[0].detach()) for x in (None, which)]
    assert np.isclose(*losses, rtol=1e-4)


@given(st.integers(0, 200))
@settings(max_examples=30, deadline=None)
def test_every_object_in_the_first_image_gets_a_slot(seed):
    labels = labelled(seed=seed)
    there = MODEL.objects_of(labels.present[:, 0])
    which = in_image(MODEL, labels)
    if which is None:
        assert bool(there.sum(1).max() == 3), "all objects are in some image"
        return
    assert which.shape[1] == max(1, int(there.sum(1).max()))
    for row, slots in zip(there, which, strict=True):
        assert set(row.nonzero().flatten().tolist()) <= set(slots.tolist()) and len(set(slots.tolist())) == len(slots)


def test_windows_from_the_start_begin_with_the_first_frame_of_an_episode():
    offsets = np.array([0, 9, 16, 30])
    count = int(offsets[-1])
    data = LatentEpisodes(torch.zeros(count, 1), torch.zeros(count, 3), torch.zeros(count, 4), offsets)
    generator = torch.Generator().manual_seed(0)
    index, mask, start, anchor = data.draw(64, 12, generator, from_start=True)
    assert set(start.tolist()) == {0, 9, 16} and np.array_equal(anchor, start)
    lengths = dict(zip(offsets[:-1].tolist(), np.diff(offsets).tolist(), strict=True))
    assert all(int(row.sum()) == min(12, lengths[int(first)] - 1) for row, first in zip(mask, start, strict=True))
    assert set(data.draw(64, 12, generator)[2].tolist()) - {0, 9, 16}, "without it, anywhere"
