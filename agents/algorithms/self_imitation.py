"""Self-imitation: clone the policy's own judged successes together with the demonstrations.

It complements GRPO. A policy gradient spreads one bit of reward over a few hundred action tokens, so a hundred
trajectories per iteration move the weights mostly at random. A judged success is also a demonstration on a scene
without one: cloning it gives a supervised signal for which object the instruction names and how to reach it
(self-imitation learning, Oh et al. 2018; World-VLA-Loop and GigaBrain reuse successes in the same way). Starts at which
the policy mostly fails have the largest weight, as in the advantage of GRPO.

Example::

    imitation = SelfImitation(demos, SelfImitationConfig(steps=16))
    scalars = imitation.update(policy, rollouts)     # after every GRPO update
    scalars["memory"], scalars["imitation_loss"]
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.algorithms.sft import SFT, SFTConfig
from agents.data.demonstrations import ChunkDataset, HandColumns, keyframes
from agents.rollouts.trajectories import Rollouts
from worldgym.errors import ConfigError
from worldgym.utils.train_state import TrainState

VIEW = "view."  # prefix of the saved columns that hold frames of the further cameras


@dataclass(frozen=True)
class SelfImitationConfig:
    """Settings of self-imitation.

    Args:
        steps: optimizer steps per iteration; 0 disables self-imitation.
        lr: AdamW learning rate.
        batch_size: chunks per step.
        demo_share: fraction of demonstrations in a batch; they limit the effect of the judge's errors. With 1, no
            success is needed.
        floor: weight of a success at a start where every attempt succeeded; 1 - success rate is added to it.
        min_rate: minimum fraction of a start's attempts that must be judged successful; otherwise none of them is
            cloned. Where success is rare, most judged successes are false positives, and they would get the largest
            weight.
        first_chunks: clone only this many chunks from the start of each success; 0 clones all. Only the start frame is
            real; cloning later chunks trains the policy on predicted frames.
        discount: factor on the weight of a chunk for each chunk between it and success: the last actions of an
            exploring policy led to success, the first ones may have been a detour.
        learn: `all`, or one component of the policy such as `goal` (only where to move).
        fastest: of the successes from one start, clone only those that took the fewest chunks. An exploring attempt
            that goes elsewhere first succeeds later, and cloning its detour teaches the wrong place.
        reached_goals: when a component is trained, clone only the chunks of a success whose chosen goal is the place
            where the hand next arrived (its keyframe). An exploring attempt may choose other places before the right
            one.
        action_head_steps: optimizer steps per iteration on the output layer of the action head alone, on the same
            chunks, after the `steps`; 0 disables them, and a policy whose `parameters_of` knows no `action_head`
            requires 0. Where rollouts act greedily, they move sampled actions towards the greedy ones that succeeded.
        capacity: chunks kept in memory (12 KB each at 64 px); the oldest are dropped first.
        seed: seed of batches and augmentation.
    """

    steps: int = 16
    lr: float = 3e-4
    batch_size: int = 128
    demo_share: float = 0.4
    floor: float = 0.1
    min_rate: float = 0.5
    first_chunks: int = 0
    discount: float = 0.7
    learn: str = "all"
    fastest: bool = True
    reached_goals: bool = True
    action_head_steps: int = 0
    capacity: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate."""
        if (
            min(self.steps, self.first_chunks, self.action_head_steps) < 0
            or self.batch_size < 1
            or self.capacity < 1
            or self.lr <= 0
            or self.floor <= 0
        ):
            raise ConfigError(
                "steps, first_chunks and action_head_steps must be >= 0, batch_size and capacity >= 1, lr and floor "
                f"> 0; got {self}"
            )
        if not 0 <= self.min_rate <= 1:
            raise ConfigError(f"min_rate must lie in [0, 1]; got {self.min_rate}. Try 0.5")
        if not 0 < self.discount <= 1:
            raise ConfigError(f"discount must lie in (0, 1]; got {self.discount}. Try 0.7")
        if not 0 <= self.demo_share <= 1:
            raise ConfigError(f"demo_share must lie in [0, 1]; got {self.demo_share}. Try 0.4")


class SelfImitation:
    """Improver that takes supervised steps on demonstrations and on the policy's own judged successes.

    Args:
        demos: demonstrations; `config.demo_share` is their fraction of each batch.
        config: settings.
    """

    def __init__(self, demos: ChunkDataset, config: SelfImitationConfig | None = None) -> None:
        self.config = config or SelfImitationConfig()
        self.demos = demos
        self.iteration = 0
        self.memory: ChunkDataset | None = None
        self.weight = np.zeros(0)
        self._sft = self._trainer(self.config.learn)

    def _trainer(self, learn: str) -> SFT:
        c = self.config
        return SFT(SFTConfig(lr=c.lr, batch_size=c.batch_size, weight_decay=0.0, learn=learn))

    def remember(self, policy: Any, rollouts: Rollouts) -> int:
        """Store the chunks of valid successes of `policy`; returns the number of stored trajectories."""
        c = self.config
        rows, weights = success_rows(
            rollouts, c.floor, c.discount, c.first_chunks, c.min_rate, hand_columns(policy), c.fastest
        )
        if rows is None:
            return 0
        if c.learn != "all":
            chunk = np.arange(len(rows)) - np.searchsorted(rows.episode, rows.episode)
            trace = rollouts.trace_at(torch.from_numpy(rows.episode), torch.from_numpy(chunk))
            chosen = policy.targets_of(trace)["goal"]
            reached = rows.goals[:, : chosen.shape[1]].copy()
            rows.goals[:, : chosen.shape[1]] = chosen
            if c.reached_goals and hasattr(policy, "same_goal"):  # an attempt may choose wrongly before it succeeds
                kept = np.isnan(reached).any(1) | policy.same_goal(chosen, reached)
                rows, weights = rows.select(np.flatnonzero(kept)), weights[kept]
                if not len(rows):
                    return 0
        self.memory = rows if self.memory is None else join(self.memory, rows)
        self.weight = np.concatenate([self.weight, weights])
        if len(self.weight) > self.config.capacity:
            keep = np.arange(len(self.weight) - self.config.capacity, len(self.weight))
            self.memory, self.weight = self.memory.select(keep), self.weight[keep]
        return len(np.unique(rows.episode))

    def update(self, policy: Any, rollouts: Rollouts | None = None) -> dict[str, float]:
        """Store the successes of `rollouts`, then take `config.steps` steps.

        Returns:
            imitation_loss (nats per action dimension), memory (chunks), remembered (trajectories), imitation_steps.
        """
        config = self.config
        remembered = self.remember(policy, rollouts) if rollouts is not None else 0
        rng = np.random.default_rng((config.seed, 7, self.iteration))
        self.iteration += 1
        if config.steps == 0 or (self.memory is None and config.demo_share < 1):
            return {"imitation_loss": 0.0, "memory": 0.0, "remembered": 0.0, "imitation_steps": 0.0}
        mixed = self._batches(rng, config.steps)
        self._sft.reseed(int(rng.integers(2**31)))
        losses = self._sft.steps(policy, mixed, rng.permutation(len(mixed)), config.steps)
        if config.action_head_steps:
            mixed = self._batches(rng, config.action_head_steps)
            trainer = self._trainer("action_head")  # new moments every iteration, so that none have to be saved
            trainer.reseed(int(rng.integers(2**31)))
            trainer.steps(policy, mixed, rng.permutation(len(mixed)), config.action_head_steps)
        return {
            "imitation_loss": float(np.mean(losses)),
            "memory": float(len(self.weight)),
            "remembered": float(remembered),
            "imitation_steps": float(config.steps + config.action_head_steps),
        }

    def _batches(self, rng: np.random.Generator, steps: int) -> ChunkDataset:
        """Rows for `steps` steps: stored successes by weight, and demonstrations."""
        config, parts = self.config, []
        own = config.batch_size - round(config.demo_share * config.batch_size)
        if own:
            assert self.memory is not None
            chosen = rng.choice(len(self.weight), steps * own, p=self.weight / self.weight.sum())
            parts.append(self.memory.select(chosen))
        shown = rng.integers(0, len(self.demos), steps * (config.batch_size - own))
        parts += [self.demos.select(shown)] if len(shown) else []
        return parts[0] if len(parts) == 1 else join(*parts)

    # -- resuming ---------------------------------------------------------------------------------

    def save(self, policy: Any, folder: str | Path) -> None:
        """Write the optimizer's moments and the stored chunks; no pickle."""
        values: dict[str, Any] = {"iteration": self.iteration, "config": dataclasses.asdict(self.config)}
        extra: dict[str, Any] = {}
        if self.memory is not None:
            columns = {
                k: v
                for k, v in vars(self.memory).items()
                if k not in ("instructions", "views") and v is not None
            }
            columns |= {f"{VIEW}{name}": frames for name, frames in self.memory.views.items()}
            extra["memory"] = {k: torch.from_numpy(v) for k, v in {**columns, "weight": self.weight}.items()}
            values["instructions"] = self.memory.instructions
        TrainState(folder).save(policy, self._sft.optimizer(policy), values, **extra)

    def load(self, policy: Any, folder: str | Path) -> None:
        """Inverse of `save`; also restores the weights of `policy`."""
        state = TrainState(folder)
        values = state.load(policy, self._sft.optimizer(policy))
        self.iteration = int(values["iteration"])
        if "instructions" in values:
            columns = {k: v.numpy() for k, v in state.load_extra("memory", finite=False).items()}
            self.weight = columns.pop("weight")
            views = {k.removeprefix(VIEW): columns.pop(k) for k in sorted(columns) if k.startswith(VIEW)}
            made: dict[str, Any] = {**columns, "views": views}
            self.memory = ChunkDataset(instructions=list(values["instructions"]), **made)


def hand_columns(policy: Any) -> HandColumns | None:
    """Columns of the end effector in the policy's states and actions; None if its specs do not define these roles.

    Policies of earlier versions have no specs. If such a policy predicts goals, the height is the third state and the
    gripper is the last action.
    """
    specs = getattr(policy, "specs", None)
    if specs is not None:
        return HandColumns.of(specs)
    return HandColumns() if "goal" in getattr(policy, "components", ()) else None


def success_rows(
    rollouts: Rollouts,
    floor: float,
    discount: float = 1.0,
    first_chunks: int = 0,
    min_rate: float = 0.0,
    hand: HandColumns | None = HandColumns(),  # noqa: B008
    fastest: bool = False,
) -> tuple[ChunkDataset | None, np.ndarray]:
    """Chunks of the valid successes and their weights.

    The weight of a chunk is `floor + 1 - (success rate of its start)`, times `discount` to the power of the number of
    chunks that followed. Only the `first_chunks` of each success are used unless that is 0, and only starts at which
    at least `min_rate` of the valid attempts succeeded. With `fastest`, only the successes of a start that took the
    fewest chunks are used.

    Goals are the keyframes of the imagined path; nan if the rollouts kept no path, or without `hand`.
    """
    good = (rollouts.valid & (rollouts.reward > 0.5)).numpy()
    groups, valid = rollouts.groups.numpy(), rollouts.valid.numpy()
    rates = {group: float(good[(groups == group) & valid].mean()) for group in np.unique(groups[good])}
    good &= np.array([rates.get(group, 0.0) >= min_rate for group in groups])
    lengths = rollouts.lengths.numpy()
    if fastest:
        fewest = {group: lengths[good & (groups == group)].min() for group in np.unique(groups[good])}
        good &= np.array([n <= fewest.get(group, 0) for n, group in zip(lengths, groups, strict=True)])
    if not good.any():
        return None, np.zeros(0)
    k = rollouts.actions.shape[2]
    images, states, texts, actions, owner, goals, weights = [], [], [], [], [], [], []
    views: dict[str, list[np.ndarray]] = {name: [] for name in rollouts.views}
    for i in np.flatnonzero(good):
        n = int(lengths[i])
        plan = rollouts.actions[i, :n].numpy()  # (n, K, A)
        kept = min(n, first_chunks) if first_chunks else n
        images.append(rollouts.images[i, :kept].numpy())
        for name, frames in rollouts.views.items():
            views[name].append(frames[i, :kept].numpy())
        states.append(rollouts.states[i, :kept].numpy())
        actions.append(plan[:kept])
        texts += [rollouts.instructions[i]] * kept
        owner += [i] * kept
        weight = floor + 1.0 - rates[groups[i]]
        weights += [weight * discount ** (n - 1 - c) for c in range(kept)]
        if rollouts.path is None or hand is None:
            goals.append(np.full_like(states[-1], np.nan))
            continue
        path = np.concatenate([states[-1][:1], rollouts.path[i, : n * k].numpy()])
        turns = np.append(keyframes(path, plan.reshape(n * k, -1), n * k, hand), n * k)
        goals.append(np.stack([path[turns[turns > c * k][0]] for c in range(kept)]))
    data = ChunkDataset(
        np.concatenate(images),
        np.concatenate(states),
        texts,
        np.concatenate(actions),
        np.asarray(owner, np.int64),
        np.concatenate(goals).astype(np.float32),
        views={name: np.concatenate(parts) for name, parts in views.items()},
    )
    return data, np.asarray(weights)


def join(a: ChunkDataset, b: ChunkDataset) -> ChunkDataset:
    """Rows of both datasets; the episode numbers of `b` follow those of `a`.

    Raises:
        ValueError: only one of the two has a condition, or their cameras differ.
    """
    if set(a.views) != set(b.views):
        raise ValueError(f"cannot join chunks of different cameras: {sorted(a.views)} and {sorted(b.views)}")
    offset = int(a.episode.max()) + 1 if len(a) else 0
    if (a.condition is None) != (b.condition is None):
        raise ValueError("cannot join chunks with a condition and chunks without one")
    return ChunkDataset(
        np.concatenate([a.images, b.images]),
        np.concatenate([a.states, b.states]),
        a.instructions + b.instructions,
        np.concatenate([a.actions, b.actions]),
        np.concatenate([a.episode, b.episode + offset]),
        np.concatenate([a.goals, b.goals]),
        None if a.condition is None or b.condition is None else np.concatenate([a.condition, b.condition]),
        {name: np.concatenate([a.views[name], b.views[name]]) for name in a.views},
    )
