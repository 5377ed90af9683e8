"""Flow matching over whole chunks, as in pi0's action expert, with a sampler whose steps have known densities.

Example::

    head = FlowHead(width=64, chunk=5, action_dim=4, steps=5)
    head.sample(features, 0.0, None)[0]             # the deterministic action
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from agents.policies.heads.base import Head
from worldgym.errors import ConfigError
from worldgym.utils.devices import randn


class FlowHead(Head):
    """Flow matching over the whole chunk: `x_t = (1-t) x + t eps`, `v = eps - x`; t = 0 is the action.

    Greedy actions integrate the velocity by Euler from t = 1. Samples integrate the stochastic differential equation
    with the same marginals, `dx = [v + s^2 / (2 t) (x + (1-t) v)] dt + s dw` with `s = noise sqrt(t)`. Each step is
    then a Gaussian with a known density (Flow-GRPO, equations 8 and 9; there `s = a sqrt(t / (1-t))`).

    Args:
        width: D.
        chunk: K.
        action_dim: A.
        steps: N, number of integration steps.
        noise: noise level of the stochastic sampler, at t = 1 and temperature 1.
    """

    def __init__(self, width: int, chunk: int, action_dim: int, steps: int = 5, noise: float = 0.5) -> None:
        super().__init__()
        self._set(chunk, action_dim, steps, noise)
        self.time = nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Linear(width, width))
        self.enter = nn.Linear(chunk * action_dim, width)
        self.body = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, width),
            nn.GELU(),
        )
        self.out = nn.Linear(width, action_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("octaves", math.pi * 2.0 ** torch.arange(4), persistent=False)
        self.octaves: Tensor

    def _set(self, chunk: int, action_dim: int, steps: int, noise: float) -> None:
        if steps < 1 or not 0 < noise <= 2:
            raise ConfigError(f"a flow head has steps={steps}, noise={noise}; expected steps >= 1 and noise in (0, 2]")
        self.chunk, self.action_dim, self.steps, self.noise = chunk, action_dim, steps, noise

    def velocity(self, features: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Velocity `(B,K,A)` at `x (B,K,A)` and time `t (B,)`."""
        waves = t[:, None] * self.octaves
        known = self.time(torch.cat([waves.sin(), waves.cos()], -1)) + self.enter(x.flatten(1))
        velocity: Tensor = self.out(self.body(features.float() + known[:, None]))
        return velocity

    def _step(self, features: Tensor, x: Tensor, step: int, temp: Tensor) -> tuple[Tensor, Tensor]:
        """Mean `(B,K,A)` and standard deviation `(B,1,1)` of step `step`."""
        t, dt = 1.0 - step / self.steps, 1.0 / self.steps
        v = self.velocity(features, x, torch.full((len(x),), t, device=x.device))
        spread = self.noise * math.sqrt(t) * temp.view(-1, 1, 1)
        drift = v + spread.square() / (2 * t) * (x + (1 - t) * v)
        return x - drift * dt, spread * math.sqrt(dt)

    def _start(self, features: Tensor, generator: torch.Generator | None) -> Tensor:
        return randn((len(features), self.chunk, self.action_dim), generator, features.device)

    def sample(
        self, features: Tensor, temperature: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """See `Head`; log-probabilities `(B,N,K,A)`, trace `path (B,N+1,K,A)` from noise to the action.

        At temperature 0 the path starts at zero, the most likely noise, and follows the velocity; its log-probabilities
        are those of the stochastic steps at temperature 1.
        """
        temp = torch.full((len(features),), temperature or 1.0, device=features.device)
        none = torch.zeros(len(features), self.chunk, self.action_dim, device=features.device)
        x = self._start(features, generator) if temperature else none
        path, log_probs = [x], []
        for step in range(self.steps):
            mean, spread = self._step(features, x, step, temp)
            if temperature:
                x = mean + spread * self._start(features, generator)
            else:
                t = torch.full((len(x),), 1.0 - step / self.steps, device=x.device)
                x = x - self.velocity(features, x, t) / self.steps
            log_probs.append(self._log_prob(x, mean, spread))
            path.append(x)
        return x.clamp(-1, 1), torch.stack(log_probs, 1), {"path": torch.stack(path, 1)}

    @staticmethod
    def _log_prob(x: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
        return -(x - mean).square() / (2 * spread.square()) - spread.log() - 0.5 * math.log(2 * math.pi)

    def evaluate(
        self, features: Tensor, trace: Mapping[str, Tensor], temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Head`; each `(B,N,K,A)`."""
        temp = torch.where(temperature == 0, 1.0, temperature)
        path, log_probs, entropies = trace["path"], [], []
        for step in range(self.steps):
            mean, spread = self._step(features, path[:, step], step, temp)
            log_probs.append(self._log_prob(path[:, step + 1], mean, spread))
            entropies.append((spread.log() + 0.5 * math.log(2 * math.pi * math.e)).expand_as(mean))
        return torch.stack(log_probs, 1), torch.stack(entropies, 1)

    def loss(self, features: Tensor, actions: Tensor, known: Tensor) -> Tensor:
        """Mean squared error of the velocity at a random time; noise and time use torch's global generator."""
        clean = actions.nan_to_num()
        t, eps = torch.rand(len(actions), device=clean.device), torch.randn_like(clean)
        x = (1 - t.view(-1, 1, 1)) * clean + t.view(-1, 1, 1) * eps
        off = (self.velocity(features, x, t) - (eps - clean)).square()
        return off[known].mean()
