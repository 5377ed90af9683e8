"""Action heads: map the features of each action of a chunk to a distribution over that action.

Log-probabilities are exact. Every head has the same three methods, so that policy-gradient and supervised algorithms do
not depend on the type of head: `sample`, `evaluate` (of a sample), and `loss` (of demonstrations).

- `bins`: one categorical distribution per action dimension, in parallel (RT-1; OpenVLA-OFT's parallel decoding).
- `autoregressive`: the same tokens, each conditioned on those before it (RT-2, OpenVLA).
- `l1`: a Laplace distribution around a regressed action (OpenVLA-OFT), with a fixed or learned scale.
- `flow`: flow matching (pi0), integrated by Euler. Samples follow the stochastic differential equation, whose steps are
  Gaussian (Flow-GRPO, arXiv 2505.05470, equation 9), so that each dimension of each step has a log-probability.

Further heads are registered in `worldgym.registry.HEADS`.

Example::

    head = make_head("flow", width=64, chunk=5, action_dim=4)
    actions, log_probs, trace = head.sample(features, 1.0, generator)      # features (B,5,64); actions (B,5,4)
    log_probs, entropies = head.evaluate(features, trace, torch.ones(B))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agents.policies.heads.base import Head
from agents.policies.heads.bins import AutoregressiveBins, Bins, ParallelBins
from agents.policies.heads.flow import FlowHead
from agents.policies.heads.l1 import L1Head
from worldgym.errors import ConfigError
from worldgym.registry import HEADS, accepted

__all__ = ["AutoregressiveBins", "Bins", "FlowHead", "Head", "L1Head", "ParallelBins", "make_head"]


def make_head(
    name: str, *, width: int, chunk: int, action_dim: int, n_bins: int = 21, binary_dims: tuple[int, ...] = (),
    bf16: bool = False, settings: Mapping[str, Any] | None = None,
) -> Head:  # fmt: skip
    """Create a head by name.

    The constructor of a class registered in `worldgym.registry.HEADS` receives those of the sizes below that it names.

    Args:
        name: name of a registered head.
        width: D, size of the features.
        chunk: K.
        action_dim: A.
        n_bins: bins per dimension, for token heads.
        binary_dims: binary action dimensions, for token heads.
        bf16: run the matrix product of `bins` in bfloat16.
        settings: further settings of the head: `scale` and `learn_scale` of `l1`, `steps` and `noise` of `flow`.

    Raises:
        ConfigError: an unknown name or setting.
    """
    kind = HEADS.get(name)
    sizes = {
        "width": width, "chunk": chunk, "action_dim": action_dim, "n_bins": n_bins, "binary_dims": binary_dims,
        "bf16": bf16,
    }  # fmt: skip
    try:
        head: Head = kind(**accepted(kind, sizes), **dict(settings or {}))
    except TypeError as error:
        raise ConfigError(f"head {name!r} does not accept these settings: {error}") from error
    return head
