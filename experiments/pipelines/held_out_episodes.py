"""Real episodes with the true state of each frame: held-out ones measure world models and are never used for training.

`replayed` gives the true positions of logged episodes, for the position probe.

Example::

    logs = true_logs(("reach", "push"), 60, seed=11_500_000)
    logs.frames, logs.actions, logs.success, logs.positions
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from experiments.suites import domain_settings
from worldgym.data import EpisodeDataset
from worldgym.errors import ConfigError
from worldgym.suite import Suite, extra, load_suite

# These act for the whole horizon; experts stop when they are done. Behaviours that a suite lacks are left out.
BEHAVIOURS = ("noisy", "near_miss", "noisy", "distracted", "noisy", "random")


@dataclass(frozen=True)
class TrueLogs:
    """N episodes of T steps.

    Args:
        frames: `(N,T+1,H,W,3)` uint8.
        actions: `(N,T,A)` in [-1, 1].
        states: `(N,T+1,S)` proprioception.
        success: `(N,T+1)` bool, success at that step.
        positions: `(N,T+1,K,2)` pixel positions of the suite's `parts`, nan if absent.
        instructions, tasks, splits: N each.
    """

    frames: np.ndarray
    actions: np.ndarray
    states: np.ndarray
    success: np.ndarray
    positions: np.ndarray
    instructions: tuple[str, ...]
    tasks: tuple[str, ...]
    splits: tuple[str, ...]

    def head(self, episodes: int) -> TrueLogs:
        """The first `episodes` episodes, or all."""
        return TrueLogs(**{f.name: getattr(self, f.name)[:episodes] for f in fields(self)})


def true_logs(
    tasks: Sequence[str],
    episodes: int,
    *,
    seed: int,
    horizon: int = 40,
    splits: Sequence[str] = ("seen",),
    suite: Suite | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TrueLogs:
    """Roll out demonstrators of mixed skill in the real domain; tasks, splits and behaviours take turns.

    Args:
        tasks: task names.
        episodes: number of episodes.
        seed: seed of the first start; it increases by one per episode.
        horizon: steps per episode.
        splits: splits of start states and instructions.
        suite: the suite; None uses the default one.
        progress: called with (finished episodes, total episodes).

    Raises:
        ConfigError: the suite does not measure positions, or has none of the behaviours.
    """
    suite = load_suite() if suite is None else suite
    watched = extra(suite, "watched", "environment that measures positions")
    env = watched(**domain_settings(suite), terminate_on_success=False, horizon=horizon)
    behaviours = [name for name in BEHAVIOURS if name in suite.behaviours] or list(suite.behaviours)
    logs, positions = [], []
    for i in range(episodes):
        rng = np.random.default_rng(seed + i)
        # The behaviour changes after each cycle through the tasks, the split after each cycle through the behaviours.
        behaviour = behaviours[i // len(tasks) % len(behaviours)]
        split = splits[i // (len(tasks) * len(behaviours)) % len(splits)]
        task = tasks[i % len(tasks)]
        logs.append(suite.demonstrate(env, behaviour, seed=seed + i, task=task, rng=rng, split=split))
        positions.append(env.positions)
        if progress is not None:
            progress(i + 1, episodes)
    env.close()
    return TrueLogs(
        frames=np.stack([log.frames for log in logs]),
        actions=np.stack([log.actions for log in logs]),
        states=np.stack([log.state for log in logs]),
        success=np.stack([log.success for log in logs]),
        positions=np.stack(positions),
        instructions=tuple(log.instruction for log in logs),
        tasks=tuple(log.task for log in logs),
        splits=tuple(log.split for log in logs),
    )


def replayed(
    dataset: EpisodeDataset,
    episodes: int,
    *,
    seed: int,
    suite: Suite,
    every: int = 3,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Frames of logged episodes and true positions in them: their actions are executed once more in Real.

    Tasks and behaviours are drawn equally often, so that what policies do is seen as often as what demonstrators do.

    Args:
        dataset: logs that `worldgym collect` made in the suite's real domain.
        episodes: number of episodes; all if there are fewer.
        seed: seed of the draw.
        suite: the suite.
        every: interval between the frames that are kept.
        progress: called with (finished episodes, total episodes).

    Returns:
        frames `(F,H,W,3)` uint8, and positions `(F,K,2)` in pixels, nan if absent.

    Raises:
        ConfigError: no episode has what a replay needs, or a replay ends elsewhere than the episode did.
    """
    facts = [json.loads(record.provenance_json) for record in dataset.records]
    # Episodes with a warm-up begin after random steps that were not recorded.
    known = [i for i, fact in enumerate(facts) if fact.get("seed") is not None and not fact.get("warmup")]
    known = [i for i in known if dataset.records[i].domain == "real"]
    if not known:
        raise ConfigError(
            f"no episode of {dataset.root} can be executed again: that needs logs of `worldgym collect` in Real"
        )
    kinds = [f"{dataset.records[i].task} {dataset.records[i].behaviour}" for i in known]
    _, kind, count = np.unique(kinds, return_inverse=True, return_counts=True)
    weights = 1.0 / (len(count) * count[kind])
    rows = np.sort(np.random.default_rng(seed).choice(known, min(episodes, len(known)), replace=False, p=weights))
    arrays = dataset.select(rows.tolist()).load_arrays()
    env = extra(suite, "watched", "environment that measures positions")(
        **domain_settings(suite), terminate_on_success=False, horizon=int(np.diff(arrays.offsets).max())
    )
    frames, positions = [], []
    for i, row in enumerate(rows.tolist()):
        record, (low, high) = dataset.records[row], arrays.offsets[i : i + 2]
        options = {"task": record.task, "split": record.split}
        observation, _ = env.reset(seed=int(facts[row]["seed"]), options=options)
        for action in arrays.actions[low : high - 1]:
            observation = env.step(action)[0]
        if not np.allclose(observation["state"], arrays.states[high - 1], atol=1e-2):
            raise ConfigError(
                f"episode {row} of {dataset.root} does not repeat itself in suite {suite.name!r}: it was recorded with "
                "another version or other settings; collect the logs again, or leave --data out"
            )
        frames.append(arrays.frames[low:high:every])
        positions.append(np.asarray(env.positions)[: high - low : every])
        if progress is not None:
            progress(i + 1, len(rows))
    env.close()
    return np.concatenate(frames), np.concatenate(positions)
