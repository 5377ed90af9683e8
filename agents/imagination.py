"""Rollouts for policy improvement: inside a world model, or in a simulator for debugging and the soft-sim arm.

`collect` is the inner loop of imagined RL. Everything is batched over starts x group; only the frame that the
policy and the judge read is decoded; rows that succeeded leave the batch, so the cost falls as the policy improves.

Example::

    bank = StartBank.from_arrays(dataset.load_arrays())
    starts = bank.sample(16, np.random.default_rng(0))
    rollouts = collect(world_model, judge, policy, starts, group_size=8, horizon=40, generator=generator)
    rollouts.success_rate()
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from agents.rollouts import Rollouts
from agents.simulated import RealCollector, collect_real
from agents.vla import VLAPolicy
from worldgym.errors import ConfigError
from worldgym.protocols import Observation, RewardModel, WorldModel, settled

if TYPE_CHECKING:
    from worldgym.data.reader import EpisodeArrays

__all__ = ["RealCollector", "Rollouts", "StartBank", "Starts", "collect", "collect_real"]


@dataclass
class Starts:
    """Where imagined episodes begin.

    Args:
        images: `(M,H,W,3)` uint8 real frames.
        states: `(M,S)` float32 proprioception.
        instructions: M strings.
        tasks: M task names, for tables.
        steps: `(M,)` int64, how deep in its episode a frame lies.
    """

    images: Tensor
    states: Tensor
    instructions: list[str]
    tasks: list[str]
    steps: Tensor

    def __len__(self) -> int:
        """Number of starts."""
        return len(self.instructions)

    def select(self, rows: Sequence[int] | np.ndarray) -> Starts:
        """Rows by index."""
        index = torch.as_tensor(np.asarray(rows), dtype=torch.int64)
        chosen = index.tolist()
        return Starts(
            self.images[index],
            self.states[index],
            [self.instructions[i] for i in chosen],
            [self.tasks[i] for i in chosen],
            self.steps[index],
        )


class StartBank:
    """Unsolved frames from anywhere in Real's logs, the middle of episodes included.

    A world model's error grows with depth, so an episode that begins shortly before the contact is judged more
    truly than one that begins at reset.

    Args:
        starts: all candidates.
    """

    def __init__(self, starts: Starts) -> None:
        if len(starts) == 0:
            raise ConfigError("the start bank is empty: every frame is solved, or no task was kept")
        self.starts = starts
        self._first = np.flatnonzero(starts.steps.numpy() == 0)
        self._middle = np.flatnonzero(starts.steps.numpy() > 0)

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self.starts)

    @classmethod
    def from_arrays(
        cls,
        arrays: EpisodeArrays,
        *,
        tasks: Sequence[str] | None = None,
        behaviours: Sequence[str] | None = None,
        stride: int = 3,
    ) -> StartBank:
        """Every `stride`-th frame before an episode's first success.

        Args:
            arrays: from `EpisodeDataset.load_arrays()`.
            tasks: keep these; all when None.
            behaviours: keep these; all when None.
            stride: neighbouring frames are near copies, and each costs 12 KB.
        """
        rows, owner, depth = [], [], []
        for i in range(len(arrays)):
            if (tasks is not None and arrays.tasks[i] not in tasks) or (
                behaviours is not None and arrays.behaviours[i] not in behaviours
            ):
                continue
            where = arrays.rows(i)
            success = arrays.success[where]
            end = int(success.argmax()) if success.any() else len(success) - 1
            steps = np.arange(0, end, stride)
            rows.append(where.start + steps)
            owner += [i] * len(steps)
            depth.append(steps)
        index = np.concatenate(rows) if rows else np.zeros(0, np.int64)
        return cls(
            Starts(
                torch.from_numpy(arrays.frames[index]),
                torch.from_numpy(arrays.states[index]),
                [arrays.instructions[i] for i in owner],
                [arrays.tasks[i] for i in owner],
                torch.from_numpy(np.concatenate(depth) if depth else np.zeros(0, np.int64)),
            )
        )

    def sample(self, count: int, rng: np.random.Generator, *, middle_fraction: float = 0.5) -> Starts:
        """`count` starts, tasks equally often, `middle_fraction` of them from inside episodes."""
        tasks = np.asarray(self.starts.tasks)
        names = np.unique(tasks)
        offset = int(rng.integers(len(names)))
        chosen = []
        for i in range(count):
            pool = self._middle if rng.random() < middle_fraction else self._first
            inside = pool[tasks[pool] == names[(i + offset) % len(names)]]
            if len(inside) == 0:
                inside = np.flatnonzero(tasks == names[(i + offset) % len(names)])
            chosen.append(int(rng.choice(inside)))
        return self.starts.select(chosen)


@torch.no_grad()
def collect(
    world_model: WorldModel,
    judge: RewardModel,
    policy: VLAPolicy,
    starts: Starts,
    *,
    group_size: int = 8,
    horizon: int = 40,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    threshold: float | None = None,
    max_uncertainty: float | None = None,
    confirm: int = 1,
    compact_below: float = 0.75,
    keep_frames: bool = False,
    token_temperature: float | None = None,
) -> Rollouts:
    """Imagine `len(starts) * group_size` trajectories and judge them at every chunk's end.

    Args:
        world_model: any `WorldModel`.
        judge: any `RewardModel`; an invalid verdict makes the trajectory invalid, never a failure.
        policy: acts on the decoded frame and the imagined proprioception.
        starts: M real frames.
        group_size: trajectories a start.
        horizon: environment steps; rounded up to whole chunks.
        temperature: of the policy's choice of places, and of its tokens unless `token_temperature` says otherwise.
        generator: source of all randomness.
        threshold: probability that counts as success; the judge's own `threshold`, else 0.5.
        max_uncertainty: a trajectory whose model uncertainty exceeds it becomes invalid (hallucination).
        confirm: successive chunk ends that must be judged successful; 2 lets one-frame glitches pass.
        compact_below: finished rows are dropped when the share of running ones falls below this; 0 keeps a
            static batch shape, which `torch.compile` likes.
        keep_frames: decode and keep every imagined frame, for videos.
        token_temperature: of the policy's tokens alone.

    Returns:
        rollouts with rows ordered start by start: row `i` belongs to group `i // group_size`.
    """
    if group_size < 1 or horizon < 1 or confirm < 1:
        raise ConfigError(
            f"group_size, horizon, confirm must be at least 1; got {group_size}, {horizon}, {confirm}"
        )
    k = policy.chunk
    chunks = -(-horizon // k)
    limit = float(getattr(judge, "threshold", 0.5)) if threshold is None else threshold
    hot = temperature if token_temperature is None else token_temperature
    total = len(starts) * group_size
    image = starts.images.repeat_interleave(group_size, 0)
    proprio = starts.states.repeat_interleave(group_size, 0).float()
    words = [text for text in starts.instructions for _ in range(group_size)]
    shape = (chunks, k, policy.config.action_dim)
    out = Rollouts.empty(image, proprio, words, group_size, shape, temperature, hot)
    if keep_frames:
        out.frames = image[:, None].repeat(1, chunks * k + 1, 1, 1, 1).cpu()
    assert out.path is not None
    clock = {"imagine": 0.0, "policy": 0.0, "judge": 0.0}
    began = time.perf_counter()
    state = world_model.begin(
        starts.images[:, None], _no_actions(starts, policy), generator, states=starts.states[:, None]
    )
    state = world_model.fork(state, torch.arange(len(starts)).repeat_interleave(group_size))
    clock["imagine"] += time.perf_counter() - began
    slots = torch.arange(total)  # which trajectory each row of the imagined batch is
    running = torch.ones(total, dtype=torch.bool)
    streak = torch.zeros(total, dtype=torch.int64)
    spent = 0
    for c in range(chunks):
        live = running[slots]
        if not bool(live.any()):
            break
        if float(live.float().mean()) < compact_below:
            rows = live.nonzero().squeeze(1)
            state = world_model.fork(state, rows)
            slots, image, proprio, live = slots[rows], image[rows], proprio[rows], live[rows]
        began = time.perf_counter()
        texts = [words[i] for i in slots.tolist()]
        observation = Observation(image=image, state=proprio, instruction=texts)
        output = policy.act(
            observation,
            temperature=temperature,
            generator=generator,
            token_temperature=hot,
        )
        clock["policy"] += time.perf_counter() - began
        out.record(slots[live], c, image, proprio, output, live)

        began = time.perf_counter()
        state, dream = world_model.step(state, output.actions, decode="all" if keep_frames else "last")
        spent += len(slots) * k
        image, proprio = dream.frames[:, -1], dream.states[:, -1].float()
        clock["imagine"] += time.perf_counter() - began

        began = time.perf_counter()
        told = [t for t, on in zip(texts, live.tolist(), strict=True) if on]
        verdict = settled(judge, image[live][:, None], told, proprio[live], dream.latents[live, -1])
        clock["judge"] += time.perf_counter() - began
        rows = slots[live]
        out.path[rows, c * k : (c + 1) * k] = dream.states[live].cpu().float()
        if out.frames is not None:
            out.frames[rows, c * k + 1 : (c + 1) * k + 1] = dream.frames[live].cpu()
            out.frames[rows, (c + 1) * k + 1 :] = dream.frames[live][:, -1:].cpu()
        broken = ~verdict.valid.cpu()
        if max_uncertainty is not None:
            broken |= ~(dream.uncertainty[live].cpu() <= max_uncertainty)  # NaN is no certainty either
        p = verdict.p_success.cpu().float()
        streak[rows] = torch.where(p >= limit, streak[rows] + 1, torch.zeros_like(rows))
        done = (streak[rows] >= confirm) & ~broken
        out.p_success[rows, c] = p
        out.final_images[rows] = image[live].cpu()
        out.reward[rows[done]] = 1.0
        out.valid[rows[broken]] = False
        running[rows[done | broken]] = False
    out.frames_used, out.seconds = spent, clock
    return out


def _no_actions(starts: Starts, policy: VLAPolicy) -> Tensor:
    return torch.zeros(len(starts), 0, policy.config.action_dim)
