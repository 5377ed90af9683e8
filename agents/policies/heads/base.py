"""What every action head answers.

Example::

    actions, log_probs, trace = head.sample(features, 1.0, generator)   # features (B,K,D), actions (B,K,A)
    log_probs, entropies = head.evaluate(features, trace, temperature)  # temperature (B,)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Head(nn.Module, ABC):
    """What all heads have in common."""

    @abstractmethod
    def sample(
        self, features: Tensor, temperature: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Draw actions.

        Args:
            features: `(B,K,D)`.
            temperature: 0 takes the likeliest, whose log-probability is then reported at temperature 1.
            generator: source of randomness; the global one when None.

        Returns:
            actions `(B,K,A)` in [-1,1], log-probabilities `(B,...)` of each choice, and the trace for `evaluate`.
        """
        ...

    @abstractmethod
    def evaluate(
        self, features: Tensor, trace: Mapping[str, Tensor], temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy (nats) of every choice in a trace, each shaped as `sample` gave them.

        Args:
            features: `(B,K,D)`.
            trace: of `sample`.
            temperature: `(B,)` at which it was sampled.
        """
        ...

    @abstractmethod
    def loss(self, features: Tensor, actions: Tensor, known: Tensor) -> Tensor:
        """Supervised loss, a scalar, over the `known (B,K,A)` entries of `actions (B,K,A)`."""
        ...
