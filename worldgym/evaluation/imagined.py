"""Evaluation of a policy in imagination: success and progress as judged on imagined frames, as in WorldGym.

It needs no simulator and no robot. Whether such a rate is true is what `run_closed_loop` measures.

Example::

    result = evaluate_imagined(policy, world_model, judge, observation, tasks, max_uncertainty=2.0)
    result.rate(), result.progress_interval(), result.hallucinated.sum()
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldgym.evaluation.statistics import Interval, mean_interval, wilson
from worldgym.imagination.rollout import Decision, run_policy
from worldgym.protocols import Decode

logger = logging.getLogger(__name__)
TRIES = 3
"""How often a batch is imagined whose world model is lost."""


@dataclass(frozen=True)
class ImaginedResult:
    """Outcomes of N imagined episodes, in the order of the starts.

    Args:
        tasks: N task names.
        instructions: the N instructions.
        success: `(N,)` bool, judged successful at the end of a chunk.
        progress: `(N,)` float32 in [0, 1], the highest probability of success that the judge gave in the episode.
        steps: `(N,)` int64, imagined actions.
        invalid: `(N,)` bool; these episodes count neither as success nor as failure.
        hallucinated: `(N,)` bool, invalid because the world model was too uncertain.
        lost: `(N,)` bool, invalid because the world model did not answer, three times: all episodes of the batch, so
            that those which had already succeeded are not the only ones that count. The remaining invalid episodes are
            those in which the judge failed.
        judge: name of the judge.
        temperature: sampling temperature; 0 is greedy.
        seed: sampling seed.
        seconds: wall time.
    """

    tasks: tuple[str, ...]
    instructions: tuple[str, ...]
    success: np.ndarray
    progress: np.ndarray
    steps: np.ndarray
    invalid: np.ndarray
    hallucinated: np.ndarray
    lost: np.ndarray
    judge: str
    temperature: float
    seed: int
    seconds: float = 0.0

    @property
    def valid(self) -> np.ndarray:
        """`(N,)` bool."""
        return ~self.invalid

    @property
    def judge_failed(self) -> np.ndarray:
        """`(N,)` bool, invalid because the judge gave no verdict."""
        failed: np.ndarray = self.invalid & ~self.hallucinated & ~self.lost
        return failed

    def rate(self) -> Interval | None:
        """Success rate of the valid episodes with its Wilson interval; None if there are none."""
        count = int(self.valid.sum())
        return wilson(int(self.success[self.valid].sum()), count) if count else None

    def progress_interval(self) -> Interval | None:
        """Mean progress of the valid episodes with its bootstrap interval; None if there are none."""
        return mean_interval(self.progress[self.valid]) if self.valid.any() else None

    def by_task(self) -> dict[str, Interval | None]:
        """Success rate of the valid episodes of each task; None for a task without any."""
        names, out = np.array(self.tasks), {}
        for task in dict.fromkeys(self.tasks):
            chosen = (names == task) & self.valid
            out[task] = wilson(int(self.success[chosen].sum()), int(chosen.sum())) if chosen.any() else None
        return out

    def to_dict(self) -> dict[str, Any]:
        """Results as JSON types, including the outcome of each episode; None for an invalid one."""

        def told(interval: Interval | None) -> Any:
            return None if interval is None else interval.to_dict()

        return {
            "success": told(self.rate()),
            "progress": told(self.progress_interval()),
            "by_task": {task: told(rate) for task, rate in self.by_task().items()},
            "judge": self.judge,
            "episodes": len(self.tasks),
            "invalid": int(self.invalid.sum()),
            "hallucination_stops": int(self.hallucinated.sum()),
            "server_failures": int(self.lost.sum()),
            "judge_failures": int(self.judge_failed.sum()),
            "temperature": self.temperature,
            "seed": self.seed,
            "seconds": round(self.seconds, 2),
            "outcomes": {
                "success": [bool(x) if ok else None for x, ok in zip(self.success, self.valid, strict=True)],
                "progress": [
                    round(float(x), 4) if ok else None
                    for x, ok in zip(self.progress, self.valid, strict=True)
                ],
                "steps": [int(x) for x in self.steps],
                "tasks": list(self.tasks),
                "instructions": list(self.instructions),
            },
        }


class _Verdicts:
    """Records the highest judged probability of each episode, which ones the world model ended, and if it was lost."""

    decode: Decode = "last"

    def __init__(self, count: int) -> None:
        self.best, self.hallucinated = np.zeros(count, np.float32), np.zeros(count, np.bool_)
        self.lost = False

    def begin(self, episodes: Any) -> None:
        """Called before the first decision; there is nothing to record."""

    def __call__(self, decision: Decision) -> None:
        """Record the judgements of the running episodes."""
        step, rows, live = decision.step, decision.rows, decision.live
        judged = live & step.outcome.sound
        self.best[rows[judged]] = np.maximum(self.best[rows[judged]], step.p[judged].astype(np.float32))
        self.hallucinated[rows[live]] |= step.hallucination[live]
        self.lost |= bool(np.isnan(step.uncertainty[live]).any())


def evaluate_imagined(
    policy: Any,
    world_model: Any,
    judge: Any,
    observation: Mapping[str, Any],
    tasks: Sequence[str],
    *,
    temperature: float = 0.0,
    seed: int = 0,
    horizon: int = 40,
    threshold: float | None = None,
    confirm: int = 1,
    max_uncertainty: float | None = None,
    batch: int = 50,
    progress: Callable[[int, int], None] | None = None,
) -> ImaginedResult:
    """Run a policy once from each of N starts in imagination.

    Args:
        policy: a `worldgym.protocols.Policy`.
        world_model: predicts the frames.
        judge: decides success at the end of each chunk; the first success ends the episode.
        observation: the N first observations, in the format of `Policy.act`.
        tasks: N task names, for tables.
        temperature: sampling temperature; 0 is greedy.
        seed: seed of the sampling of policy and world model.
        horizon: environment steps.
        threshold: threshold on `p_success`; when None, that of the judge, or else 0.5.
        confirm: number of successive chunk ends that must be judged successful.
        max_uncertainty: episodes with a higher uncertainty of the world model are invalid; None for no limit.
        batch: episodes per batch; changes the result, because sampling is seeded per batch.
        progress: called with (episodes done, total episodes).

    Raises:
        ValueError: there are no starts.
        ConfigError: policy, judge and world model do not fit each other.
    """
    import torch

    count = len(tasks)
    if not count or count != len(observation["instruction"]):
        raise ValueError(
            f"got {len(observation['instruction'])} starts with {count} tasks; expected at least one start, and a "
            "task for each"
        )
    began, texts = time.perf_counter(), [str(text) for text in observation["instruction"]]
    success, invalid = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
    best, hallucinated = np.zeros(count, np.float32), np.zeros(count, np.bool_)
    steps = np.zeros(count, np.int64)
    lost = np.zeros(count, np.bool_)
    for low in range(0, count, batch):
        high = min(low + batch, count)
        words = np.random.SeedSequence([seed, low]).generate_state(2)
        for _ in range(TRIES):
            verdicts = _Verdicts(high - low)
            episode = run_policy(
                policy,
                world_model,
                judge,
                {key: value[low:high] for key, value in observation.items()},
                horizon=horizon,
                temperature=temperature,
                threshold=threshold,
                confirm=confirm,
                max_uncertainty=max_uncertainty,
                generator=torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1),
                observers=[verdicts],
            )
            if not verdicts.lost:
                break
            logger.warning("the world model was lost in episodes %d to %d, which are repeated", low, high - 1)
        lost[low:high] = verdicts.lost
        success[low:high], invalid[low:high] = episode.success & ~verdicts.lost, episode.invalid | verdicts.lost
        best[low:high] = verdicts.best
        hallucinated[low:high] = verdicts.hallucinated & episode.invalid & ~verdicts.lost
        steps[low:high] = [len(actions) for actions in episode.actions]
        if progress is not None:
            progress(high, count)
    return ImaginedResult(
        tasks=tuple(tasks),
        instructions=tuple(texts),
        success=success,
        progress=best,
        steps=steps,
        invalid=invalid,
        hallucinated=hallucinated,
        lost=lost,
        judge=str(judge.name),
        temperature=float(temperature),
        seed=int(seed),
        seconds=time.perf_counter() - began,
    )
