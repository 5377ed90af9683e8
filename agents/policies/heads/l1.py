"""L1 regression of actions, as in OpenVLA-OFT, with a Laplace distribution around the predicted action.

Example::

    head = L1Head(width=64, action_dim=4, scale=0.2)
    head.loss(features, actions, known)             # mean absolute error
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from agents.policies.heads.base import Head
from worldgym.errors import ConfigError
from worldgym.utils.devices import rand


class L1Head(Head):
    """Regressed action with a Laplace distribution around it; maximum likelihood equals least absolute error.

    Args:
        width: D.
        action_dim: A.
        scale: initial scale of the Laplace distribution, in units of the action.
        learn_scale: False keeps the scale fixed, so that exploration does not shrink.
    """

    def __init__(self, width: int, action_dim: int, scale: float = 0.2, learn_scale: bool = False) -> None:
        super().__init__()
        if not 0 < scale < 10:
            raise ConfigError(f"the scale of an l1 head is {scale}, expected a value between 0 and 10; try 0.2")
        self.mean = nn.Linear(width, action_dim)
        nn.init.normal_(self.mean.weight, std=0.02)
        nn.init.zeros_(self.mean.bias)
        self.log_scale = nn.Parameter(torch.full((action_dim,), math.log(scale)), requires_grad=learn_scale)

    def _shape(self, features: Tensor, temperature: Tensor | float) -> tuple[Tensor, Tensor]:
        temp = torch.as_tensor(temperature, dtype=torch.float32, device=features.device).view(-1, 1, 1)
        scale = self.log_scale.clamp(-5, 2).exp() * torch.where(temp == 0, 1.0, temp)
        return torch.tanh(self.mean(features.float())), scale

    def sample(
        self, features: Tensor, temperature: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """See `Head`; trace `drawn (B,K,A)`, before it is clipped to [-1, 1]."""
        mean, scale = self._shape(features, temperature)
        drawn = mean
        if temperature:
            u = (rand(mean.shape, generator, mean.device) - 0.5).clamp(-0.4999999, 0.4999999)
            drawn = mean - scale * u.sign() * torch.log1p(-2 * u.abs())
        return drawn.clamp(-1, 1), self._log_prob(drawn, mean, scale), {"drawn": drawn}

    @staticmethod
    def _log_prob(drawn: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        return -(drawn - mean).abs() / scale - (2 * scale).log()

    def evaluate(
        self, features: Tensor, trace: Mapping[str, Tensor], temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Head`; each `(B,K,A)`."""
        mean, scale = self._shape(features, temperature)
        return self._log_prob(trace["drawn"], mean, scale), (1 + (2 * scale).log()).expand_as(mean)

    def loss(self, features: Tensor, actions: Tensor, known: Tensor) -> Tensor:
        """Mean absolute error; with a learned scale, the negative log-likelihood."""
        mean, scale = self._shape(features, 1.0)
        off = (
            -self._log_prob(actions, mean, scale) if self.log_scale.requires_grad else (actions - mean).abs()
        )
        return off[known].mean()
