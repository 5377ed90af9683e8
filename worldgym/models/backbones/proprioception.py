"""Proprioception beside the video: integrated from actions, and estimated from the first frame.

Example::

    path = Integrator(state_dim, action_dim, 128)(now, last, actions)      # (B, K, S), normalised
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Integrator(nn.Module):
    """Predicts the change of proprioception after each action, from state, last change and action alone.

    Without the picture it is causal in the actions, and costs nothing for frames that nobody looks at. What depends on
    contacts, such as the opening of fingers around an object, it predicts as the average in the logs.

    Args:
        state_dim: S.
        action_dim: A.
        width: width of the hidden layers.
    """

    def __init__(self, state_dim: int, action_dim: int, width: int) -> None:
        super().__init__()
        inputs = 2 * state_dim + 2 * action_dim
        self.net = nn.Sequential(
            nn.Linear(inputs, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, state_dim),
        )
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, now: Tensor, last: Tensor, acted: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """States `(B,K,S)` after each of the `actions (B,K,A)`, and the last change `(B,S)`; all normalised.

        Args:
            now: `(B,S)` state before the first action.
            last: `(B,S)` its last change.
            acted: `(B,A)` the action before.
            actions: `(B,K,A)`.
        """
        path = []
        for action in actions.unbind(1):
            last = self.net(torch.cat([now, last, acted, action], -1))
            now, acted = now + last, action
            path.append(now)
        return torch.stack(path, 1), last


class StateProbe(nn.Module):
    """Estimates normalised proprioception `(B,S)` from the latents `(B,C,h,w)` of a frame that was encoded alone.

    Args:
        channels: C.
        state_dim: S.
        width: width of the hidden layer.
    """

    def __init__(self, channels: int, state_dim: int, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, width), nn.SiLU(),
            nn.Linear(width, state_dim),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        """Estimate."""
        out: Tensor = self.net(z)
        return out
