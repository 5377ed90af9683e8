"""Asking a judge, and noticing when it did not answer.

Why: a judge that times out or returns NaN has said nothing about success. Its episodes become invalid, which
is not the same as failed: a zero reward would teach the policy that whatever it just did was wrong.

Example::

    from worldgym.imagination.judging import ask
    p, valid = ask(judge, frames[:, None], ["push the red cube to the left"], states)
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldgym.protocols import RewardModel, judged

log = logging.getLogger(__name__)


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
    count = len(frames)
    try:
        with torch.no_grad():
            verdict = judged(judge, frames, list(instructions), states, latents)
    except (TimeoutError, ConnectionError) as error:
        log.warning("judge %s failed on %d episodes, which become invalid: %s", judge.name, count, error)
        return np.zeros(count), np.zeros(count, np.bool_)
    p = torch.as_tensor(verdict.p_success).detach().cpu().numpy().astype(np.float64)
    valid = torch.as_tensor(verdict.valid).detach().cpu().numpy().astype(np.bool_)
    if p.shape != (count,) or valid.shape != (count,):
        raise ValueError(
            f"judge {judge.name} gave p_success {p.shape}, valid {valid.shape}; expected ({count},) each"
        )
    valid = valid & np.isfinite(p)
    return np.where(valid, p, 0.0), valid
