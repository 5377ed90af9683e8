"""Closed-loop test of a world model before RL: do imagined successes also succeed in the real domain?

A world model can have a high PSNR and replay recorded actions well, but still be at chance on its *own* frames under a
policy that acts on them. Here a policy acts on imagined frames and a judge decides success. The same actions are then
executed in the real domain from the same start state. Precision and recall of imagined success, with intervals, show
whether rewards from this world model are valid.

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
from worldgym.protocols import uncertainty_kind


@dataclass(frozen=True)
class Clip:
    """Imagined and real frames of one episode, from the same start state under the same actions.

    Args:
        start: the start state.
        instruction: the instruction given to the policy.
        imagined: `(T+1, H, W, 3)` uint8.
        real: `(T'+1, H, W, 3)` uint8; T' < T if the real episode ended earlier.
        imagined_success: the judge's verdict on the imagined frames.
        real_success: success of the executed actions.
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
    """Imagined and real success of each episode, in the order of the starts.

    Args:
        starts: the N start states.
        imagined: `(N,)` bool, the judge's verdict on the imagined episode.
        real: `(N,)` bool, success in the real domain at any step of the executed actions.
        steps: `(N,)` int64, number of executed actions, which is the length of the imagined episode.
        judge: name of the judge.
        invalid: `(N,)` bool, the judge failed or the uncertainty of the world model was too high; these episodes are
            not counted.
        clips: frames of the first few episodes.
        uncertainty: `(N,)` float64, largest uncertainty of each imagined episode, or None.
        uncertainty_kind: what it is: `own`, `ensemble` or `verdicts`.
    """

    starts: tuple[Start, ...]
    imagined: np.ndarray
    real: np.ndarray
    steps: np.ndarray
    judge: str
    invalid: np.ndarray
    clips: list[Clip] = field(default_factory=list, compare=False)
    uncertainty: np.ndarray | None = None
    uncertainty_kind: str = "own"

    @property
    def confusion(self) -> Confusion:
        """Confusion counts over all valid episodes."""
        return Confusion.of(self.imagined[~self.invalid], self.real[~self.invalid])

    def by_task(self) -> dict[str, Confusion]:
        """Confusion counts over the valid episodes of each task."""
        names = np.array([start.task for start in self.starts])
        masks = {task: (names == task) & ~self.invalid for task in dict.fromkeys(names.tolist())}
        return {task: Confusion.of(self.imagined[mask], self.real[mask]) for task, mask in masks.items()}

    def wrong_verdict_auroc(self) -> float | None:
        """AUROC of the uncertainty as a predictor of a wrong verdict; None if no verdict is wrong, or all are."""
        from worldgym.evaluation.fidelity import auroc

        valid = ~self.invalid
        if self.uncertainty is None or not valid.any():
            return None
        return auroc(self.uncertainty[valid], (self.imagined != self.real)[valid])

    def rates_by_task(self) -> dict[str, dict[str, Interval]]:
        """Imagined and real success rate per task, for tasks with at least one valid episode."""
        return {
            task: {"imagined": wilson(c.tp + c.fp, c.n), "real": wilson(c.tp + c.fn, c.n)}
            for task, c in self.by_task().items()
            if c.n
        }

    def imagined_rate(self) -> Interval | None:
        """Imagined success rate over valid episodes; None if there are none."""
        valid = ~self.invalid
        return wilson(int(self.imagined[valid].sum()), int(valid.sum())) if valid.any() else None

    def real_rate(self) -> Interval | None:
        """Real success rate of the executed actions over valid episodes; None if there are none."""
        valid = ~self.invalid
        return wilson(int(self.real[valid].sum()), int(valid.sum())) if valid.any() else None

    def passes(self, threshold: float = 0.8) -> bool:
        """Whether precision and recall are both defined and at least `threshold`."""
        rates = (self.confusion.precision, self.confusion.recall)
        return all(rate is not None and rate.mean >= threshold for rate in rates)

    def to_dict(self) -> dict[str, Any]:
        """Results as JSON types; the counts list false positives first."""
        rates = {"imagined_success": self.imagined_rate(), "real_success": self.real_rate()}
        return {
            "confusion": self.confusion.to_dict(),
            "by_task": {task: table.to_dict() for task, table in self.by_task().items()},
            **{name: rate.to_dict() if rate is not None else None for name, rate in rates.items()},
            "invalid": int(self.invalid.sum()),
            "judge": self.judge,
            "uncertainty": {"kind": self.uncertainty_kind, "wrong_verdict_auroc": self.wrong_verdict_auroc()},
            "outcomes": {
                "imagined": [
                    None if bad else bool(x) for x, bad in zip(self.imagined, self.invalid, strict=True)
                ],
                "real": [bool(x) for x in self.real],
                "steps": [int(x) for x in self.steps],
                "uncertainty": None if self.uncertainty is None else [finite_or_none(x) for x in self.uncertainty],
            },
        }


def finite_or_none(value: float) -> float | None:
    """A float for JSON, which has no NaN."""
    return float(value) if np.isfinite(value) else None


def replay_actions(
    env: Any, start: Start, actions: np.ndarray, *, record: bool = False
) -> tuple[bool, np.ndarray]:
    """Execute `actions (T,A)` in an environment from a start state.

    Returns:
        Whether the episode succeeded at any step, and frames `(T'+1,H,W,3)` uint8 (only the first without `record`).
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
    """Run a policy in imagination, execute the same actions in the real domain from the same starts, and compare.

    Args:
        policy: acts on imagined frames. If it has a method `prepare(starts)`, this is called with the starts of each
            batch, and observations get the entry `row`, `(B,)` int64, the index of the start of each row.
        world_model: predicts the frames.
        judge: decides success at the end of each chunk; the first success ends the episode.
        env: environment of the real domain, with `reset(seed, options)` and `info["success"]`.
        starts: start states.
        temperature: sampling temperature; 0 is greedy.
        seed: seed of the sampling of policy and world model.
        horizon: environment steps.
        threshold: threshold on `p_success`; when None, that of the judge, or else 0.5.
        confirm: number of successive chunk ends that must be judged successful.
        max_uncertainty: episodes with a higher uncertainty of the world model are invalid; None for no limit.
        batch: episodes per batch; changes the result, because sampling is seeded per batch.
        clips: number of episodes, from the first on, whose frames are kept.
        progress: called with (episodes done, total episodes).

    Raises:
        ValueError: there are no starts.
    """
    import torch

    if not starts:
        raise ValueError("the closed loop needs at least one start; make some with make_starts(tasks, per_task)")
    imagined, real, invalid, steps, kept, uncertainty = [], [], [], [], [], []
    # The recorded episodes form a separate first batch, since only they need all frames decoded.
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
        uncertainty += episode.uncertainty.tolist()
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
        uncertainty=np.array(uncertainty),
        uncertainty_kind=uncertainty_kind(world_model),
    )
