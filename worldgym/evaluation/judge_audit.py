"""Auditing judges: the same dreams, seen by all of them, against what the very same actions do in Real.

Why: a reward that is trained against and then believed is not evidence. Here nothing stops: a policy acts on imagined
frames for a whole horizon, every judge says at every look what it thinks, and the actions are executed in Real from the
true start, whose frames at the same looks the judges see as well. So it shows who errs, the judge or the world model,
which judge could have been gamed, and how far imagined success is from the truth.

Example::

    seen = watch(policy, world_model, {"learned": learned, "vlm": vlm}, env, starts, real_frames=True)
    seen.confusion("learned", 0.8)                    # as if that judge had stopped the episodes
    seen.imagined_minus_true("learned", 0.8)          # Interval(mean=0.02, ...)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worldgym.evaluation.outcomes import Start
from worldgym.evaluation.rollouts import first_observations, reset_env
from worldgym.evaluation.statistics import Confusion, Interval, paired_bootstrap
from worldgym.imagination.episodes import ImaginedEpisodes, views_of
from worldgym.imagination.frame_buffer import FrameBuffer
from worldgym.imagination.rollout import ActionRecorder, Decision, rollout
from worldgym.imagination.rules import Rules
from worldgym.protocols import Decode, reads_of, settled


@dataclass(frozen=True)
class JudgeAudit:
    """What judges said at C looks into N episodes, and what was true.

    Args:
        starts: the N starts.
        instructions: N strings.
        said: of each judge `(N,C)` float32, probability of success on imagined frames; nan where it gave no verdict.
        now: `(N,C)` bool, in Real the instruction was fulfilled at that look.
        by_then: `(N,C)` bool, it had been fulfilled at that look or before.
        said_of_real: of each judge `(N,C)`, the same of Real's own frames; empty unless asked for.
        frames: `(N,C,H,W,3)` uint8, Real's frames at the looks, or None.
        states: `(N,C,S)` float32, Real's proprioception there, or None.
        seconds: of each judge, on the imagined frames.
        imagined: `(N,C,H,W,3)` uint8, what was imagined at the looks; kept with Real's frames.
        doubt: `(N,C)` the world model's uncertainty at that look, its largest up to it.
    """

    starts: tuple[Start, ...]
    instructions: list[str]
    said: dict[str, np.ndarray]
    now: np.ndarray
    by_then: np.ndarray
    said_of_real: dict[str, np.ndarray] = field(default_factory=dict)
    frames: np.ndarray | None = None
    states: np.ndarray | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    imagined: np.ndarray | None = None
    doubt: np.ndarray | None = None

    def outcomes(self, judge: str, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As if `judge` had ended each episode at its first success.

        Returns:
            `(N,)` bool each: imagined success; success in Real by then; whether the verdict is valid, which it is not
            where the judge failed before.
        """
        p = self.said[judge]
        hit = p >= threshold  # nan is no success
        success: np.ndarray = np.asarray(hit.any(1))
        stop = np.where(success, hit.argmax(1), p.shape[1] - 1)
        looked = np.arange(p.shape[1])[None] <= stop[:, None]
        valid = ~(np.isnan(p) & looked).any(1)
        return success, self.by_then[np.arange(len(p)), stop], valid

    def confusion(self, judge: str, threshold: float, task: str | None = None) -> Confusion:
        """Imagined success against Real, over valid episodes, of one task when given."""
        success, real, valid = self.outcomes(judge, threshold)
        if task is not None:
            valid = valid & np.array([start.task == task for start in self.starts])
        return Confusion.of(success[valid], real[valid])

    def imagined_minus_true(self, judge: str, threshold: float) -> Interval | None:
        """Imagined less true success, paired; None where every verdict failed."""
        success, real, valid = self.outcomes(judge, threshold)
        return paired_bootstrap(success[valid], real[valid]) if valid.any() else None

    def agreement(self, one: str, other: str, thresholds: tuple[float, float]) -> float:
        """Share of looks at which both gave the same verdict, of those at which both gave one; nan without any."""
        a, b = self.said[one], self.said[other]
        both = ~np.isnan(a) & ~np.isnan(b)
        same = (a >= thresholds[0]) == (b >= thresholds[1])
        return float(same[both].mean()) if both.any() else float("nan")

    def calibration(self, judge: str, bins: int = 10) -> list[dict[str, float]]:
        """Looks by stated probability: means `stated` and `true` (fulfilled at that look), `count`, of filled bins."""
        p, now = self.said[judge].ravel(), self.now.ravel()
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
    """Mean of the rates at which what is true and what is false is told; nan unless both occur. `(N,)` bool each."""
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
    """Act in imagination to the end of the horizon, judge at every look, execute the actions in Real.

    Args:
        policy: obeys `worldgym.protocols.Policy`; a look comes after each of its chunks.
        world_model: obeys `worldgym.protocols.WorldModel`.
        judges: by name; each obeys `worldgym.protocols.RewardModel`.
        env: single, unchunked, at its end by time alone (`terminate_on_success=False`).
        starts: where episodes begin.
        horizon: environment steps.
        temperature: sampling temperature; 0 is greedy.
        seed: everything random.
        real_frames: keep Real's frames at the looks, and let the judges see them as well.
        progress: called with (episodes executed, episodes in all).

    Raises:
        ValueError: no starts, or no judges.
    """
    import torch

    if not starts or not judges:
        raise ValueError(f"watching needs starts and judges; got {len(starts)} and {len(judges)}")
    generator = torch.Generator().manual_seed(seed)
    observation = first_observations(env, starts)
    texts = [str(text) for text in observation["instruction"]]
    episodes = ImaginedEpisodes.begin(
        world_model,
        None,
        Rules(horizon),
        observation["image"],
        observation["state"],
        texts,
        generator=generator,
        views=views_of(world_model, observation),
    )
    looks, did = Looks(judges, keep_frames=real_frames), ActionRecorder(len(texts))

    def act(seen: Any, rows: Any) -> Any:
        return policy.act(seen, temperature=temperature, generator=generator)

    rollout(act, episodes, observers=[looks, did])
    ends = np.cumsum(looks.sizes) - 1
    video = any(reads_of(judge).depth != 1 for judge in judges.values())
    executed = [
        _execute(env, start, did.actions[row], progress, row, len(starts), keep=real_frames)
        for row, start in enumerate(starts)
    ]
    fulfilled = np.stack([row[0] for row in executed])
    frames, states, of_real = None, None, {}
    if real_frames:
        films, paths = (np.stack([row[i] for row in executed]) for i in (1, 2))
        frames, states = films[:, 1:][:, ends], paths[:, 1:][:, ends].astype(np.float32)
        for name, judge in judges.items():
            said = [
                verdicts(
                    judge,
                    torch.from_numpy(films[:, : end + 2] if video else films[:, end + 1 : end + 2]),
                    texts,
                    torch.from_numpy(states[:, c]),
                )
                for c, end in enumerate(ends)
            ]
            of_real[name] = np.stack(said, 1)
    return JudgeAudit(
        starts=tuple(starts),
        instructions=texts,
        said={name: np.stack(said, 1) for name, said in looks.said.items()},
        now=fulfilled[:, ends],
        by_then=np.maximum.accumulate(fulfilled, 1)[:, ends],
        said_of_real=of_real,
        frames=frames,
        states=states,
        seconds=looks.seconds,
        imagined=np.stack(looks.frames, 1) if looks.frames else None,
        doubt=np.maximum.accumulate(np.stack(looks.uncertainty, 1), 1),
    )


class Looks:
    """An observer that asks every judge after each decision.

    Args:
        judges: by name.
        keep_frames: keep the frame at each look.

    Attributes:
        said: of each judge, one array `(B,)` a look, nan where it gave no verdict.
        seconds: of each judge.
        sizes: actions before each look.
        uncertainty: of the world model, one array `(B,)` a look.
        frames: `(B,H,W,3)` a look, where kept.
    """

    def __init__(self, judges: Mapping[str, Any], keep_frames: bool = False) -> None:
        self.judges, self.keep_frames = judges, keep_frames
        self.said: dict[str, list[np.ndarray]] = {name: [] for name in judges}
        self.seconds = dict.fromkeys(judges, 0.0)
        self.sizes: list[int] = []
        self.uncertainty: list[np.ndarray] = []
        self.frames: list[np.ndarray] = []
        self.buffers: dict[str, FrameBuffer] = {}
        video = any(reads_of(judge).depth != 1 for judge in judges.values())
        self.decode: Decode = "all" if video else "last"

    def begin(self, episodes: ImaginedEpisodes) -> None:
        """Remember the first frames for judges of videos."""
        self.buffers = {
            name: FrameBuffer(episodes.image, reads_of(judge).frames) for name, judge in self.judges.items()
        }

    def __call__(self, decision: Decision) -> None:
        """Ask."""
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
            # nothing ends, so that all episodes are equally long
            (_, clips) = next(buffer.clips(np.arange(len(texts))))
            self.said[name].append(verdicts(judge, clips, texts, states, latents))
            self.seconds[name] += time.perf_counter() - began


def verdicts(judge: Any, frames: Any, texts: Sequence[str], states: Any, latents: Any = None) -> np.ndarray:
    """What a judge says of `frames (B,T,H,W,3)` uint8: `(B,)` float32, nan where it gave no verdict."""
    import torch

    with torch.no_grad():
        verdict = settled(judge, frames, list(texts), states, latents)
    p = torch.as_tensor(verdict.p_success).float().cpu().numpy().copy()
    p[~torch.as_tensor(verdict.valid).cpu().numpy().astype(bool)] = np.nan
    return p


def _execute(
    env: Any, start: Start, actions: np.ndarray, progress: Any, row: int, count: int, *, keep: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Real under `actions (T,A)`: fulfilled `(T,)`, and with `keep` frames and states `(T+1,...)`.

    After its end all stays as it was.
    """
    observation, _ = reset_env(env, start)
    fulfilled = np.zeros(len(actions), bool)
    frames, states = [np.asarray(observation["image"])], [np.asarray(observation["state"])]
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
            states.append(np.asarray(observation["state"]))
    if progress is not None:
        progress(row + 1, count)
    return fulfilled, np.stack(frames), np.stack(states)
