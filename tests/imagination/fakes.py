"""A world model and a judge that are exact: a dot on a 64 px table, moved by the action.

They obey the protocols with real behaviour (row-wise noise, forks, merges, images that a judge must read),
so the environment is tested against something whose right answer is known.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldgym.imagination import ArrayStarts, WorldModelEnv, WorldModelVectorEnv
from worldgym.protocols import Decode, Imagined, Judgement

SIZE, SCALE = 64, 100.0  # pixels, pixels per metre
STEP = 0.06  # metres at action 1
LEFT, RIGHT = "move the dot to the left", "move the dot to the right"


def draw(states: Tensor) -> Tensor:
    """`states (N, 4)` metres -> `(N, 64, 64, 3)` uint8: a red dot on grey, yellow when closed."""
    grid = torch.arange(SIZE, dtype=torch.float32)
    x = 31.5 + SCALE * states[:, 0].view(-1, 1, 1)
    y = 31.5 - SCALE * states[:, 1].view(-1, 1, 1)
    inside = (grid.view(1, 1, -1) - x) ** 2 + (grid.view(1, -1, 1) - y) ** 2 <= 9.0
    frames = torch.full((len(states), SIZE, SIZE, 3), 90, dtype=torch.uint8)
    frames[inside] = torch.tensor([220, 20, 20], dtype=torch.uint8)
    closed = states[:, 3] < 0.02
    frames[..., 1] = torch.where(inside & closed.view(-1, 1, 1), 200, frames[..., 1]).to(torch.uint8)
    return frames


def find(frames: Tensor) -> Tensor:
    """`(N, 64, 64, 3)` uint8 -> `(N, 2)` metres: where the dot is."""
    weight = (frames[..., 0] > 150).float()
    total = weight.sum((1, 2)).clamp(min=1.0)
    grid = torch.arange(SIZE, dtype=torch.float32)
    x = (weight * grid.view(1, 1, -1)).sum((1, 2)) / total
    y = (weight * grid.view(1, -1, 1)).sum((1, 2)) / total
    return torch.stack([(x - 31.5) / SCALE, (31.5 - y) / SCALE], -1)


class DotState(NamedTuple):
    states: Tensor  # (B, 4)
    keys: Tensor  # (B,)
    age: Tensor  # (B,)

    @property
    def batch_size(self) -> int:
        return len(self.states)


class DotWorldModel:
    """Dynamics: x and y move by 6 cm times the action, plus row-wise Gaussian noise of `noise` metres."""

    image_size, action_dim, state_dim = SIZE, 4, 4
    config = SimpleNamespace(state_mean=(0.0,) * 4, state_std=(0.1,) * 4)  # bounds of ten spreads: -1 to 1

    def __init__(self, noise: float = 0.0, uncertain_beyond: float = np.inf) -> None:
        self.noise, self.uncertain_beyond = noise, uncertain_beyond
        self.steps, self.decoded = 0, 0

    def begin(self, frames, actions, generator=None, *, states=None):  # noqa: ANN001, ANN201
        last = frames[:, -1]
        if states is None:
            estimate = torch.zeros(len(last), 4)
            estimate[:, :2] = find(last)
            estimate[:, 3] = 0.1
        else:
            estimate = states[:, -1].float().clone()
        keys = torch.randint(2**62, (len(last),), generator=generator)
        return DotState(estimate, keys, torch.zeros(len(last), dtype=torch.int64))

    def step(self, state: DotState, actions: Tensor, *, decode: Decode = "all") -> tuple[DotState, Imagined]:
        self.steps += 1
        assert bool(torch.isfinite(actions).all())
        states, age, path = state.states.clone(), state.age.clone(), []
        for k in range(actions.shape[1]):
            noise = torch.stack([
                torch.randn(2, generator=torch.Generator().manual_seed((int(s) + 7919 * int(t)) % 2**62))
                for s, t in zip(state.keys, age, strict=True)
            ])  # fmt: skip
            states = states.clone()
            states[:, :2] = (states[:, :2] + STEP * actions[:, k, :2] + self.noise * noise).clamp(-0.28, 0.28)
            states[:, 3] = 0.05 + 0.05 * actions[:, k, 3]
            age = age + 1
            path.append(states)
        every = torch.stack(path, 1)
        shown = {"all": every, "last": every[:, -1:], "none": every[:, :0]}[decode]
        frames = draw(shown.reshape(-1, 4)).view(len(states), shown.shape[1], SIZE, SIZE, 3)
        self.decoded += frames.shape[0] * frames.shape[1]
        uncertainty = torch.where(states[:, 0].abs() > self.uncertain_beyond, 1.0, 0.1)
        return DotState(states, state.keys, age), Imagined(frames, every[..., None, None], every, uncertainty)

    def fork(self, state: DotState, index: Tensor) -> DotState:
        return DotState(state.states[index], state.keys[index], state.age[index])

    def observe(self, state: DotState, frames: Tensor) -> DotState:
        return state._replace(states=self.begin(frames[:, None], frames.new_zeros(0)).states)

    def merge(self, state: DotState, rows: Tensor, other: DotState) -> DotState:
        return DotState(
            state.states.index_copy(0, rows, other.states),
            state.keys.index_copy(0, rows, other.keys),
            state.age.index_copy(0, rows, other.age),
        )


class DotJudge:
    """Finds the dot in the last frame: p rises from 0 (right edge) to 1 (left edge), or the reverse."""

    name = "dot"

    def __init__(self, fail_when_closed: bool = False) -> None:
        self.fail_when_closed, self.judged = fail_when_closed, 0

    def score(self, frames: Tensor, instructions) -> Judgement:  # noqa: ANN001
        last = frames[:, -1]
        self.judged += len(last)
        x = find(last)[:, 0]
        sign = torch.tensor([-1.0 if text == LEFT else 1.0 for text in instructions])
        p = (0.5 + sign * x * 2.0).clamp(0.0, 1.0)
        green = ((last[..., 1] > 150) & (last[..., 0] > 150)).any(-1).any(-1)
        return Judgement(
            p, None, ~green if self.fail_when_closed else torch.ones_like(green), list(instructions)
        )


class DeadJudge:
    """A judge whose server does not answer."""

    name = "dead"

    def score(self, frames, instructions):  # noqa: ANN001, ANN201
        raise TimeoutError("no answer after 30 s")


def make_judge(fail_when_closed: bool = False) -> DotJudge:
    """Entry point for `reward="fakes:make_judge"`."""
    return DotJudge(fail_when_closed)


def make_starts(count: int = 8, spread: float = 0.1) -> ArrayStarts:
    """`count` dots at random places, half of them to be moved left, half right."""
    rng = np.random.default_rng(0)
    states = np.zeros((count, 4), np.float32)
    states[:, :2] = rng.uniform(-spread, spread, (count, 2))
    states[:, 3] = 0.1
    words = [LEFT if i % 2 == 0 else RIGHT for i in range(count)]
    tasks = ["left" if i % 2 == 0 else "right" for i in range(count)]
    return ArrayStarts(draw(torch.as_tensor(states)).numpy(), words, states, tasks)


def make_dot(noise: float = 0.01, **settings: Any) -> WorldModelEnv:
    """Single entry point of a registered id."""
    settings.setdefault("reward", "fakes:make_judge")
    return WorldModelEnv(DotWorldModel(noise), starts=make_starts(), **settings)


def make_dot_vec(num_envs: int = 1, noise: float = 0.01, **settings: Any) -> WorldModelVectorEnv:
    """Vector entry point of a registered id."""
    settings.setdefault("reward", "fakes:make_judge")
    return WorldModelVectorEnv(DotWorldModel(noise), starts=make_starts(), num_envs=num_envs, **settings)
