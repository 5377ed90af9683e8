"""Judges: reward models that score whether an instruction was fulfilled.

A judge reads frames and the instruction. `LearnedJudge` is trained only on logs from the real domain and also scores
imagined frames. `LatentJudge` reads the world model's latents. `OpenClipJudge` compares a frame with a sentence.
`VlmJudge` runs a vision-language model in this process, `HttpJudge` queries one behind an endpoint. `ReferenceJudge`
measures the distance between a video and a demonstration. `OracleJudge` returns the simulator's ground truth, for
audits. `ComposedJudge`, `CalibratedJudge` and `CachedJudge` wrap other judges. `load_judge` loads a judge of any type
from its folder.

Example::

    from rewards import LearnedJudge
    judge = LearnedJudge.from_pretrained("runs/judge")
    judge.score(frames, ["put the red cube in the tray"]).p_success
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from worldgym.moved import earlier

if TYPE_CHECKING:
    from rewards.loading import load_judge
    from rewards.models.http import HttpJudge, HttpJudgeConfig
    from rewards.models.latent import LatentJudge, LatentJudgeConfig
    from rewards.models.learned import LearnedJudge, LearnedJudgeConfig, load_bundled
    from rewards.models.open_clip import OpenClipJudge, OpenClipJudgeConfig
    from rewards.models.oracle import OracleJudge
    from rewards.models.reference import ReferenceJudge, ReferenceJudgeConfig
    from rewards.models.vlm import VlmJudge, VlmJudgeConfig
    from rewards.training.imagined_logs import imagine_training_logs
    from rewards.training.latent import encode_logs, imagine_training_latents, train_latent_judge
    from rewards.training.learned import JudgeTrainConfig, train_judge
    from rewards.training.open_clip import train_open_clip
    from rewards.wrappers.cache import CachedJudge
    from rewards.wrappers.calibrated import CalibratedJudge, Calibration
    from rewards.wrappers.composed import ComposedJudge, Term

_WHERE = {
    "CachedJudge": "wrappers.cache",
    "CalibratedJudge": "wrappers.calibrated",
    "Calibration": "wrappers.calibrated",
    "ComposedJudge": "wrappers.composed",
    "HttpJudge": "models.http",
    "HttpJudgeConfig": "models.http",
    "JudgeTrainConfig": "training.learned",
    "LatentJudge": "models.latent",
    "LatentJudgeConfig": "models.latent",
    "LearnedJudge": "models.learned",
    "LearnedJudgeConfig": "models.learned",
    "OpenClipJudge": "models.open_clip",
    "OpenClipJudgeConfig": "models.open_clip",
    "OracleJudge": "models.oracle",
    "ReferenceJudge": "models.reference",
    "ReferenceJudgeConfig": "models.reference",
    "Term": "wrappers.composed",
    "VlmJudge": "models.vlm",
    "VlmJudgeConfig": "models.vlm",
    "imagine_training_latents": "training.latent",
    "imagine_training_logs": "training.imagined_logs",
    "encode_logs": "training.latent",
    "load_bundled": "models.learned",
    "load_judge": "loading",
    "train_judge": "training.learned",
    "train_latent_judge": "training.latent",
    "train_open_clip": "training.open_clip",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    """Import lazily: `import rewards` loads no torch."""
    if name not in _WHERE:
        return earlier(__name__, name)  # a name of an earlier version, or an AttributeError
    return getattr(importlib.import_module(f"rewards.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
