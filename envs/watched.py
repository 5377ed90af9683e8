"""Records true pixel positions of an episode, to measure the accuracy of a world model's predicted frames.

The position of a six-pixel object determines success but hardly affects the PSNR.

Example::

    class WatchedMine(RecordsPositions, MyEnv):
        def measure(self): return pixel_positions(self.batch.simulation())

    env.positions     # (T+1, K, 2) pixels to the right and down, nan for parts that are absent
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray


class RecordsPositions:
    """Mixin of a single environment; it records positions at reset and after each step."""

    @abstractmethod
    def measure(self) -> NDArray[np.float32]:
        """Pixel positions `(K, 2)` (right, down) in the current state."""

    def reset(self, **kwargs: Any) -> Any:
        """Reset the environment and start a new record of positions."""
        result = super().reset(**kwargs)  # type: ignore[misc]
        self._recorded = [self.measure()]
        return result

    def step(self, action: Any) -> Any:
        """Step the environment and record the positions."""
        result = super().step(action)  # type: ignore[misc]
        self._recorded.append(self.measure())
        return result

    @property
    def positions(self) -> NDArray[np.float32]:
        """Positions `(T+1, K, 2)` of the episode so far."""
        return np.stack(self._recorded)


def project(
    points: NDArray[np.float64], place: NDArray[np.float64], axes: NDArray[np.float64], fovy: float,
    size: tuple[int, int],
) -> NDArray[np.float32]:  # fmt: skip
    """Pixel coordinates (right, down) `(K, 2)` of points `(K, 3)`.

    Args:
        points: world coordinates, metres; nan rows stay nan.
        place: position of the camera (3,).
        axes: `(3, 3)`, its axes in columns: right, up, backwards.
        fovy: vertical field of view, degrees.
        size: height and width of the image, pixels.
    """
    in_camera = (points - place) @ axes
    height, width = size
    scale = height / 2 / np.tan(np.deg2rad(fovy) / 2)
    right, up = scale * in_camera[:, 0] / -in_camera[:, 2], scale * in_camera[:, 1] / -in_camera[:, 2]
    return np.stack([width / 2 + right, height / 2 - up], 1).astype(np.float32)
