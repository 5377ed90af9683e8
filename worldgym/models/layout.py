"""Attention patterns as data: a layout is a list of segments, a rule says which may attend to which.

Why: world models, policies and joint video-action models differ in what sits in the sequence and who sees whom, not
in the transformer. A new pattern is a new layout, not a new network.

Example::

    layout = [Segment("video", frame=f, length=16) for f in range(4)]
    mask = attention_mask(layout, block_causal(window=3))  # (64, 64) bool, True = may attend
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """`length` tokens of one role at one frame."""

    role: str
    frame: int
    length: int


Rule = Callable[[Segment, Segment], bool]


def block_causal(window: int | None = None) -> Rule:
    """All-to-all inside a frame, causal across frames, at most `window` frames back (itself included)."""

    def may_attend(query: Segment, key: Segment) -> bool:
        back = query.frame - key.frame
        return back >= 0 and (window is None or back < window)

    return may_attend


def attention_mask(layout: Sequence[Segment], rule: Rule) -> Tensor:
    """`(L, L)` bool over tokens, rows are queries; True where `rule(query, key)` holds."""
    rows = torch.tensor([[rule(q, k) for k in layout] for q in layout])
    lengths = torch.tensor([s.length for s in layout])
    return rows.repeat_interleave(lengths, 0).repeat_interleave(lengths, 1)
