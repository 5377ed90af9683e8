"""Policies of different quality made from one, so that a ranking has something to rank.

A policy's weights are disturbed by Gaussian noise, a stated share of each tensor's own spread: the hand comes to point
worse and worse. Beside them stand sampling temperatures of the policy as it is.

Example::

    graded_policies(bundle.policy(), noises=(0.0, 0.1, 0.2), temperatures=(1.0,))   # [Graded("noise 0.1", ...), ...]
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Graded:
    """A policy, its name, and how it is sampled."""

    name: str
    policy: Any
    temperature: float = 0.0


def graded_policies(
    policy: Any, noises: Sequence[float], temperatures: Sequence[float], seed: int = 0
) -> list[Graded]:
    """One policy for each share of noise (acting greedily) and for each temperature (of the undisturbed one).

    Args:
        policy: an `nn.Module` that obeys `worldgym.protocols.Policy`.
        noises: standard deviations of the noise, in those of each tensor.
        temperatures: of sampling.
        seed: of the noise; all shares use the same draw.
    """
    out = []
    for share in noises:
        disturbed = copy.deepcopy(policy)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for value in disturbed.parameters():
                noise = torch.randn(value.shape, generator=generator).to(value)
                if value.ndim > 1:
                    value.add_(share * value.std() * noise)
        out.append(Graded(f"noise {share:g}", disturbed.eval()))
    return out + [Graded(f"T={t:g}", policy, t) for t in temperatures]
