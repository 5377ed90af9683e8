"""An exponential moving average of a model's weights.

Example::

    ema = EMA(model, decay=0.998)
    optimizer.step()
    ema.update(step)                # step counts from 1
    ema.model                       # the averaged model, in evaluation mode
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from worldgym.errors import ConfigError


class EMA:
    """A copy of a model with averaged weights.

    Args:
        model: the trained model.
        decay: weight of the old average in an update, in [0, 1]; at first it is limited to (1 + step) / (10 + step).

    Raises:
        ConfigError: the decay is outside [0, 1].
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay <= 1:
            raise ConfigError(f"the decay of the averaged weights is {decay}, expected 0 to 1; try 0.998")
        self.source, self.decay = model, decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the model's weights after optimizer step `step`; buffers are copied."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averaged: list[Any] = list(self.model.parameters())
        torch._foreach_lerp_(averaged, list(self.source.parameters()), 1 - decay)
        for average, value in zip(self.model.buffers(), self.source.buffers(), strict=True):
            average.copy_(value)
