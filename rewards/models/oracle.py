"""The truth as a judge: for audits in a simulator, never for imagination.

Example::

    judge = OracleJudge(lambda: envs.truth(), domain="real")   # B booleans, asked at every score
    judge.score(frames, instructions).p_success                # 0.0 or 1.0
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldgym.protocols import Judgement


class OracleJudge:
    """Passes on true success labels.

    Args:
        truth: `(B,)` booleans, or a function without arguments that returns them at the time of judging.
        domain: where the frames come from, `real` or `soft`.

    Raises:
        ValueError: any other domain: an imagined frame has no truth, and a made-up one would poison the audit.
    """

    def __init__(
        self, truth: Callable[[], Any] | Sequence[bool] | np.ndarray | Tensor, domain: str = "real"
    ) -> None:
        if domain not in ("real", "soft"):
            raise ValueError(
                f"OracleJudge knows the truth in 'real' and 'soft' only; got domain {domain!r}. "
                "Judge imagined frames with LearnedJudge, and audit them by replaying the actions in Real"
            )
        self._truth = truth
        self.domain = domain

    @property
    def name(self) -> str:
        """What reports call this judge."""
        return f"oracle-{self.domain}"

    @property
    def threshold(self) -> float:
        """Truth is 0 or 1."""
        return 0.5

    def score(self, frames: Tensor, instructions: Sequence[str]) -> Judgement:
        """The truth for each of B videos; `frames (B,T,H,W,3)` and instructions only give B."""
        truth = self._truth() if callable(self._truth) else self._truth
        labels = torch.as_tensor(np.asarray(truth), dtype=torch.float32).reshape(-1)
        if len(labels) != len(frames) or len(labels) != len(instructions):
            raise ValueError(
                f"{len(labels)} labels for {len(frames)} videos and {len(instructions)} instructions"
            )
        if not bool(((labels == 0) | (labels == 1)).all()):
            raise ValueError("truth must be 0 or 1 for every video")
        return Judgement(labels, None, torch.ones(len(labels), dtype=torch.bool), labels.tolist())
