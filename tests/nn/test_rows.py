"""Batches of rows: copies share nothing, and split, cat, index and scatter agree with each other."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worldgym.errors import ConfigError
from worldgym.nn import RowBatch, row_field


@dataclass(frozen=True)
class Inner(RowBatch):
    deep: Tensor = row_field(1)
    flat: Tensor = row_field()


@dataclass(frozen=True)
class Outer(RowBatch):
    a: Tensor
    inner: Inner
    views: dict[str, Tensor] = field(default_factory=dict)
    members: tuple[Inner, ...] = ()
    none: Tensor | None = None
    name: str = "x"


def batch(n: int, seed: int = 0) -> Outer:
    g = torch.Generator().manual_seed(seed)
    inner = lambda: Inner(torch.rand(2, n, 3, generator=g), torch.arange(n) + 10 * seed)  # noqa: E731
    return Outer(
        torch.rand(n, 2, generator=g), inner(), {"wrist": torch.rand(n, 4, generator=g)}, (inner(), inner())
    )


def same(one: Outer, other: Outer) -> bool:
    return all(torch.equal(x, y) for x, y in zip(one.tensors(), other.tensors(), strict=True))


@given(n=st.integers(1, 9), pieces=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_what_is_split_is_joined_again(n, pieces):
    whole = batch(n)
    parts = whole.split(pieces)
    assert len(parts) <= pieces and same(Outer.cat(parts), whole)
    assert [len(part.a) for part in parts] == [len(x) for x in torch.arange(n).chunk(pieces)]


@given(data=st.data(), n=st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_scattered_rows_are_those_of_the_other_batch(data, n):
    rows = torch.tensor(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n, unique=True)))
    whole, other = batch(n), batch(len(rows), seed=1)
    merged = whole.scatter(rows, other)
    assert same(merged.index(rows), other)
    rest = torch.tensor([i for i in range(n) if i not in rows.tolist()], dtype=torch.long)
    assert same(merged.index(rest), whole.index(rest))


def test_copies_share_no_memory():
    whole = batch(3)
    for copied in (whole.clone(), whole.index(torch.tensor([0, 1, 2]))):
        for x in copied.tensors():
            x.zero_()
        assert same(whole, batch(3))
    assert whole.none is None and whole.replace(name="y").name == "y"


def test_batches_of_different_kinds_are_refused():
    with pytest.raises(ConfigError, match="do not fit together"):
        Outer.cat([batch(2), batch(2).replace(name="other")])


def test_scatter_keeps_the_memory_format_by_which_convolutions_round():
    """Torch's `index_copy` returns a contiguous tensor, and the rows that were not replaced would round otherwise."""

    @dataclass(frozen=True)
    class Latents(RowBatch):
        latent: Tensor

    frames = Latents(torch.rand(4, 8, 6, 6).to(memory_format=torch.channels_last))
    out = frames.scatter(torch.tensor([1]), Latents(torch.rand(1, 8, 6, 6)))
    assert out.latent.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out.latent[2:], frames.latent[2:])
