"""Buffer of the frames that a judge reads: the last one, the last n, or all since the first observation.

Example::

    buffer = FrameBuffer(image, reads_of(judge).frames)   # image (B,H,W,3) uint8, the first observation
    buffer.append(imagined.frames)                        # (B,K,H,W,3)
    for rows, clips in buffer.clips(np.arange(4)):        # clips (R,T,H,W,3), rows of equal length together
        judge.score(clips, [words[i] for i in rows])
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

from worldgym.protocols import Decode, FrameCount, Reads, last_frames


class FrameBuffer:
    """Frames of B episodes, newest last.

    Args:
        first: `(B,H,W,3)` uint8, the first observation of each episode.
        frames: number of frames that the judge reads, see `Reads`.
    """

    def __init__(self, first: Tensor, frames: FrameCount = "last") -> None:
        self.depth = Reads(frames).depth
        self.frames = first[:, None] if self.depth is None else last_frames(first[:, None], self.depth)
        self.lengths = np.ones(len(first), np.int64)

    @property
    def decode(self) -> Decode:
        """Which imagined frames have to be decoded for this buffer."""
        return "last" if self.depth == 1 else "all"

    @property
    def last(self) -> Tensor:
        """`(B,H,W,3)`, the latest frames."""
        return self.frames[:, -1]

    def append(self, frames: Tensor) -> None:
        """Append `frames (B,K,H,W,3)`, K per episode."""
        self.lengths = self.lengths + frames.shape[1]
        joined = frames if self.depth == 1 else torch.cat([self.frames, frames], 1)
        self.frames = joined[:, -int(self.lengths.max()) :] if self.depth is None else joined[:, -self.depth :]

    def clips(self, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Judge input of `rows (R,)`, grouped by length: rows of equal length and their frames `(R',T,H,W,3)`."""
        if self.depth is not None:
            yield rows, self.frames[torch.as_tensor(rows, device=self.frames.device)]
            return
        for length in np.unique(self.lengths[rows]):
            same_length = rows[self.lengths[rows] == length]
            yield same_length, self.frames[torch.as_tensor(same_length, device=self.frames.device), -int(length) :]

    def take(self, rows: NDArray[np.int64]) -> Self:
        """Copies of the episodes `rows (R,)`."""
        taken = object.__new__(type(self))
        taken.depth, taken.lengths = self.depth, self.lengths[rows].copy()
        taken.frames = self.frames[torch.as_tensor(rows, device=self.frames.device)]
        return taken

    def put(self, rows: NDArray[np.int64], other: Self) -> None:
        """Replace the episodes `rows (R,)` by all episodes of `other`, in order."""
        length = max(self.frames.shape[1], other.frames.shape[1])
        frames = last_frames(self.frames, length).clone()
        frames[torch.as_tensor(rows, device=frames.device)] = last_frames(other.frames, length)
        self.lengths = self.lengths.copy()
        self.lengths[rows] = other.lengths
        self.frames = frames
