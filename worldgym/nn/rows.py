"""Dataclasses of tensors with independent rows: select, replace, split and join rows.

An imagined state consists of a latent, proprioception and a cache, whose tensors have their batch axis at different
positions. Forking, merging and multi-threaded prediction need these operations for any such state.

Example::

    @dataclass(frozen=True)
    class Memory(RowBatch):
        keys: Tensor = row_field(1)      # (depth, B, ...)
        count: Tensor = row_field()      # (B,)

    forked = memory.index(torch.tensor([2, 2, 0]))
    merged = memory.scatter(torch.tensor([1]), other)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from worldgym.errors import ConfigError

Self = TypeVar("Self", bound="RowBatch")
Operation = Callable[..., Any]  # (dim, tensor of the first, tensor of the second, ...) -> tensor


def row_field(dim: int = 0, **settings: Any) -> Any:
    """A dataclass field whose tensors have their rows along axis `dim`; plain fields have them along axis 0."""
    return dataclasses.field(metadata={"row_dim": dim}, **settings)


@dataclass(frozen=True)
class RowBatch:
    """Base class of dataclasses of tensors with rows.

    A field is a tensor, another `RowBatch`, a tuple or mapping of these, None, or plain data shared by all rows.
    """

    def index(self: Self, rows: Tensor) -> Self:
        """Rows `rows (B',)` int64 as a new batch that shares no memory with this one."""
        return _over(lambda dim, x: x.index_select(dim, rows.to(x.device)), self)

    def scatter(self: Self, rows: Tensor, other: Self) -> Self:
        """A new batch with rows `rows (B',)` replaced by all rows of `other`, in order."""
        return _over(lambda dim, x, y: x.clone().index_copy_(dim, rows.to(x.device), y.to(x.dtype)), self, other)

    def split(self: Self, pieces: int) -> list[Self]:
        """Split into at most `pieces` nearly equal batches of consecutive rows, as views."""
        count = len(next(self.tensors(0)))
        sizes = [len(part) for part in torch.arange(count).chunk(pieces)]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return [
            _over(lambda dim, x, at=at, n=n: x.narrow(dim, at, n), self)
            for at, n in zip(starts, sizes, strict=True)
        ]

    @staticmethod
    def cat(batches: Sequence[Self]) -> Self:
        """Join all rows of `batches`, in order; the inverse of `split`."""
        if len(batches) == 1:
            return batches[0]
        return _over(lambda dim, *parts: torch.cat(parts, dim), *batches)

    def clone(self: Self) -> Self:
        """A copy that shares no memory with this one."""
        return _over(lambda dim, x: x.clone(), self)

    def replace(self: Self, **changes: Any) -> Self:
        """A batch with some fields replaced; the others are shared."""
        return dataclasses.replace(self, **changes)

    def tensors(self, dim: int | None = None) -> Iterator[Tensor]:
        """All tensors, depth first; with `dim` only those with their rows along that axis."""
        found: list[Tensor] = []

        def collect(at: int, x: Tensor) -> Tensor:
            if dim is None or at == dim:
                found.append(x)
            return x

        _over(collect, self)
        return iter(found)


def _over(work: Operation, *batches: Any) -> Any:
    first = batches[0]
    values = {
        field.name: _value(
            work, field.metadata.get("row_dim", 0), [getattr(batch, field.name) for batch in batches]
        )
        for field in dataclasses.fields(first)
    }
    return dataclasses.replace(first, **values)


def _value(work: Operation, dim: int, values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return work(dim, *values)
    if isinstance(first, RowBatch):
        return _over(work, *values)
    if isinstance(first, Mapping):
        return {key: _value(work, dim, [value[key] for value in values]) for key in first}
    if isinstance(first, tuple) and any(isinstance(part, (Tensor, RowBatch)) for part in first):
        return tuple(_value(work, dim, parts) for parts in zip(*values, strict=True))
    if any(value != first for value in values[1:]):
        raise ConfigError(f"these batches do not fit together: one holds {first!r}, another one does not")
    return first
