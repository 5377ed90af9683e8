"""Frames of one or more cameras as the images that a tokenizer is trained on and encodes.

Example::

    pictures = Pictures.of(arrays, config.canvas)        # arrays.frames, and arrays.views if there are more cameras
    pictures[np.array([0, 5, 9])]                        # (3, H', W', 3) uint8
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldgym.errors import ConfigError
from worldgym.models.canvas import Canvas


@dataclass(frozen=True)
class Pictures:
    """F frames, packed into images when they are read.

    Args:
        frames: `(F,H,W,3)` uint8 of the main camera.
        views: `(F,H',W',3)` uint8 of the other cameras, by name.
        canvas: layout of the cameras; None for the unchanged frames of the main camera.

    Raises:
        ConfigError: the cameras have different numbers of frames.
    """

    frames: np.ndarray
    views: Mapping[str, np.ndarray] = field(default_factory=dict)
    canvas: Canvas | None = None

    def __post_init__(self) -> None:
        counts = {name: len(frames) for name, frames in self.views.items()}
        if any(count != len(self.frames) for count in counts.values()):
            raise ConfigError(
                f"the main camera has {len(self.frames)} frames, the others {counts}; give equal numbers of frames"
            )

    @classmethod
    def of(cls, source: Any, canvas: Canvas | None = None) -> Pictures:
        """Create from an array of frames, from `Pictures`, or from episode arrays with `frames` and optionally `views`.

        Raises:
            ConfigError: a camera of the canvas is missing.
        """
        if isinstance(source, Pictures):
            return source
        if isinstance(source, np.ndarray):
            return cls(source, {}, canvas)
        views = dict(getattr(source, "views", None) or {})
        names = [] if canvas is None else [camera.name for camera in canvas.cameras[1:]]
        missing = [name for name in names if name not in views]
        if missing:
            raise ConfigError(
                f"the data have no camera {', '.join(missing)}; there are {', '.join(views) or 'no other cameras'}"
            )
        return cls(source.frames, {name: views[name] for name in names}, canvas)

    def __len__(self) -> int:
        """F."""
        return len(self.frames)

    def __getitem__(self, rows: slice | np.ndarray) -> Tensor:
        """Images of the given frames, `(n,H',W',3)` uint8."""
        main = torch.from_numpy(self.frames[rows])
        if self.canvas is None:
            return main
        return self.canvas.pack(
            main, {name: torch.from_numpy(frames[rows]) for name, frames in self.views.items()}
        )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        return (self.frames.shape[1], self.frames.shape[2]) if self.canvas is None else self.canvas.size

    def select(self, rows: slice | np.ndarray) -> Pictures:
        """The subset with the given frames."""
        return Pictures(
            self.frames[rows], {name: frames[rows] for name, frames in self.views.items()}, self.canvas
        )
