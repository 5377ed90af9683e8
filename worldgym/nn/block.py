"""The transformer block: pre-norm attention and MLP, optionally with modulation, a memory, or cross-attention.

Every transformer of the project uses it: the dynamics (adaLN-single, key-value cache), the joint predictor of value and
future (adaLN), the policy (fixed image memory) and `worldgym.nn.transformer.Transformer`.

Example::

    block = TransformerBlock(width=256, heads=4, activation=nn.SiLU, offset=True)
    y = block(x, modulation=block.modulation(six), mask=mask, rotary=rotary)      # x (B, L, 256), six (B, G, 6, 256)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from worldgym.nn.attention import Rotary, attend

Update = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Modulation(NamedTuple):
    """Adaptive layer norm of a block: each `(B, G, D)`, for G groups of consecutive tokens.

    Args:
        shift: added to the normalised input of attention.
        scale: the normalised input of attention is multiplied by 1 + scale.
        gate: factor of the attention output.
        mlp_shift: as `shift`, for the MLP.
        mlp_scale: as `scale`, for the MLP.
        mlp_gate: as `gate`, for the MLP.
        lengths: number of tokens of each group; None for equal groups, of which G divides L.
    """

    shift: Tensor
    scale: Tensor
    gate: Tensor
    mlp_shift: Tensor
    mlp_scale: Tensor
    mlp_gate: Tensor
    lengths: tuple[int, ...] | None = None


def _by_group(
    work: Callable[..., Tensor],
    tokens: tuple[Tensor, ...],
    groups: tuple[Tensor, ...],
    lengths: tuple[int, ...] | None,
) -> Tensor:
    """Compute `work(*tokens, *groups)` for tokens `(B,L,D)` and groups `(B,G,D)`."""
    x, count = tokens[0], groups[0].shape[1]
    if count in (1, x.shape[1]):
        return work(*tokens, *groups)
    if lengths is None:
        of_group = (y.unflatten(1, (count, -1)) for y in tokens)
        return work(*of_group, *(group[:, :, None] for group in groups)).flatten(1, 2)
    # split, not slices: the gradient of a slice is a tensor of the whole length
    parts = (*(y.split(lengths, 1) for y in tokens), *(group.split(1, 1) for group in groups))
    return torch.cat([work(*part) for part in zip(*parts, strict=True)], 1)


def _scaled(x: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    return x * factor + shift


def _gated(x: Tensor, added: Tensor, gate: Tensor) -> Tensor:
    return x + added * gate


def modulated(x: Tensor, scale: Tensor, shift: Tensor, lengths: tuple[int, ...] | None = None) -> Tensor:
    """Multiply `x (B,L,D)` by `1 + scale` and add `shift`, both `(B,G,D)`."""
    return _by_group(_scaled, (x,), (1 + scale, shift), lengths)


def _added(x: Tensor, added: Tensor, modulation: Modulation | None, gate: str) -> Tensor:
    if modulation is None:
        return x + added
    return _by_group(_gated, (x, added), (getattr(modulation, gate),), modulation.lengths)


class TransformerBlock(nn.Module):
    """Attention and MLP, each with a residual connection.

    Args:
        width: D.
        heads: number of attention heads.
        head_dim: channels per head; `width / heads` when None.
        activation: class of the MLP's activation; the hidden layer is four times as wide as D.
        affine: layer norms have their own weights.
        offset: the block has a learned offset `(6, D)` of the modulation, and gates are 1 + the given value
            (adaLN-single).
        memory: keys and values also come from tokens that are passed to `forward` and not updated.
        context_dim: width of the tokens of a cross-attention between attention and MLP; None for no cross-attention.
        dropout: dropout rate of the outputs of attention and MLP.
        float_softmax: as in `attend`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        head_dim: int | None = None,
        activation: Callable[[], nn.Module] = nn.GELU,
        affine: bool = False,
        offset: bool = False,
        memory: bool = False,
        context_dim: int | None = None,
        dropout: float = 0.0,
        float_softmax: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.memory, self.float_softmax = heads, memory, float_softmax
        inner = heads * head_dim if head_dim else width
        self.norm1 = nn.LayerNorm(width, elementwise_affine=affine)
        if memory:
            self.q, self.kv = nn.Linear(width, inner), nn.Linear(width, 2 * inner)
        else:
            self.qkv = nn.Linear(width, 3 * inner)
        self.out = nn.Linear(inner, width)
        self.cross: CrossAttention | None = None
        if context_dim is not None:
            self.cross = CrossAttention(width, context_dim, heads, inner)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=affine)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), activation(), nn.Linear(4 * width, width))
        self.drop = nn.Dropout(dropout)
        self.offset = nn.Parameter(torch.randn(6, width) / width**0.5) if offset else None

    def modulation(self, six: Tensor | None, lengths: tuple[int, ...] | None = None) -> Modulation | None:
        """Split `six (B, G, 6, D)` into shift, scale and gate of attention, and of the MLP; the offset is added.

        With an offset, gates are one plus that sum (adaLN-single, as in the dynamics). `lengths` as in `Modulation`.
        """
        if six is None:
            return None
        if self.offset is not None:
            six = six + self.offset
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = six.unbind(-2)
        if self.offset is not None:
            gate, mlp_gate = 1 + gate, 1 + mlp_gate
        return Modulation(shift, scale, gate, mlp_shift, mlp_scale, mlp_gate, lengths)

    def split(self, x: Tensor) -> Tensor:
        """Split heads: `(B, L, heads * E)` -> `(B, heads, L, E)`."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def project(
        self, x: Tensor, modulation: Modulation | None = None, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `(B, heads, L, E)` of `x (B,L,D)`; keys and values of the memory come first."""
        h = self.norm1(x)
        if modulation is not None:
            h = modulated(h, modulation.scale, modulation.shift, modulation.lengths)
        if not self.memory:
            q, k, v = self.qkv(h).chunk(3, -1)
            return self.split(q), self.split(k), self.split(v)
        q = self.split(self.q(h))
        source = h if memory is None else torch.cat([memory, h.to(memory.dtype)], 1)
        k, v = self.kv(source).chunk(2, -1)
        return q, self.split(k), self.split(v)

    def finish(
        self,
        x: Tensor,
        attended: Tensor,
        modulation: Modulation | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """Add attention output `(B, L, heads * E)`, cross-attention and MLP to `x (B,L,D)`."""
        x = _added(x, self.drop(self.out(attended)), modulation, "gate")
        if self.cross is not None and context is not None:
            x = x + self.cross(x, context)
        h = self.norm2(x)
        if modulation is not None:
            h = modulated(h, modulation.mlp_scale, modulation.mlp_shift, modulation.lengths)
        return _added(x, self.drop(self.mlp(h)), modulation, "mlp_gate")

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        modulation: Modulation | None = None,
        mask: Tensor | None = None,
        rotary: Rotary | None = None,
        context: Tensor | None = None,
        update: Update | None = None,
    ) -> Tensor:
        """Apply the block: `(B,L,D)` -> `(B,L,D)`.

        Args:
            x: tokens.
            memory: normalised tokens `(B,M,D)`, for blocks with `memory`.
            modulation: output of `modulation`.
            mask: added to the attention scores.
            rotary: rotates queries and keys.
            context: `(B,M,context_dim)`, for blocks with cross-attention.
            update: `update(keys, values)` returns the keys and values to attend to, e.g. `write` of a cache.
        """
        q, k, v = self.project(x, modulation, memory)
        if rotary is not None:
            q, k = rotary.turn(q), rotary.turn(k)
        if update is not None:
            k, v = update(k, v)
        attended = attend(q, k, v, mask, float_softmax=self.float_softmax)
        return self.finish(x, attended, modulation, context)


class CrossAttention(nn.Module):
    """Attention to other tokens, such as text; its output is zero at initialisation.

    Args:
        width: width of the tokens.
        context_dim: width of the other tokens.
        heads: number of attention heads.
        inner: total number of channels of all heads.
    """

    def __init__(self, width: int, context_dim: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.q, self.kv = nn.Linear(width, inner), nn.Linear(context_dim, 2 * inner)
        self.out = nn.Linear(inner, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Attend from `x (B,L,D)` to `context (B,M,context_dim)`; returns `(B,L,D)`."""
        split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # noqa: E731
        k, v = self.kv(context).chunk(2, -1)
        return self.out(attend(split(self.q(self.norm(x))), split(k), split(v)))  # type: ignore[no-any-return]
