"""Rollouts for policy improvement, collected inside a world model.

`collect` generates the data of imagined RL with the closed loop of `worldgym.imagination.rollout`. It is batched over
starts and group members, and decodes only the frames that the policy and the judge read. Successful rows leave the
batch, so the cost falls as the policy improves. `SimulatorCollector`, for rollouts in a simulator, is also exported.

Example::

    bank = StartBank.from_arrays(dataset.load_arrays())
    starts = bank.sample(16, np.random.default_rng(0))
    rollouts = collect(world_model, judge, policy, starts, group_size=8, horizon=40, generator=generator)
    rollouts.success_rate()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from agents.rollouts.exploration import GoalExploration
from agents.rollouts.simulated import SimulatorCollector, collect_simulated
from agents.rollouts.trajectories import Rollouts
from worldgym.errors import ConfigError
from worldgym.imagination.episodes import ImaginedEpisodes
from worldgym.imagination.rollout import Decision, Observer, rollout
from worldgym.imagination.rules import Rules
from worldgym.imagination.starts import ArrayStarts
from worldgym.protocols import (
    Decode,
    Observation,
    Policy,
    PolicyOutput,
    RewardModel,
    Temperature,
    WorldModel,
    threshold_of,
)
from worldgym.specs import check_fit

if TYPE_CHECKING:
    from worldgym.data.reader import EpisodeArrays

__all__ = ["SimulatorCollector", "Rollouts", "StartBank", "Starts", "collect", "collect_simulated"]


@dataclass
class Starts:
    """Start states of imagined episodes.

    Args:
        images: `(M,H,W,3)` uint8 real frames.
        states: `(M,S)` float32 proprioception.
        instructions: M strings.
        tasks: M task names, for tables.
        steps: `(M,)` int64, step of each frame within its episode.
        views: real frames of the cameras beside the main one, by camera name, each `(M,H',W',3)` uint8.
        other_instructions: for each start, other instructions that a policy could follow from there; None if unknown.
    """

    images: Tensor
    states: Tensor
    instructions: list[str]
    tasks: list[str]
    steps: Tensor
    views: dict[str, Tensor] = field(default_factory=dict)
    other_instructions: list[tuple[str, ...]] | None = None

    def __len__(self) -> int:
        """Number of starts."""
        return len(self.instructions)

    def select(self, rows: Sequence[int] | np.ndarray) -> Starts:
        """Select rows by index."""
        index = torch.as_tensor(np.asarray(rows), dtype=torch.int64)
        chosen = index.tolist()
        return Starts(
            self.images[index],
            self.states[index],
            [self.instructions[i] for i in chosen],
            [self.tasks[i] for i in chosen],
            self.steps[index],
            {name: view[index] for name, view in self.views.items()},
            None if self.other_instructions is None else [self.other_instructions[i] for i in chosen],
        )

    def observation(self) -> Observation:
        """Policy input at all starts."""
        seen = Observation(image=self.images, state=self.states, instruction=self.instructions)
        seen.update({f"image_{name}": view for name, view in self.views.items()})  # type: ignore[typeddict-item]
        return seen

    @classmethod
    def of(cls, starts: ArrayStarts, tasks: Sequence[str] | None = None) -> Starts:
        """Convert a start set, optionally keeping only some tasks.

        Raises:
            ConfigError: the set has no states, or no start of these tasks.
        """
        if starts.states is None:
            raise ConfigError("the start set has no states, which policies need; save it with states")
        rows = [i for i, task in enumerate(starts.tasks) if tasks is None or task in tasks]
        if not rows:
            known = ", ".join(sorted(set(starts.tasks)))
            raise ConfigError(f"there is no start of {', '.join(tasks or ())}; there are starts of {known}")
        every = cls(
            torch.from_numpy(starts.images),
            torch.from_numpy(starts.states),
            starts.instructions,
            starts.tasks,
            torch.from_numpy(starts.steps),
            {name: torch.from_numpy(view) for name, view in starts.views.items()},
            starts.other_instructions,
        )
        return every.select(rows)

    def start_set(self) -> ArrayStarts:
        """Convert to a start set of the imagined environments, which can be saved to a file."""
        views = {name: view.numpy() for name, view in self.views.items()}
        return ArrayStarts(
            self.images.numpy(), self.instructions, self.states.numpy(), self.tasks, views=views,
            steps=self.steps.numpy(), other_instructions=self.other_instructions,
        )  # fmt: skip


class StartBank:
    """Unsolved frames from logged episodes, including frames from the middle of an episode.

    A world model's error grows with the number of imagined steps. An episode that starts shortly before contact is
    therefore judged more accurately than one that starts at reset.

    Args:
        starts: all candidates.
    """

    def __init__(self, starts: Starts) -> None:
        if len(starts) == 0:
            raise ConfigError(
                "the start bank is empty: every frame is solved, or the task filter removed all episodes"
            )
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
        other_instructions: Sequence[Sequence[str]] | None = None,
    ) -> StartBank:
        """Take every `stride`-th frame before an episode's first success.

        Args:
            arrays: from `EpisodeDataset.load_arrays()`.
            tasks: tasks to keep; None keeps all.
            behaviours: behaviours to keep; None keeps all.
            stride: step between frames; neighbouring frames are nearly equal, and each costs 12 KB.
            other_instructions: for each episode, other instructions that a policy could follow in it; None if unknown.
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
                {name: torch.from_numpy(view[index]) for name, view in getattr(arrays, "views", {}).items()},
                None if other_instructions is None else [tuple(other_instructions[i]) for i in owner],
            )
        )

    def sample(self, count: int, rng: np.random.Generator, *, middle_fraction: float = 0.5) -> Starts:
        """Draw `count` starts, balanced over tasks; a share of `middle_fraction` starts after the first frame."""
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
    policy: Policy,
    starts: Starts,
    *,
    group_size: int = 8,
    horizon: int = 40,
    temperature: Temperature = 1.0,
    generator: torch.Generator | None = None,
    threshold: float | None = None,
    max_uncertainty: float | None = None,
    confirm: int = 1,
    compact_below: float = 0.75,
    keep_frames: bool = False,
    distinct_goals: bool = False,
    observers: Sequence[Observer] = (),
) -> Rollouts:
    """Imagine `len(starts) * group_size` trajectories and judge them after every chunk.

    Args:
        world_model: any `WorldModel`.
        judge: any `RewardModel`; an invalid verdict makes the trajectory invalid, not a failure.
        policy: receives the decoded frame and the imagined proprioception.
        starts: M real frames.
        group_size: trajectories per start.
        horizon: environment steps; rounded up to whole chunks.
        temperature: sampling temperature of the policy, or of each of its components.
        generator: source of all randomness.
        threshold: success probability that counts as success; None uses the judge's own `threshold`, else 0.5.
        max_uncertainty: a trajectory whose world-model uncertainty exceeds this becomes invalid (hallucination).
        confirm: number of successive chunk ends that must be judged successful; 2 ignores one-frame false positives.
        compact_below: finished rows are removed from the batch when the fraction of running rows falls below this; 0
            keeps a static batch shape, which suits `torch.compile`.
        keep_frames: decode and keep every imagined frame, for videos.
        distinct_goals: attempts of a group try different goals, and keep them until they are reached
            (`agents.rollouts.exploration`).
        observers: additional observers of `worldgym.imagination.rollout`.

    Returns:
        rollouts with rows ordered by start: row `i` belongs to group `i // group_size`.

    Raises:
        ConfigError: a number is below 1, policy and world model do not fit each other, or the policy's output has a
            wrong shape or is NaN or infinite.
    """
    if group_size < 1 or horizon < 1 or confirm < 1:
        raise ConfigError(
            f"group_size, horizon, confirm must be at least 1; got {group_size}, {horizon}, {confirm}"
        )
    check_fit(world_model, policy, "the world model", "the policy")
    k = policy.chunk
    chunks = -(-horizon // k)
    limit = threshold_of(judge) if threshold is None else threshold
    rules = Rules(chunks * k, None, 1, limit, uncertainty_bound=max_uncertainty, confirm=confirm)
    episodes = ImaginedEpisodes.begin(
        world_model, judge, rules, starts.images, starts.states, starts.instructions, copies=group_size,
        generator=generator, views=starts.views,
    )  # fmt: skip
    recorder = TrajectoryRecorder((chunks, k, world_model.action_dim), group_size, keep_frames)

    def act(observation: Observation, rows: np.ndarray) -> PolicyOutput:
        return policy.act(observation, temperature=temperature, generator=generator)

    explore = GoalExploration(policy, group_size, temperature, generator) if distinct_goals else None
    result = rollout(
        explore or act,
        episodes,
        observers=[recorder, *observers],
        compact_below=compact_below,
        policy=policy,
        stored=True,
    )
    out = recorder.rollouts
    out.weights = None if explore is None else explore.weights
    out.reward[torch.from_numpy(result.success)] = 1.0
    out.valid[torch.from_numpy(result.invalid)] = False
    out.uncertainty = torch.from_numpy(result.uncertainty).float()
    out.frames_used, out.seconds = result.frames, result.seconds
    if starts.other_instructions is not None:
        out.other_instructions = [texts for texts in starts.other_instructions for _ in range(group_size)]
    return out


class TrajectoryRecorder:
    """Observer of `worldgym.imagination.rollout` that records `Rollouts`.

    Args:
        shape: (C, K, A) of a trajectory.
        group_size: trajectories per start.
        keep_frames: keep every imagined frame.
    """

    rollouts: Rollouts

    def __init__(self, shape: tuple[int, int, int], group_size: int, keep_frames: bool = False) -> None:
        self.shape, self.group_size, self.keep_frames = shape, group_size, keep_frames
        self.decode: Decode = "all" if keep_frames else "last"

    def begin(self, episodes: ImaginedEpisodes) -> None:
        """Allocate arrays for all trajectories."""
        image, (chunks, k, _) = episodes.image.cpu(), self.shape
        texts = list(episodes.slots.instruction)
        self.rollouts = Rollouts.empty(image, episodes.proprio.cpu(), texts, self.group_size, self.shape)
        if self.keep_frames:
            self.rollouts.frames = image[:, None].repeat(1, chunks * k + 1, 1, 1, 1)

    def __call__(self, decision: Decision) -> None:
        """Record observations, actions and judgements of the running episodes."""
        out, c, k = self.rollouts, decision.number, self.shape[1]
        live, imagined = torch.from_numpy(decision.live), decision.step.imagined
        rows = torch.from_numpy(decision.rows)[live]
        out.record(rows, c, decision.observation, decision.output, live)
        frames = imagined.frames[live].cpu()
        assert out.path is not None
        out.path[rows, c * k : (c + 1) * k] = imagined.states[live].cpu().float()
        if out.frames is not None:
            out.frames[rows, c * k + 1 : (c + 1) * k + 1] = frames
            out.frames[rows, (c + 1) * k + 1 :] = frames[:, -1:]
        p = torch.from_numpy(np.where(decision.step.hallucination, np.nan, decision.step.p))[live]
        out.p_success[rows, c] = p.float()
        out.final_images[rows] = frames[:, -1]
