"""Policies of different quality made from one policy, to test rankings.

Gaussian noise is added to the weights, with a standard deviation that is a given fraction of each tensor's standard
deviation; the larger it is, the worse the policy moves. Sampling temperatures of the unperturbed policy give further
variants.

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
    """One policy per noise level (acting greedily) and one per temperature (unperturbed).

    Args:
        policy: an `nn.Module` that implements `worldgym.protocols.Policy`.
        noises: standard deviations of the noise, relative to those of each tensor.
        temperatures: sampling temperatures.
        seed: seed of the noise; all levels use the same draw.
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
