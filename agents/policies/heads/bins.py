"""Heads with discrete action tokens: parallel or autoregressive.

Example::

    head = ParallelBins(width=64, action_dim=4, n_bins=21, binary_dims=(3,))
    head.actions_of(head.tokens_of(actions))        # actions (...,4), to the nearest bin
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from agents.policies.heads.base import Head
from worldgym.utils.devices import autocast, multinomial

MASKED = -1e9  # finite: in float32 a masked bin has probability exactly 0, and 0 * log p is 0 instead of nan


class Bins(Head):
    """Base class of token heads: an odd number of equal bins in [-1, 1], or two bins for a binary dimension.

    Args:
        action_dim: A.
        n_bins: bins per action dimension.
        binary_dims: dimensions with the two values -1 and 1.
    """

    def __init__(self, action_dim: int, n_bins: int, binary_dims: tuple[int, ...]) -> None:
        super().__init__()
        self.action_dim, self.n_bins, self.binary_dims = action_dim, n_bins, binary_dims
        centres = torch.linspace(-1, 1, n_bins).repeat(action_dim, 1)
        mask = torch.zeros(action_dim, n_bins)
        for dim in binary_dims:
            centres[dim] = 1.0
            centres[dim, 0] = -1.0
            mask[dim, 2:] = MASKED
        self.register_buffer("centres", centres, persistent=False)  # (A, n_bins)
        self.register_buffer("bin_mask", mask, persistent=False)
        self.centres: Tensor
        self.bin_mask: Tensor

    def actions_of(self, tokens: Tensor) -> Tensor:
        """Bin centres of `tokens (...,A)` -> actions in [-1,1]."""
        return self.centres[torch.arange(self.action_dim, device=tokens.device), tokens]

    def tokens_of(self, actions: np.ndarray | Tensor) -> Tensor:
        """Nearest bins of `actions (...,A)`; a binary dimension uses the sign (0 counts as open)."""
        actions = torch.as_tensor(actions, dtype=torch.float32, device=self.centres.device)
        half = (self.n_bins - 1) / 2
        tokens = ((actions.clamp(-1, 1) + 1) * half).round().long()
        for dim in self.binary_dims:
            tokens[..., dim] = (actions[..., dim] >= 0).long()
        return tokens

    @abstractmethod
    def logits(self, features: Tensor, tokens: Tensor | None = None) -> Tensor:
        """`(B,K,A,n_bins)` float32; bins that a dimension lacks are -1e9. `tokens (B,K,A)` are the tokens so far."""
        ...

    def sample(
        self, features: Tensor, temperature: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """See `Head`; draws all tokens at once from `logits(features)`. Trace `tokens (B,K,A)` int64."""
        logits = self.logits(features)
        log_probs = torch.log_softmax(logits / (temperature or 1.0), dim=-1)
        if temperature == 0:
            tokens = logits.argmax(-1)
        else:
            flat = log_probs.exp().flatten(0, -2)
            tokens = multinomial(flat, 1, generator).view(logits.shape[:-1])
        chosen = log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        return self.actions_of(tokens), chosen, {"tokens": tokens}

    def evaluate(
        self, features: Tensor, trace: Mapping[str, Tensor], temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Head`; each `(B,K,A)`."""
        temp = temperature.view(-1, 1, 1, 1)
        tokens = trace["tokens"]
        log_probs = torch.log_softmax(self.logits(features, tokens) / torch.where(temp == 0, 1.0, temp), dim=-1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        return log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), entropy

    def loss(self, features: Tensor, actions: Tensor, known: Tensor) -> Tensor:
        """Mean cross-entropy per action dimension, in nats."""
        tokens = self.tokens_of(actions.nan_to_num())
        chosen = torch.log_softmax(self.logits(features, tokens), dim=-1).gather(-1, tokens[..., None])
        return -(chosen if bool(known.all()) else chosen[..., 0][known]).mean()


class ParallelBins(Bins):
    """Predicts all tokens in parallel.

    Args:
        width: D.
        action_dim: A.
        n_bins: see `Bins`.
        binary_dims: see `Bins`.
        bf16: run the matrix product in bfloat16; probabilities stay float32.
    """

    def __init__(
        self, width: int, action_dim: int, n_bins: int, binary_dims: tuple[int, ...], bf16: bool = False
    ) -> None:
        super().__init__(action_dim, n_bins, binary_dims)
        self.bf16 = bf16
        linear = nn.Linear(width, action_dim * n_bins)
        # near-uniform at initialisation, so that exploration is not lost before training
        nn.init.normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
        self.weight, self.bias = linear.weight, linear.bias  # names in saved policies

    def logits(self, features: Tensor, tokens: Tensor | None = None) -> Tensor:
        """See `Bins`."""
        with autocast(features.device, self.bf16):
            out = nn.functional.linear(features, self.weight, self.bias)
        return out.float().view(*features.shape[:2], self.action_dim, self.n_bins) + self.bin_mask


class AutoregressiveBins(Bins):
    """Predicts one token after the other, with a recurrent network over the K A tokens of a chunk.

    Args:
        width: D.
        action_dim: A.
        n_bins: see `Bins`.
        binary_dims: see `Bins`.
    """

    def __init__(self, width: int, action_dim: int, n_bins: int, binary_dims: tuple[int, ...]) -> None:
        super().__init__(action_dim, n_bins, binary_dims)
        self.before = nn.Embedding(n_bins + 1, width)  # the last index means: no token yet
        self.dimension = nn.Parameter(0.02 * torch.randn(action_dim, width))
        self.read = nn.GRU(2 * width, width, batch_first=True)
        self.out = nn.Linear(width, n_bins)
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.zeros_(self.out.bias)

    def _inputs(self, features: Tensor, before: Tensor) -> Tensor:
        """`(B,K A,2D)` from `features (B,K,D)` and the token before each, `(B,K A)`."""
        places = (features.float()[:, :, None] + self.dimension).flatten(1, 2)
        return torch.cat([places, self.before(before)], -1)

    def logits(self, features: Tensor, tokens: Tensor | None = None) -> Tensor:
        """See `Bins`; `tokens` are required."""
        assert tokens is not None
        flat = tokens.flatten(1)
        before = torch.cat([flat.new_full((len(flat), 1), self.n_bins), flat[:, :-1]], 1)
        hidden, _ = self.read(self._inputs(features, before))
        return self.out(hidden).view(*tokens.shape, self.n_bins) + self.bin_mask

    def sample(
        self, features: Tensor, temperature: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """See `Head`; trace `tokens (B,K,A)` int64."""
        batch, chunk = features.shape[:2]
        before = torch.full((batch, 1), self.n_bins, device=features.device)
        hidden: Tensor | None = None
        tokens, chosen = [], []
        for step in range(chunk * self.action_dim):
            k, dim = divmod(step, self.action_dim)
            place = torch.cat([features[:, k : k + 1].float() + self.dimension[dim], self.before(before)], -1)
            out, hidden = self.read(place, hidden)
            log_probs = torch.log_softmax(
                (self.out(out[:, 0]) + self.bin_mask[dim]) / (temperature or 1.0), dim=-1
            )
            if temperature == 0:
                before = log_probs.argmax(-1, keepdim=True)
            else:
                before = multinomial(log_probs.exp(), 1, generator)
            tokens.append(before)
            chosen.append(log_probs.gather(-1, before))
        shape = (batch, chunk, self.action_dim)
        drawn = torch.cat(tokens, 1).view(shape)
        return self.actions_of(drawn), torch.cat(chosen, 1).view(shape), {"tokens": drawn}
