"""Registers the world models and dataset formats of this package by name; each is imported on first use.

Example::

    from worldgym.registry import WORLD_MODELS
    WORLD_MODELS.get("video")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worldgym.registry import DATASET_FORMATS, TRAINERS, WORLD_MODELS

WORLD_MODELS.register_lazily(
    video="worldgym.models.video.world_model:VideoWorldModel",
    ensemble="worldgym.models.ensemble:EnsembleWorldModel",
    futures="worldgym.models.futures:FutureEnsemble",
    chunk="worldgym.models.chunk.world_model:ChunkWorldModel",
    diffusers="worldgym.models.backbones.world_model:DiffusersWorldModel",
    joint="worldgym.models.joint.world_model:JointModel",
    remote="worldgym.models.remote:RemoteWorldModel",
)
TRAINERS.register_lazily(
    chunk="worldgym.training.chunk:ChunkTrainer",
    diffusers="worldgym.training.backbones:DiffusersTrainer",
    joint="worldgym.training.joint:JointTrainer",
)
DATASET_FORMATS.register_lazily(
    lerobot="worldgym.data.formats.known:LeRobotFormat",
    rlds="worldgym.data.formats.rlds:RldsFormat",
    robomimic="worldgym.data.formats.robomimic:RobomimicFormat",
    zarr="worldgym.data.formats.zarr_buffer:ZarrFormat",
    mcap="worldgym.data.formats.mcap_logs:McapFormat",
    ctrlworld="worldgym.data.formats.ctrlworld:CtrlWorldFormat",
    bridge="worldgym.data.formats.known:BridgeFormat",
    video="worldgym.data.formats.known:VideoFormat",
)


def earlier_world_model(folder: Path, config: dict[str, Any]) -> str | None:
    """Type of a world model saved by an earlier version, which stored the class name instead of a type."""
    return {"VideoWorldModel": "video"}.get(str(config.get("class")))


WORLD_MODELS.legacy(earlier_world_model)
