"""Remember verdicts under the hash of (judge, instruction, frames): audits ask the same question many times.

Example::

    judge = CachedJudge(expensive_judge, size=10_000)
    judge.score(frames, instructions); judge.score(frames, instructions)   # the second is free
    judge.hits, judge.misses
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from worldgym.protocols import Judgement, Reads, RewardModel, judged, reads_of, threshold_of
from worldgym.utils.devices import place


class CachedJudge:
    """Least-recently-used cache in front of a judge. Invalid verdicts are not kept: the next try may succeed.

    Args:
        judge: any `RewardModel`, a pure function of frames and instruction.
        size: verdicts kept.
    """

    def __init__(self, judge: RewardModel, size: int = 10_000) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1; got {size}")
        self.judge, self.size = judge, size
        self.hits = self.misses = 0
        self._kept: OrderedDict[str, tuple[float, Tensor | None, Any]] = OrderedDict()

    def to(self, device: torch.device | str) -> CachedJudge:
        """Move the judge; returns itself."""
        place(self.judge, torch.device(device))
        return self

    @property
    def name(self) -> str:
        """The judge's own name: a cache changes no verdict."""
        return self.judge.name

    @property
    def threshold(self) -> float:
        """The judge's threshold."""
        return threshold_of(self.judge)

    @property
    def reads(self) -> Reads:
        """What the judge reads, of frames and proprioception: what is kept belongs to frames, not to latents."""
        return dataclasses.replace(reads_of(self.judge), latents=False)

    def score(self, frames: Tensor, instructions: Sequence[str], states: Tensor | None = None) -> Judgement:
        """As the judge; only unseen (frames, instruction, state) triples reach it."""
        told = [None] * len(frames) if states is None else list(states)
        keys = [self._key(*row) for row in zip(frames, instructions, told, strict=True)]
        missing = [i for i, key in enumerate(keys) if key not in self._kept]
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
        fresh: dict[str, tuple[float, Tensor | None, Any]] = {}
        failed: dict[str, Any] = {}
        if missing:
            words = [instructions[i] for i in missing]
            verdict = judged(self.judge, frames[missing], words, None if states is None else states[missing])
            for row, i in enumerate(missing):
                raw = verdict.raw[row] if row < len(verdict.raw) else None
                progress = None if verdict.progress is None else verdict.progress[row]
                if bool(verdict.valid[row]):
                    fresh[keys[i]] = (float(verdict.p_success[row]), progress, raw)
                else:
                    failed[keys[i]] = raw
        rows = [fresh.get(key) or self._kept.get(key) for key in keys]
        for key in keys:
            if key in fresh:
                self._kept[key] = fresh[key]
            if key in self._kept:
                self._kept.move_to_end(key)
        while len(self._kept) > self.size:
            self._kept.popitem(last=False)
        known = [row[1] for row in rows if row is not None]
        progress = torch.stack(known) if len(known) == len(rows) and known and known[0] is not None else None  # type: ignore[arg-type]
        return Judgement(
            p_success=torch.tensor([0.0 if row is None else row[0] for row in rows]),
            progress=progress,
            valid=torch.tensor([row is not None for row in rows], dtype=torch.bool),
            raw=[failed.get(key) if row is None else row[2] for key, row in zip(keys, rows, strict=True)],
        )

    def _key(self, video: Tensor, text: str, state: Tensor | None) -> str:
        digest = hashlib.sha256(f"{self.judge.name}\0{text}\0{tuple(video.shape)}\0".encode())
        digest.update(video.contiguous().cpu().numpy().tobytes())
        if state is not None and self.reads.state:
            digest.update(state.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()
