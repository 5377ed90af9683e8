"""An analytic stand-in for robot, world model, judge and policy: a dot that must go left or right.

The dot's column in the image is its position; the instruction names the side. The world model's dynamics
can be bent (`gain`), so that imagined and real outcomes differ in a known way.
"""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

from worldgym.protocols import Imagined, Judgement, PolicyOutput

SIDE = {"go left": -1.0, "go right": 1.0}


def draw(x: np.ndarray) -> np.ndarray:
    """`(B,)` positions in [-1, 1] -> `(B, 8, 32, 3)` uint8."""
    image = np.zeros((len(x), 8, 32, 3), np.uint8)
    image[np.arange(len(x)), 4, np.clip(np.round((x + 1) * 15.5), 0, 31).astype(int)] = 255
    return image


def where(image: torch.Tensor) -> torch.Tensor:
    """Inverse of `draw`."""
    return image[:, 4, :, 0].float().argmax(-1) / 15.5 - 1


class PointEnv(gym.Env):
    def __init__(self, horizon: int = 20, domain: str = "real") -> None:
        self.horizon = horizon

    def _look(self):
        return {
            "image": draw(np.array([self.x]))[0],
            "state": np.array([self.x, 0, 0, 0], np.float32),
            "instruction": self.text,
        }

    def _info(self):
        reached = self.x * SIDE[self.text]
        return {
            "success": bool(reached >= 0.8),
            "progress": float(np.clip(reached, 0, 1)),
            "task": self.task,
            "instruction_text": self.text,
        }

    def reset(self, *, seed=None, options=None):
        rng = np.random.default_rng(seed)
        self.task = (options or {}).get("task", "go")
        self.text = list(SIDE)[int(rng.integers(2))]
        self.x, self.t = float(rng.uniform(-0.4, 0.4)), 0
        return self._look(), self._info()

    def step(self, action):
        self.x = float(np.clip(self.x + 0.1 * float(action[0]), -1, 1))
        self.t += 1
        info = self._info()
        return self._look(), float(info["success"]), info["success"], self.t >= self.horizon, info


class PointWorld:
    image_size, action_dim, state_dim = (8, 32), 4, 4

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = gain

    def begin(self, frames, actions, generator=None, *, states=None):
        return states[:, -1, 0].clone()

    def step(self, state, actions, *, decode="all"):
        path = [state]
        for k in range(actions.shape[1]):
            path.append((path[-1] + 0.1 * self.gain * actions[:, k, 0]).clip(-1, 1))
        xs = torch.stack(path[1:], 1)  # (B, K)
        frames = torch.stack([torch.from_numpy(draw(xs[:, k].numpy())) for k in range(xs.shape[1])], 1)
        states = torch.cat([xs[..., None], torch.zeros(*xs.shape, 3)], -1)
        shown = {"all": frames, "last": frames[:, -1:], "none": frames[:, :0]}[decode]
        return xs[:, -1], Imagined(shown, states[..., None, None], states, torch.zeros(len(state)))

    def fork(self, state, index):
        return state[index].clone()

    def observe(self, state, frames):
        return where(frames)


class PointJudge:
    name = "point"

    def __init__(self, fails_on: str | None = None) -> None:
        self.fails_on = fails_on

    def score(self, frames, instructions):
        side = torch.tensor([SIDE[text] for text in instructions])
        p = (where(frames[:, -1]) * side >= 0.78).float()
        return Judgement(p, None, torch.tensor([text != self.fails_on for text in instructions]))


class PointPolicy:
    chunk = 5

    def __init__(self, skill: float = 1.0) -> None:
        self.skill = skill

    def act(self, observation, *, temperature=1.0, generator=None):
        side = torch.tensor([SIDE[text] for text in observation["instruction"]])
        noise = torch.randn(len(side), self.chunk, generator=generator) * 0.8 * temperature
        actions = torch.zeros(len(side), self.chunk, 4)
        actions[..., 0] = (self.skill * side[:, None] + noise).clip(-1, 1)
        return PolicyOutput(actions, torch.zeros(len(side)), temperature=temperature)

    def log_prob_of(self, observation, output):
        return output.log_prob

    def save_pretrained(self, folder):
        (Path(folder) / "policy.json").write_text(json.dumps({"skill": self.skill}))

    @classmethod
    def from_pretrained(cls, folder):
        return cls(**json.loads((Path(folder) / "policy.json").read_text()))
