"""The gate before any RL: are imagined successes real?

Why: a world model can show fine PSNR and replay logged actions well, and still be at chance where it
matters, on its *own* frames under a policy that acts on them. So a policy acts on imagined frames, a judge
says when it has succeeded, and then the very same actions are executed in Real from the same true start.
Precision and recall of imagined success, with intervals, decide whether a reward from this world model means
anything.

Example::

    result = run_closed_loop(policy, world_model, judge, env, starts, temperature=0.0, seed=0)
    result.confusion.precision          # Interval(mean=0.86, ...)
    result.passes(0.8)                  # precision and recall both at least 0.8
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worldgym.evaluation.rollouts import Start, first_observations, reset_env
from worldgym.evaluation.statistics import Confusion, Interval, wilson
from worldgym.imagination.rollout import run_policy


@dataclass(frozen=True)
class Clip:
    """Frames of one episode, imagined and real, from the same start under the same actions.

    Args:
        start: the start state.
        instruction: what the policy was told.
        imagined: `(T+1, H, W, 3)` uint8.
        real: `(T'+1, H, W, 3)` uint8; T' is smaller when Real ended earlier.
        imagined_success: the judge's verdict on the imagined frames.
        real_success: what really happened.
    """

    start: Start
    instruction: str
    imagined: np.ndarray
    real: np.ndarray
    imagined_success: bool
    real_success: bool

    @property
    def verdict(self) -> str:
        """One of "tp", "fp", "fn", "tn"."""
        return ("t" if self.imagined_success == self.real_success else "f") + "np"[self.imagined_success]


@dataclass(frozen=True)
class ClosedLoopResult:
    """Imagined against real success, in start order.

    Args:
        starts: the N starts.
        imagined: `(N,)` bool, the judge's verdict in imagination.
        real: `(N,)` bool, success in Real at any step of the executed actions.
        steps: `(N,)` int64, actions executed, i.e. up to the imagined stop.
        judge: name of the judge.
        invalid: `(N,)` bool, the judge failed or the world model was too unsure; such episodes are not counted.
        clips: frames of the first few episodes.
    """

    starts: tuple[Start, ...]
    imagined: np.ndarray
    real: np.ndarray
    steps: np.ndarray
    judge: str
    invalid: np.ndarray
    clips: list[Clip] = field(default_factory=list, compare=False)

    @property
    def confusion(self) -> Confusion:
        """Counts over all valid episodes."""
        return Confusion.of(self.imagined[~self.invalid], self.real[~self.invalid])

    def by_task(self) -> dict[str, Confusion]:
        """Counts per task."""
        names = np.array([start.task for start in self.starts])
        masks = {task: (names == task) & ~self.invalid for task in dict.fromkeys(names.tolist())}
        return {task: Confusion.of(self.imagined[mask], self.real[mask]) for task, mask in masks.items()}

    def rates_by_task(self) -> dict[str, dict[str, Interval]]:
        """Imagined and real success rate per task, of tasks with a valid episode."""
        return {
            task: {"imagined": wilson(c.tp + c.fp, c.n), "real": wilson(c.tp + c.fn, c.n)}
            for task, c in self.by_task().items()
            if c.n
        }

    def imagined_rate(self) -> Interval | None:
        """Imagined success rate, None when every judgement failed."""
        valid = ~self.invalid
        return wilson(int(self.imagined[valid].sum()), int(valid.sum())) if valid.any() else None

    def real_rate(self) -> Interval | None:
        """Success rate of the executed actions, None when every judgement failed."""
        valid = ~self.invalid
        return wilson(int(self.real[valid].sum()), int(valid.sum())) if valid.any() else None

    def passes(self, threshold: float = 0.8) -> bool:
        """Whether precision and recall are both defined and at least `threshold`."""
        rates = (self.confusion.precision, self.confusion.recall)
        return all(rate is not None and rate.mean >= threshold for rate in rates)

    def to_dict(self) -> dict[str, Any]:
        """JSON types, false positives first."""
        rates = {"imagined_success": self.imagined_rate(), "real_success": self.real_rate()}
        return {
            "confusion": self.confusion.to_dict(),
            "by_task": {task: table.to_dict() for task, table in self.by_task().items()},
            **{name: rate.to_dict() if rate is not None else None for name, rate in rates.items()},
            "invalid": int(self.invalid.sum()),
            "judge": self.judge,
            "outcomes": {
                "imagined": [bool(x) for x in self.imagined],
                "real": [bool(x) for x in self.real],
                "steps": [int(x) for x in self.steps],
            },
        }


def replay_actions(
    env: Any, start: Start, actions: np.ndarray, *, record: bool = False
) -> tuple[bool, np.ndarray]:
    """Execute `actions (T,A)` in an environment from a start state.

    Returns:
        Whether it succeeded at any step, and frames `(T'+1,H,W,3)` uint8 (the first alone when not recorded).
    """
    observation, info = reset_env(env, start)
    frames, success = [np.asarray(observation["image"])], bool(info.get("success", False))
    for action in actions:
        observation, _, terminated, truncated, info = env.step(action)
        success = success or bool(info["success"])
        if record:
            frames.append(np.asarray(observation["image"]))
        if terminated or truncated:
            break
    return success, np.stack(frames)


def run_closed_loop(
    policy: Any,
    world_model: Any,
    judge: Any,
    env: Any,
    starts: Sequence[Start],
    *,
    temperature: float = 0.0,
    seed: int = 0,
    horizon: int = 40,
    threshold: float | None = None,
    confirm: int = 1,
    max_uncertainty: float | None = None,
    batch: int = 50,
    clips: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ClosedLoopResult:
    """Act in imagination, execute the same actions in Real from the same start, compare.

    Args:
        policy: acts on imagined frames. One with a method `prepare(starts)` gets each batch's starts before, and then
            `observation["row"]`, `(B,)` int64: which of them each row is.
        world_model: imagines.
        judge: decides success at chunk ends; the first success stops the episode.
        env: Real, with `reset(seed, options)` and `info["success"]`.
        starts: evaluation starts.
        temperature: sampling temperature; 0 is greedy.
        seed: seeds policy and world model sampling.
        horizon: environment steps.
        threshold: judge threshold on `p_success`; the judge's own, else 0.5, when None.
        confirm: successive chunk ends that must be judged successful.
        max_uncertainty: of the world model, beyond which an episode is dropped; never when None.
        batch: episodes imagined at once; part of the result's identity, as sampling is seeded per batch.
        clips: keep the frames of this many first episodes.
        progress: called with (episodes done, episodes in all).

    Raises:
        ValueError: when there are no starts.
    """
    import torch

    if not starts:
        raise ValueError("closed loop needs at least one start; make some with make_starts(tasks, per_task)")
    imagined, real, invalid, steps, kept = [], [], [], [], []
    # The recorded episodes come first, in a batch of their own: only they pay for decoding every frame.
    cuts = [0, *range(min(clips, len(starts)), len(starts), batch), len(starts)]
    for low, high in zip(cuts[:-1], cuts[1:], strict=True):
        block = list(starts[low:high])
        if not block:
            continue
        record = high <= clips
        words = np.random.SeedSequence([seed, *(start.seed for start in block)]).generate_state(2)
        generator = torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
        observation = first_observations(env, block)
        if hasattr(policy, "prepare"):
            policy.prepare(block)
        episode = run_policy(
            policy,
            world_model,
            judge,
            observation,
            horizon=horizon,
            temperature=temperature,
            threshold=threshold,
            confirm=confirm,
            max_uncertainty=max_uncertainty,
            generator=generator,
            record=record,
        )
        for i, start in enumerate(block):
            happened, frames = replay_actions(env, start, episode.actions[i], record=record)
            imagined.append(bool(episode.success[i]))
            real.append(happened)
            invalid.append(bool(episode.invalid[i]))
            steps.append(len(episode.actions[i]))
            if record and episode.frames is not None:
                text = observation["instruction"][i]
                kept.append(Clip(start, text, episode.frames[i], frames, imagined[-1], happened))
        if progress is not None:
            progress(high, len(starts))
    return ClosedLoopResult(
        starts=tuple(starts),
        imagined=np.array(imagined, dtype=bool),
        real=np.array(real, dtype=bool),
        steps=np.array(steps, dtype=np.int64),
        judge=str(judge.name),
        invalid=np.array(invalid, dtype=bool),
        clips=kept,
    )
