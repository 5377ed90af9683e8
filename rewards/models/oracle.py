"""The simulator's ground truth as a judge: for audits in a simulator, not for imagined frames.

Example::

    judge = OracleJudge(lambda: envs.truth(), domain="real")   # B booleans, read at every call of score
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
    """Returns true success labels as verdicts.

    Args:
        truth: `(B,)` booleans, or a function without arguments that returns them; it is called at every `score`.
        domain: domain of the frames, `real` or `soft`.

    Raises:
        ValueError: any other domain. Imagined frames have no ground truth.
    """

    def __init__(
        self, truth: Callable[[], Any] | Sequence[bool] | np.ndarray | Tensor, domain: str = "real"
    ) -> None:
        if domain not in ("real", "soft"):
            raise ValueError(
                f"OracleJudge has ground truth in 'real' and 'soft' only; got domain {domain!r}. "
                "Judge imagined frames with LearnedJudge, and audit them by replaying the actions in the real domain"
            )
        self._truth = truth
        self.domain = domain

    @property
    def name(self) -> str:
        """Name of this judge in reports."""
        return f"oracle-{self.domain}"

    @property
    def threshold(self) -> float:
        """Always 0.5: labels are 0 or 1."""
        return 0.5

    def score(self, frames: Tensor, instructions: Sequence[str]) -> Judgement:
        """Return the true label of each of B videos; `frames (B,T,H,W,3)` and instructions only determine B.

        Raises:
            ValueError: another number of labels, or a label that is not 0 or 1.
        """
        truth = self._truth() if callable(self._truth) else self._truth
        labels = torch.as_tensor(np.asarray(truth), dtype=torch.float32).reshape(-1)
        if len(labels) != len(frames) or len(labels) != len(instructions):
            raise ValueError(
                f"{len(labels)} labels for {len(frames)} videos and {len(instructions)} instructions; expected one "
                "label and one instruction for each video"
            )
        if not bool(((labels == 0) | (labels == 1)).all()):
            raise ValueError(f"truth must be 0 or 1 for every video; got {labels.tolist()[:10]}")
        return Judgement(labels, None, torch.ones(len(labels), dtype=torch.bool), labels.tolist())
