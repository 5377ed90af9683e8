"""Registers the judges of this package by name; each class is imported at its first use.

Example::

    from worldgym.registry import JUDGES
    JUDGES.get("learned")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worldgym.moved import NAMES
from worldgym.registry import JUDGES

JUDGES.register_lazily(
    learned="rewards.models.learned:LearnedJudge",
    latent="rewards.models.latent:LatentJudge",
    open_clip="rewards.models.open_clip:OpenClipJudge",
    vlm="rewards.models.vlm:VlmJudge",
    http="rewards.models.http:HttpJudge",
    reference="rewards.models.reference:ReferenceJudge",
    calibrated="rewards.wrappers.calibrated:CalibratedJudge",
    composed="rewards.wrappers.composed:ComposedJudge",
)
FILES = {
    "calibrated.json": "calibrated",
    "composed.json": "composed",
    "open_clip_config.json": "open_clip",
    "references.safetensors": "reference",
}
"""Type of judge by the name of a file that only this type writes."""
SETTINGS = {"url": "http", "model_type": "vlm", "grid": "latent", "asked": "learned"}
"""Type of judge by a key in config.json, for the other types; checked in this order."""


def earlier_judge(folder: Path, config: dict[str, Any]) -> str | None:
    """Type of a judge that was saved by an earlier version, by transformers or by open_clip; None if unknown."""
    found = [name for file, name in FILES.items() if (folder / file).is_file()]
    found += [name for setting, name in SETTINGS.items() if setting in config]
    return found[0] if found else None


JUDGES.legacy(earlier_judge)

NAMES["rewards:dream_logs"] = "rewards.training.imagined_logs:imagine_training_logs"
NAMES["rewards:dream_latents"] = "rewards.training.latent:imagine_training_latents"
