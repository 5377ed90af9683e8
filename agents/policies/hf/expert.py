"""The action expert of pi0 (arXiv 2410.24164, section IV): a narrow transformer beside a language model.

It has as many layers as the language model. In each, its tokens, one per action of the chunk, attend to the keys and
values that the language model computed for image and prompt, and to each other in both directions. It has its own
width, projections and feed-forward layers.

Example::

    velocity = expert(context, x, t)         # (B,K,A)
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ExpertLayer(nn.Module):
    """Attention to a cache and to the own tokens, and a gated feed-forward layer.

    Args:
        width: width of the expert.
        ffn: width of its feed-forward layer.
        heads: query heads of the language model.
        kv_heads: its key and value heads.
        head_dim: size of its heads.
    """

    def __init__(self, width: int, ffn: int, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.norm, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q = nn.Linear(width, heads * head_dim, bias=False)
        self.k = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.v = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.o = nn.Linear(heads * head_dim, width, bias=False)
        self.gate = nn.Linear(width, ffn, bias=False)
        self.up = nn.Linear(width, ffn, bias=False)
        self.down = nn.Linear(ffn, width, bias=False)

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor, turn: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Tokens `(B,n,width)` after the layer.

        Args:
            x: `(B,n,width)`.
            keys: `(B,kv_heads,L,head_dim)` of the language model, rotated.
            values: likewise.
            mask: `(B,1,n,L+n)` bool.
            turn: cosine and sine of the positions of the n tokens, each `(B,n,head_dim)`.
        """
        b, n, _ = x.shape
        h = self.norm(x)
        q = _rotated(self.q(h).view(b, n, self.heads, self.head_dim).transpose(1, 2), turn)
        k = _rotated(self.k(h).view(b, n, self.kv_heads, self.head_dim).transpose(1, 2), turn)
        v = self.v(h).view(b, n, self.kv_heads, self.head_dim).transpose(1, 2)
        keys, values = (torch.cat([a.to(q.dtype), own.to(q.dtype)], 2) for a, own in ((keys, k), (values, v)))
        out = F.scaled_dot_product_attention(
            q, keys, values, attn_mask=mask, enable_gqa=self.heads != self.kv_heads
        )
        x = x + self.o(out.transpose(1, 2).flatten(2))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def _rotated(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding of `x (B,H,n,D)`, halves of a head as pairs (as Llama in transformers)."""
    cos, sin = (part[:, None].to(x.dtype) for part in turn)
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


class ActionExpert(nn.Module):
    """Velocity of a noised action chunk, given what the language model has read.

    Args:
        decoder: text model of transformers; gives the number of layers and the shape of the heads, and is not kept.
        width: width of the expert.
        ffn: width of its feed-forward layers.
        chunk: K.
        action_dim: A.
    """

    def __init__(self, decoder: Any, *, width: int, ffn: int, chunk: int, action_dim: int) -> None:
        super().__init__()
        shape = decoder.config
        heads = shape.num_attention_heads
        head_dim = getattr(shape, "head_dim", None) or shape.hidden_size // heads
        kv_heads = getattr(shape, "num_key_value_heads", None) or heads
        self.enter = nn.Linear(action_dim, width)
        self.time = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))
        self.place = nn.Parameter(0.02 * torch.randn(chunk, width))
        self.layers = nn.ModuleList(
            ExpertLayer(width, ffn, heads, kv_heads, head_dim) for _ in range(shape.num_hidden_layers)
        )
        self.norm, self.out = nn.RMSNorm(width), nn.Linear(width, action_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        periods = 4e-3 * (4.0 / 4e-3) ** torch.linspace(
            0, 1, width // 2
        )  # as pi0: sensitive to times in [0, 1]
        self.register_buffer("rates", 2 * math.pi / periods, persistent=False)
        self.rates: Tensor

    def forward(self, context: Any, x: Tensor, t: Tensor) -> Tensor:
        """Velocity `(B,K,A)` at `x (B,K,A)` and time `t (B,)`; `context` is an `agents.policies.hf.context.Context`."""
        batch, count = x.shape[:2]
        waves = t[:, None] * self.rates
        when = torch.cat([waves.sin(), waves.cos()], -1)
        when = F.pad(when, (0, self.enter.out_features - when.shape[-1]))[:, None].expand(-1, count, -1)
        tokens = self.time(torch.cat([self.enter(x), when], -1)) + self.place
        mask = torch.cat(
            [context.prefix.real[:, None, None, :].expand(-1, 1, count, -1),
             torch.ones(batch, 1, count, count, dtype=torch.bool, device=x.device)], -1
        )  # fmt: skip
        turn = context.turn(count)
        for layer, kept in zip(self.layers, context.cache.layers, strict=True):
            tokens = layer(tokens, kept.keys, kept.values, mask, turn)
        velocity: Tensor = self.out(self.norm(tokens)).float()
        return velocity
