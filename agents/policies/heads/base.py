"""Base class of action heads.

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
    """Interface of all action heads."""

    @abstractmethod
    def sample(
        self, features: Tensor, temperature: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sample actions.

        Args:
            features: `(B,K,D)`.
            temperature: 0 takes the most likely action and reports its log-probability at temperature 1.
            generator: source of randomness; the global one when None.

        Returns:
            actions `(B,K,A)` in [-1,1], log-probabilities `(B,...)` of each choice, and the trace for `evaluate`.
        """
        ...

    @abstractmethod
    def evaluate(
        self, features: Tensor, trace: Mapping[str, Tensor], temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy (nats) of every choice in a trace, in the shapes that `sample` returns.

        Args:
            features: `(B,K,D)`.
            trace: from `sample`.
            temperature: `(B,)` temperature of the sample.
        """
        ...

    @abstractmethod
    def loss(self, features: Tensor, actions: Tensor, known: Tensor) -> Tensor:
        """Supervised loss, a scalar, over the `known (B,K,A)` entries of `actions (B,K,A)`."""
        ...
