"""Audit of judges: all judges score the same imagined episodes, whose actions are also executed in the real domain.

A reward model that a policy was trained on cannot validate that policy. In the audit no judge ends an episode: a policy
acts on imagined frames for the whole horizon, and every judge scores the episode at each check, after every chunk. The
actions are then executed in the real domain from the same start, and the judges can score the real frames at the same
checks. This separates errors of the judge from errors of the world model, shows which judges can be exploited, and
measures the difference between imagined and true success.

Example::

    audit = watch(policy, world_model, {"learned": learned, "vlm": vlm}, env, starts, real_frames=True)
    audit.confusion("learned", 0.8)                    # as if that judge had ended the episodes
    audit.imagined_minus_true("learned", 0.8)          # Interval(mean=0.02, ...)
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worldgym.evaluation.outcomes import Start
from worldgym.evaluation.rollouts import first_observations, reset_env
from worldgym.evaluation.statistics import Confusion, Interval, paired_bootstrap
from worldgym.imagination.episodes import ImaginedEpisodes, views_of
from worldgym.imagination.frame_buffer import FrameBuffer
from worldgym.imagination.observations import state_of
from worldgym.imagination.rollout import ActionRecorder, Decision, rollout
from worldgym.imagination.rules import Rules
from worldgym.protocols import Decode, reads_of, settled

EARLIER = {"said": "scores", "said_of_real": "real_scores", "doubt": "uncertainty"}
"""Earlier name of an attribute of `JudgeAudit` -> name now."""


@dataclass(frozen=True)
class JudgeAudit:
    """Scores of the judges at C checks in each of N episodes, and the true outcomes.

    Args:
        starts: the N start states.
        instructions: N strings.
        scores: by judge, `(N,C)` float32, predicted success probability on imagined frames; nan without a verdict.
        now: `(N,C)` bool, the instruction was fulfilled in the real domain at this check.
        by_then: `(N,C)` bool, the instruction was fulfilled in the real domain at this check or earlier.
        real_scores: by judge, `(N,C)`, scores of the real frames; empty unless requested.
        frames: `(N,C,H,W,3)` uint8, real frames at the checks, or None.
        states: `(N,C,S)` float32, real proprioception at the checks, or None.
        seconds: by judge, computing time on the imagined frames.
        imagined: `(N,C,H,W,3)` uint8, imagined frames at the checks; stored if the real frames are.
        uncertainty: `(N,C)`, largest uncertainty of the world model up to this check.
    """

    starts: tuple[Start, ...]
    instructions: list[str]
    scores: dict[str, np.ndarray]
    now: np.ndarray
    by_then: np.ndarray
    real_scores: dict[str, np.ndarray] = field(default_factory=dict)
    frames: np.ndarray | None = None
    states: np.ndarray | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    imagined: np.ndarray | None = None
    uncertainty: np.ndarray | None = None

    def __getattr__(self, name: str) -> Any:
        """Values by their earlier names, for one version."""
        if name in EARLIER:
            warnings.warn(f"JudgeAudit.{name} is now JudgeAudit.{EARLIER[name]}", DeprecationWarning, stacklevel=2)
            return getattr(self, EARLIER[name])
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def outcomes(self, judge: str, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Outcomes as if `judge` had ended each episode at its first success.

        Returns:
            Three `(N,)` bool arrays: imagined success; real success up to the end of the imagined episode; whether the
            episode is valid, i.e. the judge gave a verdict at every check up to its end.
        """
        p = self.scores[judge]
        hit = p >= threshold  # nan counts as no success
        success: np.ndarray = np.asarray(hit.any(1))
        stop = np.where(success, hit.argmax(1), p.shape[1] - 1)
        checked = np.arange(p.shape[1])[None] <= stop[:, None]
        valid = ~(np.isnan(p) & checked).any(1)
        return success, self.by_then[np.arange(len(p)), stop], valid

    def confusion(self, judge: str, threshold: float, task: str | None = None) -> Confusion:
        """Confusion counts of imagined and real success over valid episodes, optionally of one task."""
        success, real, valid = self.outcomes(judge, threshold)
        if task is not None:
            valid = valid & np.array([start.task == task for start in self.starts])
        return Confusion.of(success[valid], real[valid])

    def imagined_minus_true(self, judge: str, threshold: float) -> Interval | None:
        """Paired difference of imagined minus real success rate; None if there are no valid episodes."""
        success, real, valid = self.outcomes(judge, threshold)
        return paired_bootstrap(success[valid], real[valid]) if valid.any() else None

    def agreement(self, one: str, other: str, thresholds: tuple[float, float]) -> float:
        """Share of equal verdicts among the checks where both judges gave a verdict; nan if there are none."""
        a, b = self.scores[one], self.scores[other]
        both = ~np.isnan(a) & ~np.isnan(b)
        same = (a >= thresholds[0]) == (b >= thresholds[1])
        return float(same[both].mean()) if both.any() else float("nan")

    def calibration(self, judge: str, bins: int = 10) -> list[dict[str, float]]:
        """Calibration by bins of predicted probability, over all checks.

        Each non-empty bin has the mean predicted probability `stated`, the true success rate `true` at the check, and
        the number of checks `count`.
        """
        p, now = self.scores[judge].ravel(), self.now.ravel()
        known = ~np.isnan(p)
        index = np.minimum((p[known] * bins).astype(int), bins - 1)
        return [
            {
                "stated": float(p[known][index == i].mean()),
                "true": float(now[known][index == i].mean()),
                "count": int((index == i).sum()),
            }
            for i in range(bins)
            if (index == i).any()
        ]


def balanced_accuracy(said: Any, true: Any) -> float:
    """Mean of true positive and true negative rate of `said (N,)` bool; nan unless `true (N,)` has both classes."""
    said, true = np.asarray(said, bool), np.asarray(true, bool)
    if not true.any() or true.all():
        return float("nan")
    return float((said[true].mean() + (~said[~true]).mean()) / 2)


def watch(
    policy: Any,
    world_model: Any,
    judges: Mapping[str, Any],
    env: Any,
    starts: Sequence[Start],
    *,
    horizon: int = 40,
    temperature: float = 0.0,
    seed: int = 0,
    real_frames: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> JudgeAudit:
    """Run a policy in imagination for the whole horizon, score it after each chunk, and execute its actions for real.

    Args:
        policy: a `worldgym.protocols.Policy`; each of its chunks is followed by a check by all judges.
        world_model: a `worldgym.protocols.WorldModel`.
        judges: `worldgym.protocols.RewardModel`s by name.
        env: single environment of the real domain, without chunks, which ends only after its horizon
            (`terminate_on_success=False`).
        starts: start states.
        horizon: environment steps.
        temperature: sampling temperature; 0 is greedy.
        seed: seed of all sampling.
        real_frames: store the real frames at the checks, and let the judges score them too.
        progress: called with (episodes executed, total episodes).

    Raises:
        ValueError: there are no starts or no judges.
    """
    import torch

    if not starts or not judges:
        raise ValueError(
            f"an audit needs starts and judges; got {len(starts)} and {len(judges)}; make starts with make_starts(...)"
        )
    generator = torch.Generator().manual_seed(seed)
    observation = first_observations(env, starts)
    texts = [str(text) for text in observation["instruction"]]
    episodes = ImaginedEpisodes.begin(
        world_model,
        None,
        Rules(horizon),
        observation["image"],
        state_of(observation),
        texts,
        generator=generator,
        views=views_of(world_model, observation),
    )
    checks, recorder = JudgeRecorder(judges, keep_frames=real_frames), ActionRecorder(len(texts))

    def act(batch: Any, rows: Any) -> Any:
        return policy.act(batch, temperature=temperature, generator=generator)

    rollout(act, episodes, observers=[checks, recorder], policy=policy)
    ends = np.cumsum(checks.sizes) - 1
    video = any(reads_of(judge).depth != 1 for judge in judges.values())
    executed = [
        _execute(env, start, recorder.actions[row], progress, row, len(starts), keep=real_frames)
        for row, start in enumerate(starts)
    ]
    fulfilled = np.stack([row[0] for row in executed])
    frames, states, of_real = None, None, {}
    if real_frames:
        videos, paths = (np.stack([row[i] for row in executed]) for i in (1, 2))
        frames, states = videos[:, 1:][:, ends], paths[:, 1:][:, ends].astype(np.float32)
        for name, judge in judges.items():
            scores = [
                verdicts(
                    judge,
                    torch.from_numpy(videos[:, : end + 2] if video else videos[:, end + 1 : end + 2]),
                    texts,
                    torch.from_numpy(states[:, c]),
                )
                for c, end in enumerate(ends)
            ]
            of_real[name] = np.stack(scores, 1)
    return JudgeAudit(
        starts=tuple(starts),
        instructions=texts,
        scores={name: np.stack(scores, 1) for name, scores in checks.scores.items()},
        now=fulfilled[:, ends],
        by_then=np.maximum.accumulate(fulfilled, 1)[:, ends],
        real_scores=of_real,
        frames=frames,
        states=states,
        seconds=checks.seconds,
        imagined=np.stack(checks.frames, 1) if checks.frames else None,
        uncertainty=np.maximum.accumulate(np.stack(checks.uncertainty, 1), 1),
    )


class JudgeRecorder:
    """Observer of a rollout that queries every judge after each chunk; one such query is a check.

    Args:
        judges: judges by name.
        keep_frames: store the frame at each check.

    Attributes:
        scores: by judge, one array `(B,)` of scores per check, nan without a verdict.
        seconds: by judge, total computing time.
        sizes: number of actions before each check since the previous one.
        uncertainty: uncertainty of the world model, one array `(B,)` per check.
        frames: one array `(B,H,W,3)` per check, if stored.
    """

    def __init__(self, judges: Mapping[str, Any], keep_frames: bool = False) -> None:
        self.judges, self.keep_frames = judges, keep_frames
        self.scores: dict[str, list[np.ndarray]] = {name: [] for name in judges}
        self.seconds = dict.fromkeys(judges, 0.0)
        self.sizes: list[int] = []
        self.uncertainty: list[np.ndarray] = []
        self.frames: list[np.ndarray] = []
        self.buffers: dict[str, FrameBuffer] = {}
        video = any(reads_of(judge).depth != 1 for judge in judges.values())
        self.decode: Decode = "all" if video else "last"

    def begin(self, episodes: ImaginedEpisodes) -> None:
        """Store the first frames, for judges that read several frames."""
        self.buffers = {
            name: FrameBuffer(episodes.image, reads_of(judge).frames) for name, judge in self.judges.items()
        }

    def __call__(self, decision: Decision) -> None:
        """Query all judges on the episodes after this decision."""
        imagined = decision.step.imagined
        states, texts = imagined.states[:, -1].float(), list(decision.observation["instruction"])
        latents = None if imagined.latents is None else imagined.latents[:, -1]
        self.sizes.append(decision.actions.shape[1])
        self.uncertainty.append(decision.step.uncertainty.astype(np.float32))
        if self.keep_frames:
            self.frames.append(imagined.frames[:, -1].cpu().numpy())
        for name, judge in self.judges.items():
            buffer = self.buffers[name]
            buffer.append(imagined.frames if buffer.decode == "all" else imagined.frames[:, -1:])
            began = time.perf_counter()
            # no episode ends early, so all episodes have the same length
            (_, clips) = next(buffer.clips(np.arange(len(texts))))
            self.scores[name].append(verdicts(judge, clips, texts, states, latents))
            self.seconds[name] += time.perf_counter() - began


def verdicts(judge: Any, frames: Any, texts: Sequence[str], states: Any, latents: Any = None) -> np.ndarray:
    """Scores `(B,)` float32 of a judge for `frames (B,T,H,W,3)` uint8; nan where it gave no verdict."""
    import torch

    with torch.no_grad():
        verdict = settled(judge, frames, list(texts), states, latents)
    p = torch.as_tensor(verdict.p_success).float().cpu().numpy().copy()
    p[~torch.as_tensor(verdict.valid).cpu().numpy().astype(bool)] = np.nan
    return p


def _execute(
    env: Any, start: Start, actions: np.ndarray, progress: Any, row: int, count: int, *, keep: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Execute `actions (T,A)` in the environment.

    Returns whether the instruction is fulfilled after each action, `(T,)` bool, and with `keep` all frames and states
    `(T+1,...)`, else only the first ones. After the end of the episode the last values are repeated.
    """
    observation, _ = reset_env(env, start)
    fulfilled = np.zeros(len(actions), bool)
    frames, states = [np.asarray(observation["image"])], [np.asarray(state_of(observation))]
    over = False
    for t, action in enumerate(actions):
        if not over:
            observation, _, terminated, truncated, info = env.step(np.clip(action, -1, 1))
            over = terminated or truncated
            fulfilled[t] = bool(info["success"])
        else:
            fulfilled[t] = fulfilled[t - 1]
        if keep:
            frames.append(np.asarray(observation["image"]))
            states.append(np.asarray(state_of(observation)))
    if progress is not None:
        progress(row + 1, count)
    return fulfilled, np.stack(frames), np.stack(states)
