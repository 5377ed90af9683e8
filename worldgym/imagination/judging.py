"""Asking a judge, and noticing when it did not answer.

Why: a judge that times out or returns NaN has said nothing about success. Its episodes become invalid, which
is not the same as failed: a zero reward would teach the policy that whatever it just did was wrong.

Example::

    from worldgym.imagination.judging import ask
    p, valid = ask(judge, frames[:, None], ["push the red cube to the left"], states)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from worldgym.protocols import RewardModel, settled


def ask(
    judge: RewardModel,
    frames: Tensor,
    instructions: Sequence[str],
    states: Tensor,
    latents: Tensor | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Judge `frames (B,T,H,W,3)` u8, at whose end proprioception is `states (B,S)` and the latent `latents (B,C,h,w)`.

    Returns:
        Probability of success (B,), 0 where there is none, and validity (B,).

    Raises:
        ValueError: the judgement has another number of rows.
    """
    verdict = settled(judge, frames, list(instructions), states, latents)
    return verdict.p_success.cpu().numpy().astype(np.float64), verdict.valid.cpu().numpy().astype(np.bool_)
