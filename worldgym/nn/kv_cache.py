"""A ring buffer of keys and values. Its rows can be copied, replaced and joined.

With a ring buffer, the cost of a step does not depend on the episode length, and the memory per row is constant. Every
row has its own count, so rows of different ages can share one batch (per-slot resets, forks of GRPO groups, candidates
of a planner).

Example::

    cache = KVCache.empty(depth=4, batch=8, heads=4, slots=12, tokens=16, head_dim=64)
    keys, values = cache.write(layer=0, keys=k, values=v)      # k, v (8, 4, 16, 64) -> (8, 4, 192, 64) each
    cache.valid(1)                                             # (8, 192) bool: positions that may be attended to
    cache.advance()                                            # once all layers have written
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldgym.errors import ConfigError
from worldgym.nn.layout import Kind, Rule, Segment, SequenceLayout
from worldgym.nn.rows import RowBatch, row_field

MASKED = -1e4  # added to the score of masked positions; their softmax weight is exactly 0


@dataclass(frozen=True)
class KVCache(RowBatch):
    """Keys and values of the last tokens, in the layout that attention uses, without a copy.

    Args:
        keys: `(depth, B, heads, slots, tokens, head_dim)`.
        values: likewise.
        count: `(B,)` int64, total number of slots that a row has written.
        marks: `(B, slots)` int64, kind of segment of a slot's tokens, an index of `kinds`; -1 if it was not noted.
        kinds: pairs of role and `clean` flag.
    """

    keys: Tensor = row_field(1)
    values: Tensor = row_field(1)
    count: Tensor = row_field()
    marks: Tensor = row_field()
    kinds: tuple[Kind, ...] = ()

    @classmethod
    def empty(
        cls,
        depth: int,
        batch: int,
        heads: int,
        slots: int,
        head_dim: int,
        tokens: int = 1,
        kinds: tuple[Kind, ...] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> KVCache:
        """Create an empty cache.

        Args:
            depth: number of layers.
            batch: B.
            heads: number of attention heads.
            slots: length of the ring; slot i is overwritten by slot i + slots.
            head_dim: dimension of keys and values per head.
            tokens: tokens per slot; 1 if segments have different lengths.
            kinds: role and `clean` flag of the segments to be written; empty if the caller makes its own masks.
            device: device of all tensors.
            dtype: dtype of keys and values.
        """
        shape = (depth, batch, heads, slots, tokens, head_dim)
        return cls(
            torch.zeros(shape, device=device, dtype=dtype),
            torch.zeros(shape, device=device, dtype=dtype),
            torch.zeros(batch, dtype=torch.long, device=device),
            torch.full((batch, slots), -1, dtype=torch.long, device=device),
            kinds,
        )

    @property
    def slots(self) -> int:
        """Length of the ring."""
        return self.keys.shape[3]

    def _where(self, written: int) -> tuple[Tensor, Tensor]:
        """Rows `(B,1)` and slots `(B,n)` of the next `written` slots."""
        if written > self.slots:
            raise ConfigError(f"{written} slots do not fit into a ring of {self.slots}; make a longer cache")
        after = self.count[:, None] + torch.arange(written, device=self.count.device)
        return torch.arange(len(self.count), device=self.count.device)[:, None], after % self.slots

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write `keys` and `values (B, heads, L, head_dim)` of one layer in place; return all that the layer holds.

        The count does not change: writing again overwrites the same slots, and `advance` commits them.

        Returns:
            keys and values `(B, heads, slots * tokens, head_dim)`.
        """
        tokens = self.keys.shape[4]
        rows, slots = self._where(keys.shape[2] // tokens)
        for ring, new in ((self.keys[layer], keys), (self.values[layer], values)):
            ring[rows, :, slots] = new.to(ring.dtype).unflatten(2, (-1, tokens)).transpose(1, 2)
        return self.keys[layer].flatten(2, 3), self.values[layer].flatten(2, 3)

    def valid(self, written: int = 1) -> Tensor:
        """`(B, slots * tokens)` bool: slots that were ever written, including the next `written` slots."""
        slots = torch.arange(self.slots, device=self.count.device)  # slots fill in order; then all are valid
        return (slots < self.count[:, None] + written).repeat_interleave(self.keys.shape[4], 1)

    def advance(self, written: int = 1) -> None:
        """Commit the written slots, in place."""
        self.count.add_(written)

    def retreat(self, written: int = 1) -> None:
        """Undo the last `advance`, in place, so that several passes share one prefix."""
        self.count.sub_(written)
        rows, slots = self._where(written)
        self.marks[rows, slots] = -1

    def check_length(self, layout: SequenceLayout, rule: Rule) -> None:
        """Check that the next slots overwrite nothing that `layout` may attend to by `rule`.

        Raises:
            ConfigError: the ring is too short for the rule, so that a cached step would differ from the masked pass.
        """
        rows, slots = self._where(layout.length)
        for mark in torch.unique(self.marks[rows, slots]).tolist():
            if mark < 0:
                continue
            old = self._segment(mark)
            for query in layout.segments:
                if rule(query, old):
                    raise ConfigError(
                        f"a ring of {self.slots} slots is too short: {query} may attend to {old}, which would be "
                        "overwritten; make a longer cache, or take a rule with a window (block_causal(window))"
                    )

    def _segment(self, mark: int) -> Segment:
        """The segment that a mark stands for, of length 1."""
        block, kind = divmod(mark, max(1, len(self.kinds)))
        return Segment(self.kinds[kind][0], block, 1, self.kinds[kind][1])

    def note(self, layout: SequenceLayout) -> None:
        """Store in place which segments the next slots hold; for caches with one token per slot.

        Raises:
            ConfigError: a kind of segment that is not in `kinds`.
        """
        marks = []
        for segment in layout.segments:
            if (segment.role, segment.clean) not in self.kinds:
                raise ConfigError(
                    f"this cache is for {self.kinds}, got {segment}; make it with kinds=layout.kinds"
                )
            mark = segment.block * len(self.kinds) + self.kinds.index((segment.role, segment.clean))
            marks += [mark] * segment.length
        rows, slots = self._where(layout.length)
        self.marks[rows, slots] = torch.tensor(marks, device=self.marks.device)

    def mask(self, layout: SequenceLayout, rule: Rule) -> Tensor:
        """`(B, L, slots)` bool: slots that each token of `layout`, already noted, may attend to by `rule`."""
        distinct, where = torch.unique(self.marks, return_inverse=True)
        rows = []
        for query in layout.segments:
            row = []
            for mark in distinct.tolist():
                row.append(mark >= 0 and rule(query, self._segment(mark)))
            rows.append(row)
        allowed = torch.tensor(rows, device=self.marks.device)[:, where].transpose(
            0, 1
        )  # (B, segments, slots)
        return allowed.repeat_interleave(layout.lengths.to(allowed.device), 1)


def additive(allowed: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Convert a bool mask to a tensor that is added to attention scores."""
    return torch.zeros(allowed.shape, device=allowed.device, dtype=dtype).masked_fill_(~allowed, MASKED)
