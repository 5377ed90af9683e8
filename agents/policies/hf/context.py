"""What an action head reads: image, prompt and proprioception, behind the layers of a language model.

Example::

    context = Context(vlm, prefix)
    hidden = context.read(slots, visible)        # (B,N,D): slots attend to the prefix, and to each other by `visible`
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldgym.utils.devices import autocast


@dataclass(frozen=True)
class Prefix:
    """Embedded inputs of B rows.

    Args:
        embeds: `(B,L,D)`.
        real: `(B,L)` bool, False for padding.
        positions: `(B,L)` int64, or `(3,B,L)` for models with time, height and width positions.
        full: tokens attend to each other in both directions.
    """

    embeds: Tensor
    real: Tensor
    positions: Tensor
    full: bool

    @property
    def visible(self) -> Tensor:
        """`(B,1,L,L)` bool: which token each token attends to. Padding attends to itself, so that no row is empty."""
        length = self.real.shape[1]
        order = torch.ones(length, length, dtype=torch.bool, device=self.real.device)
        seen = self.real[:, None, :] & (order if self.full else order.tril())
        return (seen | torch.eye(length, dtype=torch.bool, device=self.real.device))[:, None]


class Context:
    """The prefix, and the language model that continues it.

    Args:
        decoder: text model of transformers, without its output layer.
        output: its output layer.
        prefix: embedded inputs.
        action_ids: `(n_bins,)` ids of the action tokens, the lowest action first.
        bf16: run the language model in bfloat16.
    """

    def __init__(
        self, decoder: Any, output: Any, prefix: Prefix, action_ids: Tensor, bf16: bool = False
    ) -> None:
        self.decoder, self.output, self.prefix, self.action_ids, self.bf16 = (
            decoder,
            output,
            prefix,
            action_ids,
            bf16,
        )
        self._cache: Any = None

    def __len__(self) -> int:
        return len(self.prefix.embeds)

    @property
    def device(self) -> torch.device:
        """Device of the rows."""
        return self.prefix.embeds.device

    def positions(self, count: int, after: int = 0) -> Tensor:
        """Positions of `count` tokens behind the prefix and `after` more: `(B,count)` or `(3,B,count)`."""
        prefix = self.prefix
        last = torch.where(prefix.real, prefix.positions, -1).amax(
            (0, 2) if prefix.positions.ndim == 3 else 1
        )
        more = last[:, None] + 1 + after + torch.arange(count, device=self.device)
        return more.expand(3, -1, -1) if prefix.positions.ndim == 3 else more

    def _suffix(self, visible: Tensor) -> Tensor:
        """`(B,1,n,L+m)` bool for n tokens that see m tokens behind the prefix by `visible (n,m)`."""
        batch, (n, m) = len(self), visible.shape
        before = self.prefix.real[:, None, None, :].expand(batch, 1, n, -1)
        return torch.cat([before, visible.to(self.device).expand(batch, 1, n, m)], -1)

    def read(self, embeds: Tensor, visible: Tensor) -> Tensor:
        """Hidden states `(B,n,D)` of tokens behind the prefix, in one pass with it.

        Args:
            embeds: `(B,n,D)`.
            visible: `(n,n)` bool, which of these tokens each of them attends to.
        """
        prefix, n = self.prefix, embeds.shape[1]
        top = torch.nn.functional.pad(prefix.visible, (0, n))
        mask = torch.cat([top, self._suffix(visible)], 2)
        positions = torch.cat([prefix.positions, self.positions(n)], -1)
        whole = torch.cat([prefix.embeds, embeds.to(prefix.embeds.dtype)], 1)
        return self.run(whole, mask, positions).last_hidden_state[:, -n:].float()

    def read_all(self, embeds: Tensor, before: int = 0) -> Tensor:
        """Hidden states `(B,before+n,D)` of tokens behind the prefix, and of the last `before` tokens of the prefix.

        Every token attends to every other, also those of the prefix to those behind it. Rows with shorter prefixes are
        read one at a time, because the last token of a prefix must stand right before what follows.

        Args:
            embeds: `(B,n,D)`.
            before: number of tokens of the prefix.
        """
        prefix, n = self.prefix, embeds.shape[1]
        out = []
        for same in _equal_lengths(prefix.real):
            kept = prefix.real[same[0]]
            whole = torch.cat([prefix.embeds[same][:, kept], embeds[same].to(prefix.embeds.dtype)], 1)
            length = whole.shape[1]
            mask = torch.ones(len(same), 1, length, length, dtype=torch.bool, device=self.device)
            behind = self.positions(n)
            positions = torch.cat([prefix.positions[..., same, :][..., kept], behind[..., same, :]], -1)
            hidden = self.run(whole, mask, positions).last_hidden_state[:, length - n - before :]
            out.append((same, hidden.float()))
        joined = out[0][1].new_empty(len(self), n + before, out[0][1].shape[-1])
        for same, hidden in out:
            joined = joined.index_copy(0, same, hidden)
        return joined

    def run(self, embeds: Tensor, mask: Tensor, positions: Tensor, **options: Any) -> Any:
        """One pass of the language model; its output object."""
        with autocast(self.device, self.bf16, always=True):
            return self.decoder(
                inputs_embeds=embeds, attention_mask=mask, position_ids=positions,
                use_cache="past_key_values" in options, **options,
            )  # fmt: skip

    @property
    def cache(self) -> Any:
        """Keys and values of the prefix, computed once."""
        if self._cache is None:
            from transformers import DynamicCache

            prefix = self.prefix
            out = self.run(prefix.embeds, prefix.visible, prefix.positions, past_key_values=DynamicCache())
            self._cache = out.past_key_values
        return self._cache

    def extend(self, embeds: Tensor, done: int) -> Tensor:
        """Hidden states `(B,1,D)` of one more token behind the prefix and `done` others; extends the cache."""
        mask = self._suffix(torch.ones(1, done + 1, dtype=torch.bool))
        cache = self.cache
        out = self.run(
            embeds.to(self.prefix.embeds.dtype), mask, self.positions(1, done), past_key_values=cache
        )
        return out.last_hidden_state.float()

    def word(self, token: int) -> Tensor:
        """Embedding `(1,D)` of a token."""
        table = self.decoder.get_input_embeddings()
        found: Tensor = table(torch.tensor([token], device=self.device))
        return found

    def embed(self, bins: Tensor) -> Tensor:
        """Embeddings `(...,D)` of action tokens `bins (...)`."""
        found: Tensor = self.decoder.get_input_embeddings()(self.action_ids[bins])
        return found

    def logits(self, hidden: Tensor) -> Tensor:
        """`(...,n_bins)` float32: the output layer of the language model, at the action tokens."""
        weight, bias = self.output.weight[self.action_ids], getattr(self.output, "bias", None)
        out = torch.nn.functional.linear(
            hidden, weight.float(), None if bias is None else bias[self.action_ids].float()
        )
        return out.float()

    def turn(self, count: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the positions of `count` tokens behind the prefix, each `(B,count,head_dim)`."""
        cos, sin = self.decoder.rotary_emb(self.prefix.embeds[:, :1].float(), self.positions(count))
        if cos.ndim == 4:  # one per axis of position; behind the prefix they are equal
            cos, sin = cos[0], sin[0]
        return cos, sin


def _equal_lengths(real: Tensor) -> list[Tensor]:
    """Indices of the rows that share their places of padding."""
    _, group = real.unique(dim=0, return_inverse=True)
    return [torch.nonzero(group == number)[:, 0] for number in range(int(group.max()) + 1)]


@contextmanager
def recomputed(vlm: Any, enabled: bool) -> Iterator[None]:
    """Recompute activations in the backward pass also in evaluation mode, in which policy gradients are computed.

    transformers recomputes layers whose own flag `training` is set. The flags of their parts, and so dropout, stay off.

    Args:
        vlm: model with checkpointing enabled.
        enabled: False, or no gradients, changes nothing.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [part for part in vlm.modules() if isinstance(part, GradientCheckpointingLayer) and not part.training]
    if not (enabled and torch.is_grad_enabled()):
        layers = []
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
