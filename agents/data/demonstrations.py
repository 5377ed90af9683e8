"""Convert demonstrations into training rows: a frame, the instruction, the next actions, and the next keyframe.

Example::

    demos = chunk_dataset(demonstrations(dataset.load_arrays(), per_task=200))
    demos.images.shape, demos.actions.shape  # (M, 64, 64, 3), (M, 5, 4)
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from agents.data.future import FutureFrames, future_frames
from worldgym.errors import ConfigError, DatasetError
from worldgym.protocols import ChunkBatch, Observation
from worldgym.specs import Specs

if TYPE_CHECKING:
    from worldgym.data.reader import EpisodeArrays

STEADY = 3  # steps that a new gripper command must last; exploring policies switch the command back and forth
# Metres. A descending hand moves down more than this within one or two steps, and less than half of it on arrival.
SINKING = 0.02


@dataclass
class ChunkDataset:
    """Demonstrated action chunks, one row per frame.

    Args:
        images: `(M,H,W,3)` uint8.
        states: `(M,S)` float32.
        instructions: M strings.
        actions: `(M,K,A)` float32 in [-1,1]; NaN after the end of an episode if the continuation is unknown.
        episode: `(M,)` int64, episode index of each row.
        goals: `(M,S)` float32, proprioception at the next keyframe (see `keyframes`), or at the first success if no
            keyframe follows; NaN if unknown.
        condition: `(M,F)` float32 of a conditioned policy (`agents.policies.conditioned`), or None.
        views: frames of the cameras beside the main one, by camera name, each `(M,H',W',3)` uint8.
        future: later frames of the same episodes, for auxiliary losses; None if they were not asked for.
    """

    images: np.ndarray
    states: np.ndarray
    instructions: list[str]
    actions: np.ndarray
    episode: np.ndarray
    goals: np.ndarray
    condition: np.ndarray | None = None
    views: dict[str, np.ndarray] = field(default_factory=dict)
    future: FutureFrames | None = None

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.images)

    def select(self, rows: np.ndarray) -> ChunkDataset:
        """Select rows by index."""
        return ChunkDataset(
            self.images[rows],
            self.states[rows],
            [self.instructions[i] for i in rows],
            self.actions[rows],
            self.episode[rows],
            self.goals[rows],
            None if self.condition is None else self.condition[rows],
            {name: frames[rows] for name, frames in self.views.items()},
            None if self.future is None else self.future.select(rows),
        )

    def with_decoded(self, tokenizer: Any, batch: int = 256) -> ChunkDataset:
        """Every row twice: as it is, and with its image encoded and decoded, as imagination shows it.

        A policy that has seen only frames of a camera acts otherwise on the frames of a world model, and what it learns
        there is partly lost on real ones. Both copies of a row belong to the same episode.

        Args:
            tokenizer: with `encode` and `decode` of frames `(N,H,W,3)` uint8; that of the world model.
            batch: frames per pass.

        Raises:
            ConfigError: the demonstrations have several cameras, which a tokenizer of frames does not decode.
        """
        if self.views:
            raise ConfigError(
                f"decoded copies are made of one camera, and these demonstrations also have "
                f"{', '.join(self.views)}; leave --decoded-by out"
            )
        images = torch.from_numpy(self.images)
        with torch.no_grad():
            parts = [tokenizer.decode(tokenizer.encode(part)).to(torch.uint8).cpu() for part in images.split(batch)]
        twice = self.select(np.tile(np.arange(len(self)), 2))
        twice.images[len(self) :] = torch.cat(parts).numpy()
        return twice

    def with_future(self) -> ChunkDataset:
        """The same rows, with later frames taken from the later rows of their episode.

        For demonstrations of which only the rows are left. `chunk_dataset(episodes, future=True)` also has the frames
        after the last row of an episode.
        """
        frames = {"image": self.images, **{f"image_{name}": seen for name, seen in self.views.items()}}
        ends = np.flatnonzero(np.append(self.episode[1:] != self.episode[:-1], True))
        rows = np.arange(len(self))
        return replace(self, future=FutureFrames(frames, rows, ends[np.searchsorted(ends, rows)]))

    def split(self, fraction: float, seed: int) -> tuple[ChunkDataset, ChunkDataset]:
        """Split into (training, validation) by whole episodes, with at least one episode in each.

        Raises:
            DatasetError: fewer than two episodes.
        """
        inside = self.held_out(fraction, seed)
        return self.select(np.flatnonzero(~inside)), self.select(np.flatnonzero(inside))

    def held_out(self, fraction: float, seed: int) -> np.ndarray:
        """`(M,)` bool, True for the rows of the episodes that `split` puts into validation."""
        episodes = np.unique(self.episode)
        if len(episodes) < 2:
            raise DatasetError(
                f"need at least 2 episodes to hold one out; got {len(episodes)}. Collect more demos"
            )
        order = np.random.default_rng(seed).permutation(episodes)
        chosen = order[: min(max(1, round(fraction * len(order))), len(order) - 1)]
        return np.isin(self.episode, chosen)

    def batch(self, rows: np.ndarray) -> tuple[Observation, np.ndarray]:
        """Return (observation, actions `(B,K,A)`) of these rows."""
        observation = Observation(
            image=torch.from_numpy(self.images[rows]),
            state=torch.from_numpy(self.states[rows]),
            instruction=[self.instructions[i] for i in rows],
        )
        if self.condition is not None:
            observation["condition"] = torch.from_numpy(self.condition[rows])
        for name, frames in self.views.items():
            observation[f"image_{name}"] = torch.from_numpy(frames[rows])  # type: ignore[literal-required]
        return observation, self.actions[rows]

    def chunk_batch(self, rows: np.ndarray, **more: Any) -> ChunkBatch:
        """Return the batch for `TrainablePolicy.loss`; `more` are additional entries.

        Its entry `future`, if the dataset has later frames, is for auxiliary losses only.
        """
        observation, actions = self.batch(rows)
        made: Any = {"observation": observation, "actions": actions, "goals": self.goals[rows], **more}
        if self.future is not None:
            made["future"] = self.future.select(rows)
        return cast(ChunkBatch, made)


@dataclass(frozen=True)
class HandColumns:
    """Columns of the end effector in proprioception and actions.

    Args:
        height: column of proprioception that holds its height.
        gripper: action dimension that holds its gripper command.
    """

    height: int = 2
    gripper: int = -1

    @classmethod
    def of(cls, specs: Specs) -> HandColumns | None:
        """From the roles of a dataset's specs; None without a 3D end-effector position or a gripper command."""
        position = specs.observation.columns("ee_position")
        if len(position) != 3 or specs.action is None or specs.action.gripper is None:
            return None
        return cls(position[2], specs.action.gripper.index)


def chunk_dataset(
    episodes: Iterable[Any],
    chunk: int = 5,
    *,
    stop_at_success: bool = True,
    hand: bool | HandColumns | None = True,
    future: bool = False,
) -> ChunkDataset:
    """Cut demonstrations into (frame, next `chunk` actions) rows.

    Args:
        episodes: objects with `frames (T+1,H,W,3)`, `actions (T,A)`, `state (T+1,S)`, `instruction`, `success (T+1,)`
            or None, and `views` by camera name where there are any.
        chunk: actions per row; past the end of an episode the hand stands still and repeats its last gripper command.
        stop_at_success: skip the frames from the first success on, where the task is already done.
        hand: columns of the end effector's height and gripper (`HandColumns.of(specs)`). True uses the third state as
            height and the last action as gripper. With None or False, goals and actions past the end are unknown (NaN).
        future: keep the frames of the whole episodes too, for auxiliary losses (`ChunkDataset.future`).

    Raises:
        DatasetError: no episodes, or none with an action before success.
    """
    place = HandColumns() if hand is True else hand or None
    images, states, texts, targets, owner, goals = [], [], [], [], [], []
    views: dict[str, list[np.ndarray]] = {}
    whole: list[tuple[Any, int]] = []
    for number, episode in enumerate(episodes):
        if episode.actions is None or len(episode.actions) == 0:
            continue
        actions = np.asarray(episode.actions, np.float32)
        steps = len(actions)
        hold = np.full((chunk, actions.shape[1]), np.nan if place is None else 0.0, np.float32)
        if place is not None:
            hold[:, place.gripper] = actions[-1, place.gripper]
        padded = np.concatenate([actions, hold])
        success = np.zeros(steps + 1, bool) if episode.success is None else np.asarray(episode.success, bool)
        end = int(success.argmax()) if stop_at_success and success.any() else steps
        state = np.asarray(episode.state, np.float32)
        turns = np.zeros(0, np.int64) if place is None else keyframes(state, actions, end, place)
        for t in range(min(end, steps)):
            targets.append(padded[t : t + chunk])
            owner.append(number)
            later = turns[turns > t]
            goal = state[later[0] if len(later) else min(end, steps)]
            goals.append(np.full_like(goal, np.nan) if place is None else goal)
        whole.append((episode, min(end, steps)))
        images.append(np.asarray(episode.frames[: min(end, steps)], np.uint8))
        for name, frames in getattr(episode, "views", {}).items():
            views.setdefault(name, []).append(np.asarray(frames[: min(end, steps)], np.uint8))
        states.append(state[: min(end, steps)])
        texts += [str(episode.instruction)] * min(end, steps)
    if not targets:
        raise DatasetError(
            "no demonstrated frame found: the episodes are missing or begin with success. Type: worldgym collect "
            "--help; to learn from all frames of recordings, worldgym train policy --no-success-only"
        )
    return ChunkDataset(
        np.concatenate(images),
        np.concatenate(states),
        texts,
        np.stack(targets),
        np.asarray(owner, np.int64),
        np.stack(goals),
        views={name: np.concatenate(parts) for name, parts in views.items()},
        future=future_frames(whole) if future else None,
    )


def keyframes(
    states: np.ndarray,
    actions: np.ndarray,
    end: int,
    place: HandColumns = HandColumns(),  # noqa: B008
) -> np.ndarray:
    """Keyframes of a demonstration: steps at which the gripper command changes for good, or a descent of the hand ends.

    The hand reaches its target at the end of a descent. A push never changes the gripper; without this rule, the only
    keyframe of a push would be its end, and no keyframe would show where the pushed object is.

    Args:
        states: `(T+1,S)` proprioception.
        actions: `(T,A)`.
        end: only steps before this one are searched.
        place: columns of the height and the gripper command.

    Returns:
        increasing step numbers in [1, end).
    """
    sign, grip = np.sign(actions[:, place.gripper]), []
    current = sign[0]
    for t in np.flatnonzero(np.diff(sign[:end])) + 1:
        if sign[t] != current and (sign[t : t + STEADY] == sign[t]).all():
            current = sign[t]
            grip.append(int(t))
    height = states[: end + 1, place.height]
    low = height < 0.75 * height.min() + 0.25 * height.max()  # excludes small dips at larger heights
    sank = np.zeros(len(height))
    sank[1:] = height[:-1] - height[1:]
    sank[2:] = np.maximum(sank[2:], height[:-2] - height[2:])  # an exploring hand descends unevenly
    rests = np.append(height[:-1] - height[1:] < SINKING / 2, False)
    landed = np.flatnonzero(low & (sank > SINKING) & rests)
    landed = landed[np.diff(landed, prepend=-2) > 1]
    return np.union1d(np.asarray(grip, np.int64), landed)


@dataclass
class DemoView:
    """One episode as views into the flat arrays of a dataset, without copies."""

    frames: np.ndarray
    actions: np.ndarray
    state: np.ndarray
    success: np.ndarray
    instruction: str
    task: str
    behaviour: str
    views: dict[str, np.ndarray] = field(default_factory=dict)


def episode_views(arrays: EpisodeArrays) -> list[DemoView]:
    """Return views of all episodes with actions in `EpisodeDataset.load_arrays()`."""
    views = []
    for i in np.flatnonzero(arrays.has_action).tolist():
        rows = arrays.rows(i)
        views.append(
            DemoView(
                arrays.frames[rows],
                arrays.actions[rows.start : rows.stop - 1],  # the last action of an episode is padding
                arrays.states[rows],
                arrays.success[rows],
                arrays.instructions[i],
                arrays.tasks[i],
                arrays.behaviours[i],
                {name: frames[rows] for name, frames in arrays.views.items()},
            )
        )
    return views


def demonstrations(
    arrays: EpisodeArrays,
    per_task: int | None = None,
    *,
    behaviour: str = "expert",
    seed: int = 0,
    success_only: bool = True,
) -> list[DemoView]:
    """Episodes of one behaviour; by default only successful ones.

    Args:
        arrays: from `EpisodeDataset.load_arrays()`.
        per_task: maximum number of episodes per task, drawn by `seed`; None takes all.
        behaviour: behaviour label of the demonstrations.
        seed: seed of the draw.
        success_only: leave out episodes without a successful frame.

    Raises:
        DatasetError: there is no such episode; the message lists the existing behaviours and the command to type.
    """
    by_task: dict[str, list[DemoView]] = {}
    for view in episode_views(arrays):
        if view.behaviour == behaviour and (not success_only or bool(view.success.any())):
            by_task.setdefault(view.task, []).append(view)
    if not by_task:
        raise DatasetError(_none_of(arrays, behaviour))
    rng = np.random.default_rng(seed)
    chosen = []
    for task in sorted(by_task):
        rows = rng.permutation(len(by_task[task]))[:per_task]
        chosen += [by_task[task][i] for i in sorted(rows)]
    return chosen


def demonstrated_behaviour(arrays: EpisodeArrays, wanted: str | None = None) -> str:
    """Return the behaviour of the demonstrations: `wanted` if given, else `expert`, else the only one in the data."""
    there = sorted(set(arrays.behaviours))
    if wanted is not None:
        return wanted
    return there[0] if len(there) == 1 else "expert"


def _none_of(arrays: EpisodeArrays, behaviour: str) -> str:
    """Error message: why there is no demonstration, and what to type."""
    solved = [bool(arrays.success[arrays.rows(i)].any()) for i in range(len(arrays))]
    counts = {
        name: (
            arrays.behaviours.count(name),
            sum(b == name and s for b, s in zip(arrays.behaviours, solved, strict=True)),
        )
        for name in sorted(set(arrays.behaviours))
    }
    there = ", ".join(
        f"{name} ({total} episodes, {good} successful)" for name, (total, good) in counts.items()
    )
    reason = f"no successful episode of behaviour {behaviour!r} among {len(arrays)}; there are {there}."
    best = max(counts, key=lambda name: counts[name][::-1])
    if counts[best][1]:
        return f"{reason} Type --behaviour {shlex.quote(best)} to learn from those"
    labels = (
        "worldgym import --success all marks them as such"
        if best == "imported"
        else "worldgym collect --help"
    )
    return (
        f"{reason} To learn from all episodes, successful or not, type --behaviour {shlex.quote(best)} "
        f"--no-success-only; or make a dataset with successes ({labels})"
    )
