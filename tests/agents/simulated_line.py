"""A vector environment on a line, with the same interface as the tabletop environment."""

from __future__ import annotations

from typing import Any

import numpy as np
from line_world import SIZE

SHARED = {"steps": 0}


class LineEnv:
    def __init__(
        self, num_envs: int = 1, *, chunk: int = 5, horizon: int = 40, terminate_on_success: bool = True
    ) -> None:
        self.x, self.seed, self.ends = 0.0, 0, terminate_on_success

    def reset(self, *, seed: list[int], options: dict[str, Any]) -> tuple[dict, dict]:
        self.x, self.seed = 0.0, seed[0]
        return self._see(), {}

    def step(self, actions: np.ndarray) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray, dict]:
        path, success, progress = [], [], []
        if self.ends and self.x >= 0.105:
            self.x = 0.0  # like an environment with automatic reset
        for action in actions[0]:
            if not (self.ends and success and success[-1]):
                SHARED["steps"] += 1
                self.x += 0.1 * float(action[0])
            path.append(self._see()["state"][0])
            success.append(self.x >= 0.105)
            progress.append(np.clip(self.x / 0.105, 0, 1))
        won = np.array([any(success)])
        info = {
            "success": won,
            "path": np.array([path]),
            "path_success": np.array([success]),
            "path_progress": np.array([progress]),
        }
        return self._see(), won.astype(float), won, ~won, info

    def _see(self) -> dict[str, Any]:
        return {
            "image": np.full((1, SIZE, SIZE, 3), self.seed, np.uint8),
            "state": np.array([[self.x, self.seed, 0, 0]], np.float32),
            "instruction": ("move right",),
        }
