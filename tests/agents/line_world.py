"""A toy world with known dynamics, for tests of policies and improvers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.policies.vla import VLAPolicy, VLAPolicyConfig
from agents.rollouts.imagined import Starts
from worldgym.protocols import Imagined, Judgement

SIZE = 16


def tiny_policy(seed: int = 0, **overrides: Any) -> VLAPolicy:
    torch.manual_seed(seed)
    values: dict[str, Any] = {"image_size": SIZE, "dropout": 0.0, **overrides}
    return VLAPolicy(VLAPolicyConfig.preset("tiny", **values)).eval()


def logits(policy: VLAPolicy, seen: Any, aim: Tensor | None = None) -> Tensor:
    """`(B,K,A,n_bins)` of a policy with a head of tokens."""
    return policy.head.logits(policy.run(seen, aim=aim).features)


def observation(batch: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    words = ["push the red cube to the left", "reach the blue ball", "open the drawer"]
    return {
        "image": rng.integers(0, 256, (batch, SIZE, SIZE, 3), dtype=np.uint8),
        "state": rng.normal(size=(batch, 4)).astype(np.float32),
        "instruction": [words[i % 3] for i in range(batch)],
    }


def starts(count: int, seed: int = 0, words: str = "move right") -> Starts:
    rng = np.random.default_rng(seed)
    return Starts(
        torch.from_numpy(rng.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)),
        torch.zeros(count, 4),
        [words] * count,
        ["reach"] * count,
        torch.zeros(count, dtype=torch.int64),
    )


@dataclass
class LineState:
    """Imagined state: `states (B,4)`; the first entry is the hand's position on a line."""

    states: Tensor

    @property
    def batch_size(self) -> int:
        return len(self.states)


class LineWorld:
    """The next state adds the actions; the frame shows the first coordinate as brightness."""

    image_size, action_dim, state_dim = SIZE, 4, 4

    def __init__(self) -> None:
        self.rows_stepped: list[int] = []

    def begin(
        self, frames: Tensor, actions: Tensor, generator: Any = None, *, states: Tensor | None = None
    ) -> LineState:
        assert states is not None
        return LineState(states[:, -1].clone())

    def step(self, state: LineState, actions: Tensor, *, decode: str = "all") -> tuple[LineState, Imagined]:
        self.rows_stepped.append(len(actions))
        path = state.states[:, None] + 0.1 * actions.cumsum(1)
        shown = path if decode == "all" else path[:, -1:]
        level = ((shown[..., 0].clamp(-1, 1) + 1) * 127.5).to(torch.uint8)
        frames = level[..., None, None, None].expand(*level.shape, SIZE, SIZE, 3)
        dream = Imagined(
            frames, torch.zeros(len(actions), actions.shape[1], 1, 1, 1), path, torch.zeros(len(actions))
        )
        return replace(state, states=path[:, -1]), dream

    def fork(self, state: LineState, index: Tensor) -> LineState:
        return LineState(state.states[index].clone())

    def observe(self, state: LineState, frames: Tensor) -> LineState:
        return state


class BrightJudge:
    """Judges success if the frame is bright, i.e. if the hand is far to the right."""

    name = "bright"
    threshold = 0.5

    def __init__(self, level: float = 145, broken: int | None = None) -> None:
        self.level, self.broken, self.calls = level, broken, 0

    def score(self, frames: Tensor, instructions: Any) -> Judgement:
        assert len(frames) == len(instructions)
        self.calls += 1
        p = (frames[:, -1].float().mean((1, 2, 3)) >= self.level).float()
        valid = torch.ones(len(p), dtype=torch.bool)
        if self.broken is not None and self.calls == self.broken:
            valid[0] = False
        return Judgement(p, None, valid, p.tolist())
