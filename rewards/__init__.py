"""Judges: who decides whether an instruction was fulfilled.

A judge looks at frames and reads the instruction. `LearnedJudge` is trained on Real's logs alone and reads imagined
frames too; `HttpJudge` asks a vision-language model behind an endpoint; `OracleJudge` tells the simulator's truth, for
audits; `CachedJudge` remembers verdicts.

Example::

    from rewards import LearnedJudge
    judge = LearnedJudge.from_pretrained("runs/judge")
    judge.score(frames, ["put the red cube in the tray"]).p_success
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewards.cache import CachedJudge
    from rewards.compose import ComposedJudge, Term
    from rewards.dreams import dream_logs
    from rewards.http import HttpJudge, HttpJudgeConfig
    from rewards.learned import LearnedJudge, LearnedJudgeConfig, load_bundled
    from rewards.oracle import OracleJudge
    from rewards.train import JudgeTrainConfig, train_judge

_WHERE = {
    "CachedJudge": "cache",
    "ComposedJudge": "compose",
    "HttpJudge": "http",
    "HttpJudgeConfig": "http",
    "JudgeTrainConfig": "train",
    "LearnedJudge": "learned",
    "LearnedJudgeConfig": "learned",
    "OracleJudge": "oracle",
    "Term": "compose",
    "dream_logs": "dreams",
    "load_bundled": "learned",
    "train_judge": "train",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    """Import lazily: `import rewards` loads no torch."""
    if name not in _WHERE:
        raise AttributeError(f"module 'rewards' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"rewards.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
