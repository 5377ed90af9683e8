"""Real's logs as the world model imagines them: what a judge must read, with labels that are true.

Why: a judge that learned from true frames meets other pictures in imagination. Objects in the hand grow faint, edges
soften, and it can only guess. But every logged action sequence can be imagined from its first frame, and Real has
already said, frame by frame, whether it succeeded. Training on these twins teaches the judge what success looks like
*in this world model*, and calibrating on them says how far its verdicts can be believed. No new interaction with Real
is needed.

Example::

    dreams = imagine_training_logs(world_model, arrays, generator=torch.Generator().manual_seed(0))
    judge, report = train_judge(arrays, world_model.tokenizer, dreams=dreams)
    report["dream/precision"], report["dream/recall"]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

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
    """The same episodes with every frame but the first replaced by what `world_model` imagines under their actions.

    Args:
        world_model: obeys `worldgym.protocols.WorldModel`.
        arrays: Real's logs, from `EpisodeDataset.load_arrays()`.
        episodes: which of them, `(M,)` indices; all when None.
        generator: of the world model's sampling.
        batch: episodes imagined at once.
        progress: called with (episodes done, episodes in all).

    Returns:
        arrays of those episodes with new `frames`; states, actions, labels and `indices` are Real's.
    """
    arrays = take_episodes(arrays, np.arange(len(arrays)) if episodes is None else np.asarray(episodes))
    frames = arrays.frames.copy()
    order = np.argsort(
        -arrays.lengths, kind="stable"
    )  # equal lengths together: no step is imagined for nothing
    for begin in range(0, len(order), batch):
        chosen = order[begin : begin + batch]
        first = arrays.offsets[chosen]
        steps = int(arrays.lengths[chosen[0]])
        if steps == 0:
            break
        rows = np.minimum(first[:, None] + np.arange(steps), arrays.offsets[chosen + 1][:, None] - 1)
        start = torch.from_numpy(arrays.frames[first])[:, None]
        none = torch.zeros(len(chosen), 0, arrays.actions.shape[1], device="cpu")
        state = world_model.begin(
            start, none, generator, states=torch.from_numpy(arrays.states[first])[:, None]
        )
        _, dream = world_model.step(state, torch.from_numpy(arrays.actions[rows]))
        painted = dream.frames.cpu().numpy()
        for row, episode in enumerate(chosen):
            inside = arrays.rows(int(episode))
            frames[inside.start + 1 : inside.stop] = painted[row, : inside.stop - inside.start - 1]
        if progress is not None:
            progress(min(begin + batch, len(order)), len(order))
    return dataclasses.replace(arrays, frames=frames)


def take_episodes(arrays: EpisodeArrays, episodes: np.ndarray) -> EpisodeArrays:
    """Copies of some episodes, `(M,)` indices, in their order."""
    rows = np.concatenate([np.arange(arrays.offsets[i], arrays.offsets[i + 1]) for i in episodes])
    offsets = np.concatenate([[0], np.cumsum(arrays.lengths[episodes] + 1)]).astype(np.int64)
    values: dict[str, Any] = {"offsets": offsets, "indices": arrays.indices[episodes]}
    for name in ("frames", "states", "actions", "success", "progress", "is_last"):
        values[name] = getattr(arrays, name)[rows]
    for name in ("instructions", "tasks", "behaviours", "provenance"):
        values[name] = [getattr(arrays, name)[i] for i in episodes]
    return dataclasses.replace(arrays, **values)


def episode_verdicts(
    judge: LearnedJudge, dreams: EpisodeArrays, episodes: np.ndarray, *, chunk: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    """What the judge says at every chunk's end of dreamed episodes, and what was true by then.

    Args:
        judge: the judge.
        dreams: of `imagine_training_logs`.
        episodes: `(M,)` indices.
        chunk: actions between two looks.

    Returns:
        probabilities `(M,C)` and truth `(M,C)` bool, "had succeeded at this or an earlier step", both padded with their
        last value; an episode of fewer than `chunk` actions counts by its last frame.
    """
    looks = max(1, int(dreams.lengths[episodes].max()) // chunk)
    said, truth = np.zeros((len(episodes), looks)), np.zeros((len(episodes), looks), bool)
    for m, episode in enumerate(episodes):
        rows = dreams.rows(int(episode))
        steps = np.minimum(chunk * np.arange(1, looks + 1), rows.stop - rows.start - 1)
        when = np.unique(steps)
        seen = torch.from_numpy(dreams.frames[rows.start + when])
        states = torch.from_numpy(dreams.states[rows.start + when])
        words = [dreams.instructions[episode]] * len(when)
        p = judged(judge, seen[:, None], words, states).p_success.cpu().numpy()
        so_far = np.maximum.accumulate(dreams.success[rows])
        said[m], truth[m] = p[np.searchsorted(when, steps)], so_far[steps]
    return said, truth


def stopped(said: np.ndarray, truth: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Of episodes that stop at the first verdict of at least `threshold`: `(N,)` bool imagined, and real, success."""
    hit = said >= threshold
    stop = np.where(hit.any(1), hit.argmax(1), said.shape[1] - 1)
    return np.asarray(hit.any(1)), truth[np.arange(len(said)), stop]


def precision_recall(said: np.ndarray, truth: np.ndarray, threshold: float) -> tuple[float, float]:
    """Of episodes that stop at the first verdict of at least `threshold`, as imagined RL does.

    An episode is a true positive when it had really succeeded by then. nan where nothing was said, or nothing true.
    """
    imagined, real = stopped(said, truth, threshold)
    both = float((real & imagined).sum())
    return (
        both / imagined.sum() if imagined.any() else float("nan"),
        both / real.sum() if real.any() else float("nan"),
    )


def balanced_threshold(said: np.ndarray, truth: np.ndarray) -> float:
    """The threshold in [0.2, 0.99] at which the smaller one of precision and recall is largest."""
    grid = np.linspace(0.2, 0.99, 80)
    worst = [np.nan_to_num(min(precision_recall(said, truth, t))) for t in grid]
    return float(grid[int(np.argmax(worst))])
