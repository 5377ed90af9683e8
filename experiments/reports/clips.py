"""Selects and writes the videos of a demo: imagined next to real, and before next to after.

False positives come first, because they show the failures of the method. One start at which the improved policy became
worse is shown together with those at which it became better.

Example::

    rows = imagined_clips(result.clips, Path("runs/demo"), count=6)
    rows[0]     # {"kind": "dream", "gif": "videos/dream-0-fp.gif", "verdict": "fp", "caption": ...}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.reports.videos import save_gif, save_mp4, side_by_side
from worldgym.evaluation import EvalResult
from worldgym.evaluation.closed_loop import Clip
from worldgym.evaluation.outcomes import Start
from worldgym.evaluation.rollouts import batch_observations, reset_env

SHARES = {"fp": 2, "tp": 3, "fn": 1, "tn": 1}


def choose(clips: Sequence[Clip], count: int) -> list[Clip]:
    """Select at most `count` clips, false positives first; includes every verdict and task if possible."""
    chosen: list[Clip] = []
    for verdict, share in SHARES.items():
        pool = [clip for clip in clips if clip.verdict == verdict]
        # One clip of each task before a second one of any task.
        ranks: dict[str, int] = {}
        ranked = []
        for clip in pool:
            ranks[clip.start.task] = ranks.get(clip.start.task, 0) + 1
            ranked.append((ranks[clip.start.task], len(ranked), clip))
        chosen += [clip for _, _, clip in sorted(ranked, key=lambda r: r[:2])[:share]]
    rest = [clip for clip in clips if not any(clip is other for other in chosen)]
    chosen = (chosen + rest)[:count]
    return sorted(chosen, key=lambda clip: list(SHARES).index(clip.verdict))


def imagined_clips(
    clips: Sequence[Clip], out: Path, count: int, own: Callable[[str], object] = str
) -> list[dict[str, Any]]:
    """Write `count` imagined | real videos to `out/videos`; returns their rows. `own` registers each file name."""
    rows = []
    for i, clip in enumerate(choose(clips, count)):
        imagined, real = ("success" if good else "failure" for good in (clip.imagined_success, clip.real_success))
        frames = side_by_side(
            clip.imagined,
            clip.real,
            f"imagined: {imagined}",
            f"real: {real}",
            left_good=clip.imagined_success,
            right_good=clip.real_success,
        )
        row = _write(out, f"dream-{i}-{clip.verdict}", frames, own)
        rows.append({**row, "kind": "dream", "verdict": clip.verdict, **_words(clip.start, clip.instruction)})
    return rows


def before_after_clips(
    env: Any, before: EvalResult, after: EvalResult, sft: Any, improved: Any, out: Path, count: int = 3,
    own: Callable[[str], object] = str,
) -> list[dict[str, Any]]:  # fmt: skip
    """Write greedy SFT | improved videos: up to `count` starts with new successes, and one with a new failure."""
    won = np.flatnonzero(~before.success & after.success)
    lost = np.flatnonzero(before.success & ~after.success)
    tasks = [after.starts[i].task for i in won]
    # One start of each task before a second one of any task.
    order = sorted(range(len(won)), key=lambda j: (tasks[:j].count(tasks[j]), j))
    rows = []
    for i in [*won[order[:count]], *lost[:1]]:
        start = after.starts[i]
        films = [record_episode(policy, env, start) for policy in (sft, improved)]
        titles = [
            f"{name}: {'success' if ok else 'failure'}"
            for name, (_, ok) in zip(("before", "after"), films, strict=True)
        ]
        (left, left_ok), (right, right_ok) = films
        frames = side_by_side(left, right, *titles, left_good=left_ok, right_good=right_ok)
        row = _write(out, f"before-after-{len(rows)}", frames, own)
        rows.append({**row, "kind": "before_after", "verdict": "", **_words(start, after.instructions[i])})
    return rows


def record_episode(policy: Any, env: Any, start: Start) -> tuple[np.ndarray, bool]:
    """Greedy episode in Real: frames `(T+1,H,W,3)` uint8, and whether it succeeded."""
    observation, info = reset_env(env, start)
    frames, success, done = [np.asarray(observation["image"])], bool(info["success"]), False
    while not done:
        for action in policy.act(batch_observations([observation]), temperature=0.0).actions[0].cpu().numpy():
            observation, _, terminated, truncated, info = env.step(action)
            frames.append(np.asarray(observation["image"]))
            success, done = success or bool(info["success"]), bool(terminated or truncated)
            if done:
                break
    return np.stack(frames), success


def _write(out: Path, name: str, frames: np.ndarray, own: Callable[[str], object]) -> dict[str, Any]:
    (out / "videos").mkdir(parents=True, exist_ok=True)
    for suffix, save in ((".gif", save_gif), (".mp4", save_mp4)):
        own(f"videos/{name}{suffix}")
        save(frames, out / "videos" / f"{name}{suffix}")
    return {"gif": f"videos/{name}.gif", "mp4": f"videos/{name}.mp4"}


def _words(start: Start, instruction: str) -> dict[str, Any]:
    return {"task": start.task, "seed": start.seed, "instruction": instruction, "caption": instruction}
