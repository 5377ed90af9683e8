"""Does the error of the predicted frames predict failure? A policy acts in Real while a world model predicts.

Before each chunk of actions the world model predicts the frame after it from the frame that was seen; the error is
the distance of the prediction to the frame that is then seen. A chunk with a large error did not do what the model
expected, such as a grasp that closed on nothing (DreamZero, arXiv 2602.15922, uses its own prediction like this).

Failing episodes are longer, and late chunks differ from early ones, so errors are compared at equal times only: among
the episodes that are still running after n chunks, by the errors of these n chunks.

Example::

    watched = watch(policy, world_model, env, starts)
    watched.auroc(chunks=2)               # probability that a failing episode had the larger error
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldgym.evaluation.fidelity import auroc
from worldgym.evaluation.rollouts import Start, batch_observations, reset_env
from worldgym.evaluation.statistics import Interval

BATCH = 64
"""Predictions per pass of the world model."""


@dataclass(frozen=True)
class Watched:
    """Errors of predicted frames in N episodes of the real domain.

    Args:
        starts: the N start states.
        success: `(N,)` bool, success at any step.
        errors: `(N,C)` mean squared error of the frame predicted for each chunk, pixels in [0, 1]; NaN after the end.
        changes: `(N,C)` mean squared change of the frame during each chunk: the error of predicting no change.
    """

    starts: tuple[Start, ...]
    success: np.ndarray
    errors: np.ndarray
    changes: np.ndarray

    def running(self, chunks: int) -> np.ndarray:
        """`(N,)` bool, episodes that executed more than `chunks` chunks, so that their outcome is still open."""
        return np.isfinite(self.errors).sum(1) > chunks

    def scores(self, chunks: int, control: bool = False) -> np.ndarray:
        """`(N,)` mean error of the first `chunks` chunks; with `control`, the mean change of the frame instead."""
        values: np.ndarray = (self.changes if control else self.errors)[:, :chunks].mean(1)
        return values

    def auroc(self, chunks: int, control: bool = False, seed: int = 0, n_boot: int = 2000) -> Interval | None:
        """AUROC of the score for failure among the running episodes, with a bootstrap interval over episodes.

        Returns:
            None if all of them succeed or all fail.
        """
        open_ = self.running(chunks)
        score, failed = self.scores(chunks, control)[open_], ~self.success[open_]
        value = auroc(score, failed)
        if value is None:
            return None
        rng, drawn = np.random.default_rng(seed), []
        for _ in range(n_boot):
            rows = rng.integers(0, len(score), len(score))
            if (again := auroc(score[rows], failed[rows])) is not None:
                drawn.append(again)
        low, high = np.percentile(drawn, [2.5, 97.5])
        return Interval(value, float(min(low, value)), float(max(high, value)), len(score))


def watch(
    policy: Any,
    world_model: Any,
    env: Any,
    starts: Sequence[Start],
    *,
    horizon: int = 40,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Watched:
    """Execute greedy actions of a policy in the real domain, and predict the frame after each chunk.

    Args:
        policy: acts on the seen frames.
        world_model: predicts from a single seen frame and proprioception; it has no memory of earlier chunks.
        env: environment of the real domain.
        starts: start states.
        horizon: environment steps.
        seed: seed of the world model's sampling.
        progress: called with (episodes done, all) after each episode.
    """
    episodes = []
    for i, start in enumerate(starts):
        episodes.append(_episode(policy, env, start, horizon))
        if progress is not None:
            progress(i + 1, len(starts))
    count = max(1, -(-horizon // policy.chunk))
    errors, changes = (np.full((len(starts), count), np.nan) for _ in range(2))
    chunks = [(i, j, chunk) for i, (_, done) in enumerate(episodes) for j, chunk in enumerate(done)]
    for part in _batches(chunks):
        predicted = _predicted(world_model, [chunk for _, _, chunk in part], seed)
        for (i, j, (before, _, after)), frame in zip(part, predicted, strict=True):
            true = np.asarray(after["image"], np.float32) / 255
            errors[i, j] = np.square(true - frame.astype(np.float32) / 255).mean()
            changes[i, j] = np.square(true - np.asarray(before["image"], np.float32) / 255).mean()
    return Watched(tuple(starts), np.array([won for won, _ in episodes]), errors, changes)


def _episode(policy: Any, env: Any, start: Start, horizon: int) -> tuple[bool, list[Any]]:
    """Success, and of each whole chunk: observation before, actions `(K,A)`, observation after."""
    import torch

    observation, info = reset_env(env, start)
    won, done, chunks, steps = bool(info.get("success", False)), False, [], 0
    while not done and steps < horizon:
        with torch.inference_mode():
            actions = policy.act(batch_observations([observation]), temperature=0.0).actions[0].cpu().numpy()
        before, taken = observation, 0
        for action in actions[: horizon - steps]:
            taken += 1
            observation, _, terminated, truncated, info = env.step(action)
            observation = {**observation, "instruction": before["instruction"]}
            won, done = won or bool(info["success"]), bool(terminated or truncated)
            if done:
                break
        steps += taken
        chunks.append((before, actions[:taken], observation))
    return won, chunks


def _batches(chunks: list[Any]) -> list[list[Any]]:
    """Chunks of equal numbers of actions, in batches."""
    out = []
    for length in sorted({len(chunk[1]) for _, _, chunk in chunks}):
        alike = [row for row in chunks if len(row[2][1]) == length]
        out += [alike[i : i + BATCH] for i in range(0, len(alike), BATCH)]
    return out


def _predicted(world_model: Any, chunks: list[Any], seed: int) -> np.ndarray:
    """Frames `(B,H,W,3)` uint8 after each chunk, predicted from the observation before it."""
    import torch

    seen = batch_observations([before for before, _, _ in chunks])
    actions = torch.from_numpy(np.stack([given for _, given, _ in chunks]).astype(np.float32))
    cameras = [camera.name for camera in world_model.specs.observation.cameras[1:]]
    views = {name: seen[f"image_{name}"][:, None] for name in cameras}
    state = world_model.begin(
        seen["image"][:, None], actions[:, :0], torch.Generator().manual_seed(seed), states=seen["state"][:, None],
        **({"views": views} if views else {}),
    )  # fmt: skip
    frames: np.ndarray = world_model.step(state, actions, decode="last")[1].frames[:, -1].cpu().numpy()
    return frames
