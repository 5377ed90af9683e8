"""Judges: who decides whether an instruction was fulfilled.

A judge looks at frames and reads the instruction. `LearnedJudge` is trained on Real's logs alone and reads imagined
frames too; `LatentJudge` reads the world model's latents; `OpenClipJudge` compares a frame with a sentence; `VlmJudge`
asks a vision-language model here, `HttpJudge` one behind an endpoint; `ReferenceJudge` measures how far a video is from
a demonstration; `OracleJudge` tells the simulator's truth, for audits. `ComposedJudge`, `CalibratedJudge` and
`CachedJudge` go around any of them; `load_judge` finds out what is in a folder.

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
    from rewards.calibrated import CalibratedJudge, Calibration
    from rewards.compose import ComposedJudge, Term
    from rewards.dreams import dream_logs
    from rewards.http import HttpJudge, HttpJudgeConfig
    from rewards.latent import LatentJudge, LatentJudgeConfig
    from rewards.latent_train import dream_latents, encode_logs, train_latent_judge
    from rewards.learned import LearnedJudge, LearnedJudgeConfig, load_bundled
    from rewards.loading import load_judge
    from rewards.open_clip import OpenClipJudge, OpenClipJudgeConfig
    from rewards.open_clip_train import train_open_clip
    from rewards.oracle import OracleJudge
    from rewards.reference import ReferenceJudge, ReferenceJudgeConfig
    from rewards.train import JudgeTrainConfig, train_judge
    from rewards.vlm import VlmJudge, VlmJudgeConfig

_WHERE = {
    "CachedJudge": "cache",
    "CalibratedJudge": "calibrated",
    "Calibration": "calibrated",
    "ComposedJudge": "compose",
    "HttpJudge": "http",
    "HttpJudgeConfig": "http",
    "JudgeTrainConfig": "train",
    "LatentJudge": "latent",
    "LatentJudgeConfig": "latent",
    "LearnedJudge": "learned",
    "LearnedJudgeConfig": "learned",
    "OpenClipJudge": "open_clip",
    "OpenClipJudgeConfig": "open_clip",
    "OracleJudge": "oracle",
    "ReferenceJudge": "reference",
    "ReferenceJudgeConfig": "reference",
    "Term": "compose",
    "VlmJudge": "vlm",
    "VlmJudgeConfig": "vlm",
    "dream_latents": "latent_train",
    "dream_logs": "dreams",
    "encode_logs": "latent_train",
    "load_bundled": "learned",
    "load_judge": "loading",
    "train_judge": "train",
    "train_latent_judge": "latent_train",
    "train_open_clip": "open_clip_train",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    """Import lazily: `import rewards` loads no torch."""
    if name not in _WHERE:
        raise AttributeError(f"module 'rewards' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"rewards.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
