"""A vector environment on a line, with the interface of the tabletop's."""

from __future__ import annotations

from typing import Any

import numpy as np
from line_world import SIZE

SHARED = {"steps": 0}


class LineEnv:
    def __init__(self, num_envs: int = 1, *, horizon: int = 40) -> None:
        self.x, self.seed = 0.0, 0

    def reset(self, *, seed: list[int], options: dict[str, Any]) -> tuple[dict, dict]:
        self.x, self.seed = 0.0, seed[0]
        return self._see(), {}

    def step(self, actions: np.ndarray) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray, dict]:
        SHARED["steps"] += 1
        self.x += 0.1 * float(actions[0, 0])
        won = np.array([self.x >= 0.105])
        info = {"success": won, "progress": np.array([np.clip(self.x / 0.105, 0, 1)])}
        return self._see(), won.astype(float), won, ~won, info

    def _see(self) -> dict[str, Any]:
        return {
            "image": np.full((1, SIZE, SIZE, 3), self.seed, np.uint8),
            "state": np.array([[self.x, self.seed, 0, 0]], np.float32),
            "instruction": ("move right",),
        }
