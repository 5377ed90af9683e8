"""Fidelity of a world model on recordings: predicted against recorded frames, beside what a model must exceed.

Episodes are cut into windows of equal length. Each window is predicted from its first frame under the recorded actions.
Beside the model stand the first frame repeated, the model under the actions of another episode, and the tokenizer
alone, which bounds what the model can reach. Intervals resample episodes, since windows of an episode are alike.

Example::

    cut = windows(episodes, length=20)
    facts = measure(model, cut)
    facts["psnr"]["model"]["20"], facts["action_sensitivity"]["mean"]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldgym.errors import ConfigError
from worldgym.utils.files import atomic_path

HORIZONS = (1, 5, 10, 20)
SOURCES = ("model", "first_frame", "shuffled_actions", "tokenizer")
METRICS = ("psnr", "ssim", "features")


@dataclass(frozen=True)
class Windows:
    """N windows of T steps.

    Args:
        frames: `(N,T+1,H,W,3)` uint8.
        actions: `(N,T,A)` in [-1, 1].
        states: `(N,T+1,S)` proprioception.
        episode: `(N,)`, number of each window's episode.
    """

    frames: np.ndarray
    actions: np.ndarray
    states: np.ndarray
    episode: np.ndarray


def windows(episodes: Sequence[Any], length: int, per_episode: int = 4) -> Windows:
    """Cut episodes into windows that do not overlap.

    Args:
        episodes: with `frames (T+1,H,W,3)`, `actions (T,A)` and `state (T+1,S)`.
        length: steps per window. If every episode is shorter, the length of the longest is used; shorter episodes are
            left out.
        per_episode: largest number of windows of an episode, spread over it.

    Raises:
        ConfigError: fewer than two episodes are long enough, so that none has the actions of another.
    """
    length = min(length, max((len(episode.actions) for episode in episodes), default=0))
    found: list[tuple[int, int]] = []
    for number, episode in enumerate(episodes):
        starts = range(0, len(episode.actions) - length + 1, length) if length else range(0)
        chosen = np.unique(np.linspace(0, len(starts) - 1, min(per_episode, len(starts))).round().astype(int))
        found += [(number, starts[at]) for at in chosen]
    if not found:
        raise ConfigError("no episode has an action, so that nothing can be predicted; give another source")
    cut = lambda name, more: np.stack(  # noqa: E731
        [getattr(episodes[number], name)[start : start + length + more] for number, start in found]
    )
    episode = np.array([number for number, _ in found])
    return Windows(cut("frames", 1), cut("actions", 0), cut("state", 1), episode)


def other_actions(cut: Windows, donors: Windows | None = None, seed: int = 0) -> np.ndarray | None:
    """Actions `(N,T,A)` of another episode for each window, each used about equally often.

    They are taken from `donors` if all windows are of one episode; None if there are no donors of that length.
    """
    rng, steps = np.random.default_rng(seed), cut.actions.shape[1]
    if len(np.unique(cut.episode)) > 1:
        pool, apart = cut.actions, cut.episode[:, None] != cut.episode
    elif donors is not None and donors.actions.shape[1] >= steps:
        pool, apart = donors.actions[:, :steps], np.ones((len(cut.episode), len(donors.actions)), bool)
    else:
        return None
    found, used = np.zeros(len(cut.episode), int), np.zeros(len(pool), int)
    for window in rng.permutation(len(found)):
        allowed = np.flatnonzero(apart[window])
        found[window] = rng.choice(allowed[used[allowed] == used[allowed].min()])
        used[found[window]] += 1
    return pool[found]


def measure(model: Any, cut: Windows, seed: int = 0, donors: Windows | None = None) -> dict[str, Any]:
    """Predict all windows, and compare with what was recorded.

    Args:
        model: a `worldgym.protocols.WorldModel` with a `tokenizer`.
        cut: windows of episodes that training left out, or of those that it saw.
        seed: of the model's noise, and of the choice of other actions.
        donors: windows of other episodes, whose actions are used if all windows are of one episode.

    Returns:
        `episodes`, `windows`, `steps`; `psnr` (dB), `ssim` and `features` (EfficientNet distance, smaller is nearer),
        each for `SOURCES` by horizon as text; `gain` (dB over the first frame repeated, at each horizon) and
        `action_sensitivity` (`worldgym.evaluation.fidelity.action_sensitivity`), each as `mean`, `low`, `high` with the
        95 % bootstrap interval over episodes. `shuffled_actions` and `action_sensitivity` are None without the actions
        of another episode.
    """
    import torch

    from worldgym.evaluation import fidelity

    steps = cut.actions.shape[1]
    at = np.array([h for h in HORIZONS if h <= steps] or [steps]) - 1
    imagine = lambda actions: fidelity.imagine_logs(  # noqa: E731
        model, cut.frames, actions, cut.states, torch.Generator().manual_seed(seed)
    )[0]
    true, other = cut.frames[:, 1:], other_actions(cut, donors, seed)
    pictures = {"model": imagine(cut.actions), "first_frame": np.repeat(cut.frames[:, :1], steps, 1)}
    pictures["shuffled_actions"] = None if other is None else imagine(other)
    flat = torch.from_numpy(np.ascontiguousarray(true[:, at]))
    again = model.tokenizer.decode(model.tokenizer.encode(flat.flatten(0, 1))).cpu().numpy()
    facts: dict[str, Any] = {
        "episodes": len(np.unique(cut.episode)), "windows": len(cut.episode), "steps": steps,
        **{metric: {} for metric in METRICS},
    }  # fmt: skip
    scores: dict[str, np.ndarray] = {}
    for name in SOURCES:
        shown = again.reshape(flat.shape) if name == "tokenizer" else pictures[name]
        if shown is None:
            facts |= {metric: {**facts[metric], name: None} for metric in METRICS}
            continue
        shown = shown if name == "tokenizer" else shown[:, at]
        scores[name] = fidelity.psnr(true[:, at], shown)
        values = {
            "psnr": scores[name], "ssim": fidelity.ssim(true[:, at], shown),
            "features": fidelity.feature_distances(true[:, at], shown, every=1),
        }  # fmt: skip
        for metric, value in values.items():
            facts[metric][name] = {str(h + 1): float(v) for h, v in zip(at, value.mean(0), strict=True)}
    gain = scores["model"] - scores["first_frame"]
    facts["gain"] = {str(h + 1): over_episodes(gain[:, i], cut.episode) for i, h in enumerate(at)}
    facts["action_sensitivity"] = None
    if pictures["shuffled_actions"] is not None:
        wrong = lambda name: np.square(true.astype(np.float32) - pictures[name]).mean((1, 2, 3, 4))  # noqa: E731
        facts["action_sensitivity"] = over_episodes(
            wrong("model"), cut.episode, wrong("shuffled_actions"), lambda a, b: 1 - a / np.maximum(b, 1e-9)
        )
    return facts


def over_episodes(
    values: np.ndarray,
    episode: np.ndarray,
    second: np.ndarray | None = None,
    combine: Callable[[Any, Any], Any] = lambda a, b: a,
    seed: int = 0,
    draws: int = 5_000,
) -> dict[str, float | None]:
    """Mean of `values (N,)`, or `combine` of it and the mean of `second (N,)`, with its 95 % interval.

    Episodes are resampled, each with all its windows. The interval is None for one episode.
    """
    names, index = np.unique(episode, return_inverse=True)
    second = np.ones(len(values)) if second is None else second
    sums = np.stack([np.bincount(index, column) for column in (values, second, np.ones(len(values)))], 1)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    total = drawn @ sums
    spread = combine(total[:, 0] / total[:, 2], total[:, 1] / total[:, 2])
    mean = float(combine(values.mean(), second.mean()))
    if len(names) < 2:
        return {"mean": mean, "low": None, "high": None}
    low, high = np.quantile(spread, (0.025, 0.975))
    return {"mean": mean, "low": float(low), "high": float(high)}


def film(model: Any, cut: Windows, path: Path, rows: int = 4, every: int = 4, scale: int = 2, seed: int = 0) -> None:
    """Write a PNG of `rows` windows: recorded frames, predicted ones, and predicted ones under others' actions."""
    import torch
    from PIL import Image

    from worldgym.evaluation import fidelity

    chosen = np.linspace(0, len(cut.episode) - 1, min(rows, len(cut.episode))).round().astype(int)
    other, bands = other_actions(cut, seed=seed), []
    for window in chosen:
        one = slice(window, window + 1)
        sources = [cut.actions[one]] + ([] if other is None else [other[one]])
        bands.append(cut.frames[window])
        for actions in sources:
            generator = torch.Generator().manual_seed(seed)
            frames, _ = fidelity.imagine_logs(model, cut.frames[one], actions, cut.states[one], generator)
            bands.append(np.concatenate([cut.frames[window, :1], frames[0]]))
    picture = np.concatenate([np.concatenate(list(band[::every]), 1) for band in bands])
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (picture.shape[1] * scale, picture.shape[0] * scale)
    with atomic_path(path) as temporary:
        Image.fromarray(picture).resize(size, Image.Resampling.NEAREST).save(temporary, "PNG")
