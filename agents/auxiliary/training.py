"""The auxiliary losses of one training, with the video that only they learn from.

Example::

    extra = Auxiliaries(losses, video)
    extra.begin(policy)
    losses = extra.losses(policy, batch, hidden)      # {"flare/alignment": scalar, ...}
    extra.after_step(policy)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agents.auxiliary.base import AuxiliaryLoss
from agents.data.demonstrations import ChunkDataset
from worldgym.errors import ConfigError
from worldgym.protocols import ChunkBatch


class Auxiliaries(nn.Module):
    """Several auxiliary losses.

    Args:
        losses: those with a weight of 0 are left out, so that a training with such ones alone is one without any.
        video: rows without actions (`agents.auxiliary.video`), or None.
        learn: component of the policy that is trained.

    Raises:
        ConfigError: there is video and no loss, or only a component of the policy is trained.
    """

    def __init__(
        self, losses: Iterable[AuxiliaryLoss] = (), video: ChunkDataset | None = None, learn: str = "all"
    ) -> None:
        super().__init__()
        self.each = nn.ModuleList(loss for loss in losses if loss.active)
        self.video = video
        self._rng = np.random.default_rng(0)
        self._sums: dict[str, list[float]] = {}
        if video is not None and not self.each:
            raise ConfigError(
                "there is video without actions, and no auxiliary loss with a weight above 0 that could learn from it; "
                "add --aux flare, or leave --aux-video out"
            )
        if self.each and learn != "all":
            raise ConfigError(
                f"auxiliary losses train the whole policy, and learn is {learn!r}; set learn='all'"
            )

    def __bool__(self) -> bool:
        """Whether there is any loss."""
        return len(self.each) > 0

    def learned(self) -> list[nn.Parameter]:
        """The weights to train; targets have none."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def reseed(self, *words: int) -> None:
        """Seed the choice of video rows."""
        self._rng = np.random.default_rng(words)

    def begin(self, policy: Any) -> None:
        """Before the first step, with the input statistics of the policy set."""
        for loss in self.each:
            loss.begin(policy)

    def prepare(self, batch: ChunkBatch) -> None:
        """Change the observation of a training batch, if a control arm does."""
        for loss in self.each:
            loss.prepare(batch)

    def losses(
        self, policy: Any, batch: ChunkBatch, hidden: Sequence[Tensor] | None, what: str = ""
    ) -> dict[str, Tensor]:
        """All losses of a batch by name, with `what` before the part's; their values are kept for `scalars`."""
        found: dict[str, Tensor] = {}
        for loss in self.each:
            for name, value in loss.losses(policy, batch, hidden).items():
                found[f"{loss.name}/{what}{name}"] = value
        for key, value in found.items():
            self._sums.setdefault(key, []).append(float(value.detach()))
        return found

    def video_rows(self, count: int) -> np.ndarray:
        """`(count,)` rows of the video, drawn with replacement."""
        return self._rng.integers(0, len(self.video or ()), count)

    @property
    def rng(self) -> np.random.Generator:
        """Source of the augmentation of video, apart from that of the demonstrations."""
        return self._rng

    def scalars(self) -> dict[str, float]:
        """Means of all losses since the last call."""
        found = {f"aux/{name}": float(np.mean(values)) for name, values in self._sums.items()}
        self._sums = {}
        return found

    def clip(self, norm: float) -> None:
        """Clip the gradient of the own weights."""
        torch.nn.utils.clip_grad_norm_(self.learned(), norm)

    def after_step(self, policy: Any) -> None:
        """After an optimizer step."""
        for loss in self.each:
            loss.after_step(policy)
