"""Self-attention of diffusers' video transformers with a mask, a key-value cache and chosen frame positions.

The blocks of `WanTransformer3DModel` and `CosmosTransformer3DModel` pass their rotary embedding on to the processor of
the self-attention, and pass nothing else. An `Attending` in its place carries everything that one forward pass needs:
the modules hold no state, and passes in several threads do not disturb one another. Keys are cached without rotation
and rotated when they are used: the cached frames then get the positions 0, 1, 2, ... of the window, wherever in the
episode they come from.

Example::

    for layer, block in enumerate(transformer.blocks):
        block.attn1.set_processor(WanSelfAttention(layer))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines `(N, D)` of N tokens."""


@dataclass(frozen=True)
class Attending:
    """What the self-attention of one forward pass needs.

    Args:
        queries: rotary embedding of the tokens of this pass.
        keys: rotary embedding of the cached tokens, then of the tokens of this pass.
        mask: `(N, M + N)` bool, True where a token may attend; None attends to all.
        cached: per layer, keys without rotation and values, `(B, M, 2, heads, D)`; empty without a cache.
        written: per layer, those of the tokens of this pass; filled during the pass. None does not keep them.
    """

    queries: Rotary
    keys: Rotary
    mask: Tensor | None = None
    cached: Sequence[Tensor] = ()
    written: dict[int, Tensor] | None = field(default=None, compare=False)

    def __call__(
        self, layer: int, rotate: Callable[[Tensor, Rotary], Tensor], q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        """Attend with queries, keys and values `(B, N, heads, D)` that are not rotated; `(B, N, heads * D)`."""
        if self.written is not None:
            self.written[layer] = torch.stack([k, v], 2)
        if self.cached:
            old_keys, old_values = self.cached[layer].to(k.dtype).unbind(2)
            k, v = torch.cat([old_keys, k], 1), torch.cat([old_values, v], 1)
        q, k, v = (x.transpose(1, 2) for x in (rotate(q, self.queries), rotate(k, self.keys), v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask).transpose(1, 2).flatten(2)


def rotate_pairs(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate neighbouring dimensions of `x (B, N, heads, D)`, as Wan does."""
    cos, sin = (part[None, :, None, 0::2] for part in rotary)
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2).type_as(x)


def rotate_halves(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate the first half of the dimensions of `x (B, N, heads, D)` with the second, as Cosmos does."""
    cos, sin = (part[None, :, None] for part in rotary)
    first, second = x.float().chunk(2, -1)
    return (x.float() * cos + torch.cat([-second, first], -1) * sin).type_as(x)


class WanSelfAttention:
    """Attention processor of a `WanTransformerBlock.attn1`; given a rotary embedding, it does what diffusers' does.

    Args:
        layer: index of the block.
    """

    def __init__(self, layer: int) -> None:
        from diffusers.models.transformers.transformer_wan import WanAttnProcessor

        self.layer, self.plain = layer, WanAttnProcessor()

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        """Attend; `rotary_emb` is an `Attending`, or a rotary embedding of diffusers."""
        if not isinstance(rotary_emb, Attending):
            return self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        q, k = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states))
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (q, k, attn.to_v(hidden_states)))
        return attn.to_out[1](attn.to_out[0](rotary_emb(self.layer, rotate_pairs, q, k, v)))


class CosmosSelfAttention:
    """Attention processor of a `CosmosTransformerBlock.attn1`; given a rotary embedding, it does what diffusers' does.

    Args:
        layer: index of the block.
    """

    def __init__(self, layer: int) -> None:
        from diffusers.models.transformers.transformer_cosmos import CosmosAttnProcessor2_0

        self.layer, self.plain = layer, CosmosAttnProcessor2_0()

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Tensor:
        """Attend; `image_rotary_emb` is an `Attending`, or a rotary embedding of diffusers."""
        if not isinstance(image_rotary_emb, Attending):
            return self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        heads = (attn.heads, -1)
        q, k, v = (
            project(hidden_states).unflatten(2, heads) for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        out = image_rotary_emb(self.layer, rotate_halves, attn.norm_q(q), attn.norm_k(k), v)
        return attn.to_out[1](attn.to_out[0](out))
