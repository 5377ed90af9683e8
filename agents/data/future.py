"""Later frames of the episodes that training rows come from: targets of auxiliary losses, never inputs of a policy.

Example::

    demos = chunk_dataset(episodes, future=True)
    later = demos.chunk_batch(rows)["future"]         # FutureFrames of these rows
    frames, known = later.at(5)                       # {"image": (B, H, W, 3) uint8}, (B,) bool
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldgym.errors import ConfigError


@dataclass
class FutureFrames:
    """The frames of whole episodes, and where in them M training rows lie.

    Args:
        frames: `(N,H,W,3)` uint8 by observation key: `image`, and `image_<name>` for further cameras; the frames of an
            episode are consecutive.
        position: `(M,)` int64, index of the row's own frame.
        last: `(M,)` int64, index of the last frame of the row's episode.
        encoded: `(N,...)` features of all frames by name, shared by all selections; see `features`.
    """

    frames: dict[str, np.ndarray]
    position: np.ndarray
    last: np.ndarray
    encoded: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.position)

    def select(self, rows: np.ndarray) -> FutureFrames:
        """Select rows by index; the frames are shared."""
        return FutureFrames(self.frames, self.position[rows], self.last[rows], self.encoded)

    def index(self, offset: int) -> tuple[np.ndarray, np.ndarray]:
        """`(B,)` int64 index of the frame `offset` steps later, at most the last one of the episode, and `(B,)` bool:
        whether the episode has a frame that many steps later.
        """
        wanted = self.position + offset
        return np.minimum(wanted, self.last), wanted <= self.last

    def at(self, offset: int) -> tuple[dict[str, Tensor], Tensor]:
        """Frames `offset` steps later, clamped to the end of the episode.

        Returns:
            `(B,H,W,3)` uint8 by observation key, and `(B,)` bool: False for rows without any later frame.
        """
        index, _ = self.index(offset)
        frames = {key: torch.from_numpy(every[index]) for key, every in self.frames.items()}
        return frames, torch.from_numpy(index > self.position)

    def features(
        self, name: str, encode: Callable[[Tensor], Tensor], offsets: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Features of the main camera's frames, each frame encoded by itself, once for all epochs.

        Args:
            name: name of the encoder, under which the features are kept.
            encode: maps `(n,H,W,3)` uint8 to `(n,...)`.
            offsets: steps from the row's own frame, F of them.

        Returns:
            `(B,F,...)` float32 on the CPU, frames past the end of the episode being the last one; and `(B,F)` bool,
            whether the episode has that frame.
        """
        if name not in self.encoded:
            every = torch.from_numpy(self.frames["image"])
            with torch.no_grad():
                self.encoded[name] = torch.cat([encode(part).float().cpu() for part in every.split(256)])
        places = [self.index(offset) for offset in offsets]
        index = torch.from_numpy(np.stack([index for index, _ in places], 1))
        return self.encoded[name][index], torch.from_numpy(np.stack([known for _, known in places], 1))


def future_frames(episodes: Sequence[tuple[Any, int]]) -> FutureFrames:
    """Later frames of the first rows of episodes.

    Args:
        episodes: pairs of an episode, with `frames (T+1,H,W,3)` uint8 and maybe `views`, and the number of its first
            frames that are rows.
    """
    frames: dict[str, list[np.ndarray]] = {}
    position, last, begin = [], [], 0
    for episode, rows in episodes:
        every = {"image": episode.frames}
        every |= {f"image_{name}": seen for name, seen in getattr(episode, "views", {}).items()}
        for key, seen in every.items():
            frames.setdefault(key, []).append(np.asarray(seen, np.uint8))
        position.append(begin + np.arange(rows))
        begin += len(episode.frames)
        last.append(np.full(rows, begin - 1))
    every_frame = {key: np.concatenate(parts) for key, parts in frames.items()}
    return FutureFrames(every_frame, np.concatenate(position), np.concatenate(last))


def future_of(batch: Any, name: str) -> FutureFrames:
    """The later frames of a batch.

    Raises:
        ConfigError: the batch has none.
    """
    found = batch.get("future")
    if not isinstance(found, FutureFrames):
        raise ConfigError(
            f"the auxiliary loss {name!r} needs later frames, and this batch has {sorted(batch)}; make the dataset "
            "with chunk_dataset(episodes, future=True)"
        )
    return found
