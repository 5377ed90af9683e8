"""Token sequences as data: a layout is a list of segments, and a rule defines which segment may attend to which.

World models, policies and joint video-action models differ in the contents of the sequence and in the attention
pattern, not in the transformer. A new pattern is a new layout or rule, not a new network. The attention masks of
DreamZero, UWM, pi0, VLA-JEPA, Motus and WorldGym can all be written as such rules.

Example::

    layout = SequenceLayout.of(Segment("clean", 0, 16, clean=True), Segment("video", 1, 16), Segment("action", 1, 8))
    layout.mask(joint_video_action())        # (40, 40) bool, True = may attend
    layout.slice("action")                   # slice(32, 40)
    layout.times({("clean", 0): 0.0, ("video", 1): 0.7, ("action", 1): 0.3})       # (40,)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldgym.errors import ConfigError


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of one kind.

    Args:
        role: kind of tokens, such as `video`, `action`, `state` or `text`.
        block: time step of the tokens, at least 0.
        length: number of tokens.
        clean: the tokens carry no noise. Teacher forcing has a clean and a noisy copy of a block in one sequence.

    Raises:
        ConfigError: a negative block or no tokens.
    """

    role: str
    block: int
    length: int
    clean: bool = False

    def __post_init__(self) -> None:
        if self.block < 0 or self.length < 1:
            raise ConfigError(
                f"segment {self.role!r} has block {self.block} and length {self.length}; expected a block of at "
                "least 0 and a length of at least 1"
            )


Rule = Callable[[Segment, Segment], bool]
"""`rule(query, key)`: whether tokens of `query` may attend to those of `key`; may use role, block and clean."""
Kind = tuple[str, bool]
"""Role and `clean` flag."""


def full() -> Rule:
    """Every token attends to every token (UWM; Motus' joint attention)."""
    return lambda query, key: True


def block_causal(window: int | None = None) -> Rule:
    """Full attention inside a block and causal across blocks, at most `window` blocks back (including its own)."""

    def may_attend(query: Segment, key: Segment) -> bool:
        back = query.block - key.block
        return back >= 0 and (window is None or back < window)

    return may_attend


def teacher_forcing(alone: Sequence[str] = ()) -> Rule:
    """Clean past and noisy present in one sequence, so that all blocks are trained in one pass.

    A clean segment attends to the clean segments of its block and of earlier ones. A noisy segment attends to the
    clean segments of earlier blocks and to the noisy ones of its own block.

    Args:
        alone: roles whose noisy segments attend to themselves only; the other segments still attend to them.
    """

    def may_attend(query: Segment, key: Segment) -> bool:
        if query.clean:
            return key.clean and key.block <= query.block
        if query.role in alone:
            return not key.clean and (query.role, query.block) == (key.role, key.block)
        return key.block < query.block if key.clean else key.block == query.block

    return may_attend


def joint_video_action(state: str = "state") -> Rule:
    """Joint video and action denoising as in DreamZero (arXiv 2602.15922): `teacher_forcing` in which
    proprioception attends to itself only, because it is given and not predicted.
    """
    return teacher_forcing(alone=(state,))


def encoder_decoder(memory: Sequence[str], causal: bool = False) -> Rule:
    """Segments of the `memory` roles attend to one another; the others attend to the memory and to one another.

    Args:
        memory: roles of the inputs, such as image and text. They never attend to the rest (the prefix of pi0).
        causal: the others attend to their own and earlier blocks only.
    """

    def may_attend(query: Segment, key: Segment) -> bool:
        if key.role in memory:
            return True
        return query.role not in memory and (not causal or key.block <= query.block)

    return may_attend


@dataclass(frozen=True)
class SequenceLayout:
    """The segments of a token sequence, in order.

    Args:
        segments: at least one segment.

    Raises:
        ConfigError: there is no segment.
    """

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", tuple(self.segments))
        if not self.segments:
            raise ConfigError(
                "a layout needs at least one segment, e.g. Segment('video', block=0, length=16)"
            )

    @classmethod
    def of(cls, *segments: Segment) -> SequenceLayout:
        """Create a layout from segments."""
        return cls(segments)

    @property
    def length(self) -> int:
        """Number of tokens, L."""
        return sum(segment.length for segment in self.segments)

    @property
    def lengths(self) -> Tensor:
        """Number of tokens of each segment, int64."""
        return torch.tensor([segment.length for segment in self.segments])

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Distinct pairs of role and `clean` flag of the segments."""
        return tuple(dict.fromkeys((segment.role, segment.clean) for segment in self.segments))

    def mask(self, rule: Rule, keys: SequenceLayout | None = None) -> Tensor:
        """`(Lq, Lk)` bool over tokens; True where `rule(query, key)` holds.

        Args:
            rule: defines which segments may attend to which.
            keys: layout of the keys; this layout when None.

        Raises:
            ConfigError: the rule lets a segment attend to nothing.
        """
        other = self if keys is None else keys
        rows = [[rule(query, key) for key in other.segments] for query in self.segments]
        for segment, row in zip(self.segments, rows, strict=True):
            if not any(row):
                raise ConfigError(
                    f"the rule lets {segment} attend to nothing; let it attend at least to itself"
                )
        allowed = torch.tensor(rows)
        return allowed.repeat_interleave(self.lengths, 0).repeat_interleave(other.lengths, 1)

    def slices(self) -> list[slice]:
        """Token range of each segment."""
        ends = self.lengths.cumsum(0).tolist()
        return [slice(end - s.length, end) for s, end in zip(self.segments, ends, strict=True)]

    def indices(
        self, role: str | Iterable[str], block: int | None = None, clean: bool | None = None
    ) -> Tensor:
        """Positions, int64, of the tokens of one or several roles, in one block or in all; may be empty."""
        roles = {role} if isinstance(role, str) else set(role)
        found = [
            torch.arange(where.start, where.stop)
            for segment, where in zip(self.segments, self.slices(), strict=True)
            if segment.role in roles
            and (block is None or segment.block == block)
            and (clean is None or segment.clean == clean)
        ]
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.long)

    def slice(self, role: str, block: int | None = None, clean: bool | None = None) -> slice:
        """Token range of one role whose tokens are contiguous.

        Raises:
            ConfigError: there are no such tokens, or they are not contiguous.
        """
        found = self.indices(role, block, clean)
        where = f"role {role!r}" + ("" if block is None else f", block {block}")
        if not len(found):
            raise ConfigError(
                f"this layout has no tokens of {where}; it has {', '.join(map(str, self.kinds))}"
            )
        first, last = int(found[0]), int(found[-1])
        if last - first + 1 != len(found):
            raise ConfigError(f"the tokens of {where} are not contiguous; use indices(), or give the block")
        return slice(first, last + 1)

    def times(self, t_by_segment: Mapping[Any, Tensor | float]) -> Tensor:
        """Noise level of every token, `(B, L)`, or `(L,)` if all levels are numbers.

        Args:
            t_by_segment: level by role, or by (role, block), which has precedence; a number or a tensor `(B,)`. Clean
                segments need no level and get 0.

        Raises:
            ConfigError: the level of a noisy segment is missing.
        """
        levels = []
        for segment in self.segments:
            value = t_by_segment.get((segment.role, segment.block), t_by_segment.get(segment.role))
            if segment.clean:
                value = 0.0
            if value is None:
                raise ConfigError(
                    f"no noise level for {segment}; give t_by_segment[({segment.role!r}, {segment.block})]"
                )
            levels.append(torch.as_tensor(value, dtype=torch.float32))
        stacked = torch.stack(torch.broadcast_tensors(*levels), -1)
        return stacked.repeat_interleave(self.lengths.to(stacked.device), -1)

    def positions(self, grids: Mapping[str, tuple[int, int]] | None = None) -> Tensor:
        """Rotary positions `(L, 3)` of the tokens: block, row and column in the role's grid.

        Args:
            grids: rows and columns of roles whose tokens are image patches. Tokens of other roles have row 0 and
                their index in the segment as column.

        Raises:
            ConfigError: a grid and a segment have different numbers of tokens.
        """
        parts = []
        for segment in self.segments:
            rows, columns = (grids or {}).get(segment.role, (1, segment.length))
            if rows * columns != segment.length:
                raise ConfigError(
                    f"{segment} has {segment.length} tokens, and its grid {rows} x {columns} has {rows * columns}"
                )
            row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            block = torch.full((segment.length,), segment.block)
            parts.append(torch.stack([block, row.flatten(), column.flatten()], -1))
        return torch.cat(parts)

    def order(self, rule: Rule) -> list[list[int]]:
        """Segment indices, in groups that can be processed one after the other with a cache.

        No group attends to a later one. Segments that attend to one another, directly or indirectly, are in one group
        (the strongly connected components of the attention graph, in topological order).
        """
        count = len(self.segments)
        reach = torch.tensor([[q is k or rule(q, k) for k in self.segments] for q in self.segments])
        for middle in range(count):
            reach |= reach[:, middle : middle + 1] & reach[middle : middle + 1]
        groups: dict[int, list[int]] = {}
        for i in range(count):
            both = (reach[i] & reach[:, i]).nonzero().flatten()
            groups.setdefault(int(both[0]), []).append(i)
        return sorted(groups.values(), key=lambda group: (int(reach[group[0]].sum()), group[0]))

    def select(self, numbers: Sequence[int]) -> SequenceLayout:
        """The layout of the segments with these indices, in the given order."""
        return SequenceLayout(tuple(self.segments[i] for i in numbers))
