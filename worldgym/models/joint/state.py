"""State of the imagined episodes of a joint model.

Example::

    state = model.begin(frames, actions, states=states)
    state.known                          # (B,) frames in the context, one for every chunk
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldgym.nn import RowBatch


@dataclass(frozen=True)
class JointState(RowBatch):
    """State of B imagined episodes; W is the largest number of blocks in a sequence.

    Args:
        latent: `(B,C,h,w)` float32, the current frame; also the last entry of the context.
        states: `(B,S)` float32, current proprioception, data units.
        last: `(B,S)` its last change, normalised.
        acted: `(B,A)` the last action; zeros at the start.
        context: `(B,W,C,h,w)` float32, frames at the ends of whole chunks, the last one at index `known - 1`.
        known: `(B,)` int64, how many these are, 1 to W.
        count: `(B,)` int64, predictions since the start.
        keys: `(B,)` int64 noise keys; with `count` they determine every random number of a row.
    """

    latent: Tensor
    states: Tensor
    last: Tensor
    acted: Tensor
    context: Tensor
    known: Tensor
    count: Tensor
    keys: Tensor

    @property
    def batch_size(self) -> int:
        """B."""
        return len(self.latent)

    def with_keys(self, keys: Tensor) -> JointState:
        """The same state with new noise keys `(B,)` int64."""
        return self.replace(keys=keys)

    def groups(self) -> list[Tensor]:
        """Rows with as many frames in the context, as index tensors."""
        return [torch.nonzero(self.known == number).flatten() for number in self.known.unique()]

    def followed_by(self, latent: Tensor, whole: bool) -> JointState:
        """This state with a new frame `latent (B,C,h,w)`; all rows have as many frames in the context.

        Args:
            latent: the new frame.
            whole: a whole chunk led to it. After a shorter one the context begins anew with this frame, because the
                frames of a context are one chunk apart.
        """
        known, size = int(self.known[0]), self.context.shape[1]
        context = self.context.clone()
        if not whole:
            known = 0
        elif known == size:
            context, known = torch.cat([context[:, 1:], context[:, :1]], 1), size - 1
        context[:, known] = latent
        return self.replace(latent=latent, context=context, known=torch.full_like(self.known, known + 1))

    def seeing(self, latent: Tensor) -> JointState:
        """This state with its current frame replaced by `latent (B,C,h,w)`."""
        context = self.context.clone()
        context[torch.arange(len(latent), device=latent.device), self.known - 1] = latent
        return self.replace(latent=latent, context=context)
