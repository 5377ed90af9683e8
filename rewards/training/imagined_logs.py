"""Imagined logs: logged action sequences imagined by the world model, with the true labels of the logs.

Imagined frames differ from the true frames that a judge is trained on: grasped objects fade and edges blur, so the
judge is inaccurate on them. Every logged action sequence can be imagined from its first frame, and the log has the
true success label of each step. Training on imagined logs teaches the judge the appearance of success in this world
model, and calibration on them measures the precision and recall of its verdicts. No new interaction with the real
domain is needed.

Example::

    imagined = imagine_training_logs(world_model, arrays, generator=torch.Generator().manual_seed(0))
    judge, report = train_judge(arrays, world_model.tokenizer, imagined=imagined)
    report["imagined_episodes/precision"], report["imagined_episodes/recall"]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from worldgym.moved import renamed_arguments
from worldgym.protocols import judged

if TYPE_CHECKING:
    from rewards.models.learned import LearnedJudge
    from worldgym.data.reader import EpisodeArrays


@torch.no_grad()
def imagine_training_logs(
    world_model: Any,
    arrays: EpisodeArrays,
    *,
    episodes: np.ndarray | None = None,
    generator: torch.Generator | None = None,
    batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> EpisodeArrays:
    """Imagine logged episodes: all frames but the first are replaced by the world model's predictions.

    Args:
        world_model: implements `worldgym.protocols.WorldModel`.
        arrays: logs from the real domain, from `EpisodeDataset.load_arrays()`.
        episodes: `(M,)` indices of the episodes; None for all.
        generator: random generator for the world model's sampling.
        batch: number of episodes imagined at once.
        progress: called with (episodes done, total episodes).

    Returns:
        arrays of these episodes with imagined `frames`; states, actions, labels and `indices` are those of the logs.
    """
    arrays = take_episodes(arrays, np.arange(len(arrays)) if episodes is None else np.asarray(episodes))
    frames = arrays.frames.copy()
    order = np.argsort(
        -arrays.lengths, kind="stable"
    )  # batches of similar lengths, so that few steps are imagined beyond the end of an episode
    for begin in range(0, len(order), batch):
        chosen = order[begin : begin + batch]
        first = arrays.offsets[chosen]
        steps = int(arrays.lengths[chosen[0]])
        if steps == 0:
            break
        rows = np.minimum(first[:, None] + np.arange(steps), arrays.offsets[chosen + 1][:, None] - 1)
        start = torch.from_numpy(arrays.frames[first])[:, None]
        no_actions = torch.zeros(len(chosen), 0, arrays.actions.shape[1], device="cpu")
        state = world_model.begin(
            start, no_actions, generator, states=torch.from_numpy(arrays.states[first])[:, None]
        )
        _, imagined = world_model.step(state, torch.from_numpy(arrays.actions[rows]))
        predicted = imagined.frames.cpu().numpy()
        for row, episode in enumerate(chosen):
            inside = arrays.rows(int(episode))
            frames[inside.start + 1 : inside.stop] = predicted[row, : inside.stop - inside.start - 1]
        if progress is not None:
            progress(min(begin + batch, len(order)), len(order))
    return dataclasses.replace(arrays, frames=frames)


def take_episodes(arrays: EpisodeArrays, episodes: np.ndarray) -> EpisodeArrays:
    """Copy the episodes with indices `episodes (M,)`, in this order."""
    rows = np.concatenate([np.arange(arrays.offsets[i], arrays.offsets[i + 1]) for i in episodes])
    offsets = np.concatenate([[0], np.cumsum(arrays.lengths[episodes] + 1)]).astype(np.int64)
    values: dict[str, Any] = {"offsets": offsets, "indices": arrays.indices[episodes]}
    for name in ("frames", "states", "actions", "success", "progress", "is_last"):
        values[name] = getattr(arrays, name)[rows]
    for name in ("instructions", "tasks", "behaviours", "provenance"):
        values[name] = [getattr(arrays, name)[i] for i in episodes]
    return dataclasses.replace(arrays, **values)


@renamed_arguments(dreams="imagined")
def episode_verdicts(
    judge: LearnedJudge, imagined: EpisodeArrays, episodes: np.ndarray, *, chunk: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    """Score imagined episodes at the end of every chunk, and compute the true success up to that step.

    Args:
        judge: the judge.
        imagined: imagined episodes, from `imagine_training_logs`.
        episodes: `(M,)` indices.
        chunk: number of actions between two evaluations.

    Returns:
        probabilities `(M,C)` and truth `(M,C)` bool (success at this or an earlier step), both padded with their last
        value. An episode with fewer than `chunk` actions is evaluated at its last frame.
    """
    evaluations = max(1, int(imagined.lengths[episodes].max()) // chunk)
    probabilities, truth = np.zeros((len(episodes), evaluations)), np.zeros((len(episodes), evaluations), bool)
    for m, episode in enumerate(episodes):
        rows = imagined.rows(int(episode))
        steps = np.minimum(chunk * np.arange(1, evaluations + 1), rows.stop - rows.start - 1)
        unique_steps = np.unique(steps)
        frames = torch.from_numpy(imagined.frames[rows.start + unique_steps])
        states = torch.from_numpy(imagined.states[rows.start + unique_steps])
        instructions = [imagined.instructions[episode]] * len(unique_steps)
        p = judged(judge, frames[:, None], instructions, states).p_success.cpu().numpy()
        so_far = np.maximum.accumulate(imagined.success[rows])
        probabilities[m], truth[m] = p[np.searchsorted(unique_steps, steps)], so_far[steps]
    return probabilities, truth


def stopped(said: np.ndarray, truth: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Judged and true success, `(N,)` bool each, of episodes that stop at the first probability >= `threshold`."""
    hit = said >= threshold
    stop = np.where(hit.any(1), hit.argmax(1), said.shape[1] - 1)
    return np.asarray(hit.any(1)), truth[np.arange(len(said)), stop]


def precision_recall(said: np.ndarray, truth: np.ndarray, threshold: float) -> tuple[float, float]:
    """Precision and recall over episodes that stop at the first probability >= `threshold`, as in imagined RL.

    An episode is a true positive if it had truly succeeded by then. Precision is nan if no episode is judged a success,
    recall is nan if no episode is truly a success.
    """
    imagined, real = stopped(said, truth, threshold)
    both = float((real & imagined).sum())
    return (
        both / imagined.sum() if imagined.any() else float("nan"),
        both / real.sum() if real.any() else float("nan"),
    )


def balanced_threshold(said: np.ndarray, truth: np.ndarray) -> float:
    """The threshold in [0.2, 0.99] that maximises the minimum of precision and recall."""
    grid = np.linspace(0.2, 0.99, 80)
    worst = [np.nan_to_num(min(precision_recall(said, truth, t))) for t in grid]
    return float(grid[int(np.argmax(worst))])
