"""Sampling of latent frames: a few passes of the network, by a scheduler of diffusers.

Example::

    z, spread = predicted(model, model.network, state, known=3, ends=[4])     # from all 4 actions in state.pending
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from worldgym.models.backbones.networks import VideoNetwork
from worldgym.models.backbones.state import BackboneState
from worldgym.nn import make_sampler, row_noise


def predicted(
    model: Any, net: VideoNetwork, state: BackboneState, known: int, ends: list[int]
) -> tuple[Tensor, Tensor]:
    """The next latent frame, several times: from the first `ends[0]`, `ends[1]`, ... of its actions.

    All share the same noise.

    Args:
        model: a `DiffusersWorldModel`.
        net: its network.
        state: B rows with `known` latent frames in the window, and the actions in `pending`.
        known: latent frames in the window.
        ends: P numbers of actions, 1 to r.

    Returns:
        latents `(B,P,C,h,w)`, and for the last of `ends` the mean squared distance `(B,)` of the sample from the
        estimate of the first pass. At pure noise that estimate is the conditional mean, so the distance is on average
        the variance of what the model thinks possible. It says nothing of the model's own errors.
    """
    c, count = model.config, len(ends)
    device, rows = state.latent.device, len(state.latent)
    at = [*range(known + 1)]
    numbers = torch.arange(c.per_frame, device=device)
    first = numbers[None] < torch.tensor(ends, device=device)[:, None]  # (P, r)
    given = first.repeat(rows, 1)[:, None]  # (B P, 1, r)

    def copies(x: Tensor) -> Tensor:
        return x.repeat_interleave(count, 0)

    before = copies(state.context[:, :known])
    moves = torch.cat([copies(state.moves[:, :known]), copies(state.pending)[:, None]], 1)
    always = torch.ones(len(before), known, c.per_frame, dtype=torch.bool, device=device)
    always[:, 0] = False  # no action led to the first frame
    cached = [copies(layer[:, :known]) for layer in state.cache]
    estimates: list[Tensor] = []

    def velocity(x: Tensor, level: Tensor) -> Tensor:
        if c.attention == "causal":
            v, _ = model.velocity(
                net, x[:, None], level[:, None], moves[:, -1:], given, at[-1:], cached=cached
            )
        else:
            levels = torch.cat([level.new_zeros(len(x), known), level[:, None]], 1)
            window = torch.cat([before, x[:, None]], 1)
            v, _ = model.velocity(net, window, levels, moves, torch.cat([always, given], 1), at)
        v = model.with_residual(v[:, -1], x, before[:, -1], level)
        if not estimates:
            estimates.append(x - level[:, None, None, None] * v)
        return v

    sampler = make_sampler(c.sampler, c.steps, c.shift)
    z = sampler.sample(velocity, copies(noise_of(state))).float()
    spread = (z - estimates[0]).square().mean((1, 2, 3)).unflatten(0, (rows, count))[:, -1]
    return z.unflatten(0, (rows, count)), spread


def noise_of(state: BackboneState) -> Tensor:
    """Noise `(B,C,h,w)` of the next latent frame; row i is a function of (keys[i], count[i]) alone."""
    return row_noise(state.keys, state.count, state.latent.shape[1:]).to(state.latent.device)
