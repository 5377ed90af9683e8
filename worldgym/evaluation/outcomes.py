"""Start states, and the outcomes of an evaluation for each start.

A start state is determined by (seed, task, split). Storing the outcome of each start instead of means allows paired
comparisons of evaluations over the same starts, re-analysis from results.json, and controls built from earlier results.

Example::

    starts = make_starts(["reach", "push"], per_task=100)
    before, after = pool.evaluate(sft, starts), pool.evaluate(improved, starts)
    paired_bootstrap(after.success, before.success)
    blind = pool.evaluate(improved, shuffle_instructions(after))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from worldgym.errors import ConfigError
from worldgym.evaluation.statistics import Interval, mean_interval, wilson

EVALUATION_SEED0 = 10_000_000
"""Start seeds from this value on are for evaluation only; data collection uses seeds below 1,000,000."""


@dataclass(frozen=True)
class Start:
    """One start state, determined by task, seed and split.

    Args:
        task: task name of the environment, e.g. "pick_place".
        seed: seed passed to `env.reset`.
        split: evaluation split, e.g. "seen".
        instruction: instruction given to the policy instead of the true one; None for the true one. The environment
            always evaluates the true instruction. Used by the language-blind control.
    """

    task: str
    seed: int
    split: str = "seen"
    instruction: str | None = None


def make_starts(
    tasks: Sequence[str], per_task: int, seed0: int = EVALUATION_SEED0, split: str = "seen"
) -> list[Start]:
    """Make the standard list of starts: `per_task` starts of each task, with tasks interleaved.

    Args:
        tasks: task names, at least one.
        per_task: starts per task, >= 1.
        seed0: seed of the first start, at least 10,000,000.
        split: evaluation split.

    Raises:
        ValueError: there are no tasks or starts, or `seed0` is below the range of evaluation seeds.
    """
    if not tasks or per_task < 1:
        raise ValueError(f"make_starts needs tasks and per_task >= 1, got {list(tasks)} and {per_task}")
    if seed0 < EVALUATION_SEED0:
        raise ValueError(
            f"evaluation seeds start at {EVALUATION_SEED0:,} so that no policy is tested on a start it was "
            f"trained on, got seed0={seed0:,}"
        )
    return [
        Start(task, seed0 + index * len(tasks) + offset, split)
        for index in range(per_task)
        for offset, task in enumerate(tasks)
    ]


@dataclass(frozen=True)
class EvalResult:
    """Outcomes of an evaluation in the order of the starts; results over the same starts are paired.

    Args:
        starts: the N start states.
        success: `(N,)` bool, success at any step (`success_once`).
        progress: `(N,)` float32 in [0, 1], best task progress of the episode.
        steps: `(N,)` int64, environment steps taken.
        instructions: the N true instructions.
        temperature: sampling temperature; 0 is greedy.
        seed: sampling seed.
        seconds: wall time.
    """

    starts: tuple[Start, ...]
    success: np.ndarray
    progress: np.ndarray
    steps: np.ndarray
    instructions: tuple[str, ...]
    temperature: float
    seed: int
    seconds: float = 0.0

    def rate(self) -> Interval:
        """Success rate over all starts with its Wilson interval."""
        return wilson(int(self.success.sum()), len(self.success))

    def mean_progress(self) -> Interval:
        """Mean task progress with its bootstrap interval."""
        return mean_interval(self.progress)

    def tasks(self) -> list[str]:
        """Task names in order of first appearance."""
        return list(dict.fromkeys(start.task for start in self.starts))

    def by_task(self) -> dict[str, Interval]:
        """Success rate per task."""
        names = np.array([start.task for start in self.starts])
        return {t: wilson(int(self.success[names == t].sum()), int((names == t).sum())) for t in self.tasks()}

    def to_dict(self) -> dict[str, Any]:
        """Results as JSON types, including the outcome of each start."""
        return {
            "success": self.rate().to_dict(),
            "progress": self.mean_progress().to_dict(),
            "by_task": {task: rate.to_dict() for task, rate in self.by_task().items()},
            "temperature": self.temperature,
            "seed": self.seed,
            "seconds": round(self.seconds, 2),
            "outcomes": {
                "success": [bool(x) for x in self.success],
                "progress": [round(float(x), 4) for x in self.progress],
                "steps": [int(x) for x in self.steps],
                "instructions": list(self.instructions),
                "starts": [asdict(start) for start in self.starts],
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EvalResult:
        """Rebuild from `to_dict`.

        Raises:
            ValueError: the outcomes of the starts are missing.
        """
        if "outcomes" not in data:
            raise ValueError(f"an evaluation needs its per-start 'outcomes', got keys {sorted(data)}")
        rows = data["outcomes"]
        return cls(
            starts=tuple(Start(**row) for row in rows["starts"]),
            success=np.array(rows["success"], dtype=bool),
            progress=np.array(rows["progress"], dtype=np.float32),
            steps=np.array(rows["steps"], dtype=np.int64),
            instructions=tuple(rows["instructions"]),
            temperature=float(data["temperature"]),
            seed=int(data["seed"]),
            seconds=float(data.get("seconds", 0.0)),
        )


def shuffle_instructions(result: EvalResult, seed: int = 0) -> list[Start]:
    """Copy the starts of `result`, with the instruction of another start given to the policy (language-blind control).

    Every start gets an instruction that differs from its own, from the same set of instructions.

    Args:
        result: any evaluation over the starts; it contains their true instructions.
        seed: seed of the permutation.

    Raises:
        ConfigError: all instructions are equal, so shuffling has no effect.
    """
    own = list(result.instructions)
    if len(set(own)) < 2:
        raise ConfigError(
            f"a wrong instruction needs at least two different ones, got only {own[:1]}; evaluate more tasks"
        )
    rng = np.random.default_rng(seed)
    shuffled = [own[i] for i in rng.permutation(len(own))]
    for i, text in enumerate(shuffled):
        if text == own[i]:
            shuffled[i] = str(rng.choice(sorted(set(own) - {text})))
    return [replace(start, instruction=text) for start, text in zip(result.starts, shuffled, strict=True)]
