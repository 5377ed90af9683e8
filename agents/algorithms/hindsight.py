"""Hindsight by the judge: an attempt that failed its instruction has often fulfilled another one.

Hindsight experience replay (Andrychowicz et al. 2017) relabels a failed attempt with the goal that it reached. With
language, the reached goal is a sentence, so the judge is asked: the last frame of every failed attempt is scored with
other instructions, and an attempt that the judge is sure of becomes a success of that instruction. Instructions that
were fulfilled at the start already do not count, because the attempt did nothing for them.

The rollouts say which other instructions could be followed from their starts (`Suite.other_instructions`, or the start
set). If they do not, all instructions of the same task in the start set are candidates, also those that name objects
which are not there, and the judge accepts such sentences too often (docs/guides/fast_world_models.md).

The judge's errors become labels here, so audit them: `audit` executes relabelled attempts in the real domain.

Example::

    extra, facts = relabel(rollouts, judge, {"reach": [...]}, threshold=0.9, rng=np.random.default_rng(0))
    imitation.remember(policy, extra)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from agents.rollouts.trajectories import Rollouts
from worldgym.errors import ConfigError
from worldgym.protocols import reads_of, settled


def relabel(
    rollouts: Rollouts,
    judge: Any,
    sentences: Mapping[str, Sequence[str]],
    *,
    threshold: float,
    rng: np.random.Generator,
    candidates: int = 8,
    keep_groups: bool = False,
) -> tuple[Rollouts | None, dict[str, float]]:
    """Failed attempts that fulfil another instruction, as successes of it.

    Args:
        rollouts: imagined attempts, with the path of proprioception.
        judge: scores single frames.
        sentences: instructions by task, for rollouts without `other_instructions`: those of the task of an attempt's
            own instruction are asked.
        threshold: lowest probability that counts.
        rng: draws which sentences are asked.
        candidates: at most this many sentences per attempt.
        keep_groups: keep the group of each attempt; otherwise each is a group of its own.

    Returns:
        relabelled attempts, or None if there are none, and counts: `failures`, `asked` (sentences), `relabelled`.

    Raises:
        ConfigError: the judge reads more than the last frame.
    """
    if reads_of(judge).depth != 1:
        raise ConfigError(
            f"hindsight asks about single frames, and the judge {getattr(judge, 'name', type(judge).__name__)} reads "
            "several; set hindsight to 0, or take a judge of the last frame"
        )
    group_of = {text: name for name, group in sentences.items() for text in group}
    failed = np.flatnonzero((rollouts.valid & (rollouts.reward < 0.5)).numpy())
    rows, texts, known = [], [], rollouts.other_instructions
    for row in failed:
        own = rollouts.instructions[row]
        asked = sentences.get(group_of.get(own, ""), ()) if known is None else known[row]
        others = [text for text in asked if text != own]
        if others:
            chosen = rng.choice(len(others), min(candidates, len(others)), replace=False)
            rows += [int(row)] * len(chosen)
            texts += [others[i] for i in chosen]
    facts = {"failures": float(len(failed)), "asked": float(len(texts)), "relabelled": 0.0}
    if not texts:
        return None, facts
    index = torch.tensor(rows)
    ends = rollouts.lengths[index] * rollouts.actions.shape[2] - 1
    now = rollouts.states[index, 0] if rollouts.path is None else rollouts.path[index, ends]
    after = _scores(judge, rollouts.final_images[index], texts, now)
    sure = np.flatnonzero(after >= threshold)
    if len(sure):
        at = index[sure]
        before = _scores(judge, rollouts.images[at, 0], [texts[i] for i in sure], rollouts.states[at, 0])
        sure = sure[before < 0.5]
    best: dict[int, int] = {}
    for i in sure:  # the sentence that the judge is surest of
        if rows[i] not in best or after[i] > after[best[rows[i]]]:
            best[rows[i]] = int(i)
    facts["relabelled"] = float(len(best))
    if not best:
        return None, facts
    extra = rollouts.select(torch.tensor(sorted(best)))
    extra.instructions = [texts[best[row]] for row in sorted(best)]
    extra.other_instructions = None
    extra.reward = torch.ones_like(extra.reward)
    if not keep_groups:
        extra.groups = torch.arange(len(extra))
    return extra, facts


def _scores(judge: Any, frames: torch.Tensor, texts: Sequence[str], states: torch.Tensor) -> np.ndarray:
    """Probabilities `(R,)`, -1 without a verdict."""
    parts = []
    for begin in range(0, len(texts), 256):
        part = slice(begin, begin + 256)
        verdict = settled(judge, frames[part, None], list(texts[part]), states[part])
        p = verdict.p_success.float().cpu().numpy().copy()
        p[~verdict.valid.cpu().numpy()] = -1.0
        parts.append(p)
    return np.concatenate(parts)
