"""Cache verdicts by the hash of (judge, instruction, frames), because audits score the same frames many times.

Example::

    judge = CachedJudge(expensive_judge, size=10_000)
    judge.score(frames, instructions); judge.score(frames, instructions)   # the second call uses the cache
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
    """Least-recently-used cache in front of a judge. Invalid verdicts are not cached, because a retry may succeed.

    Args:
        judge: any `RewardModel` that is a pure function of frames, instruction and state.
        size: largest number of cached verdicts.
    """

    def __init__(self, judge: RewardModel, size: int = 10_000) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1; got {size}")
        self.judge, self.size = judge, size
        self.hits = self.misses = 0
        self._entries: OrderedDict[str, tuple[float, Tensor | None, Any]] = OrderedDict()

    def to(self, device: torch.device | str) -> CachedJudge:
        """Move the wrapped judge to `device`; returns itself."""
        place(self.judge, torch.device(device))
        return self

    @property
    def name(self) -> str:
        """Name of the wrapped judge, because the cache does not change verdicts."""
        return self.judge.name

    @property
    def threshold(self) -> float:
        """Threshold of the wrapped judge."""
        return threshold_of(self.judge)

    @property
    def reads(self) -> Reads:
        """Inputs of the wrapped judge, without latents: the cache is indexed by frames."""
        return dataclasses.replace(reads_of(self.judge), latents=False)

    def score(self, frames: Tensor, instructions: Sequence[str], states: Tensor | None = None) -> Judgement:
        """Score as the wrapped judge does; only (frames, instruction, state) triples that are not cached reach it."""
        state_rows = [None] * len(frames) if states is None else list(states)
        keys = [self._key(*row) for row in zip(frames, instructions, state_rows, strict=True)]
        missing = [i for i, key in enumerate(keys) if key not in self._entries]
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
        fresh: dict[str, tuple[float, Tensor | None, Any]] = {}
        failed: dict[str, Any] = {}
        if missing:
            texts = [instructions[i] for i in missing]
            verdict = judged(self.judge, frames[missing], texts, None if states is None else states[missing])
            for row, i in enumerate(missing):
                raw = verdict.raw[row] if row < len(verdict.raw) else None
                progress = None if verdict.progress is None else verdict.progress[row]
                if bool(verdict.valid[row]):
                    fresh[keys[i]] = (float(verdict.p_success[row]), progress, raw)
                else:
                    failed[keys[i]] = raw
        rows = [fresh.get(key) or self._entries.get(key) for key in keys]
        for key in keys:
            if key in fresh:
                self._entries[key] = fresh[key]
            if key in self._entries:
                self._entries.move_to_end(key)
        while len(self._entries) > self.size:
            self._entries.popitem(last=False)
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
