"""Small made-up episodes; no simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from envs.tabletop import TABLETOP_ACTION_SPEC
from worldgym.data import DatasetWriter, Episode, SplitManifest
from worldgym.specs import Camera, ObservationSpec, Specs, StateField

MANIFEST = SplitManifest(name="test", rules={"unseen_object": {"shapes": ["ball"]}})


def episode(number: int = 0, steps: int = 4, size: int = 16, **changes: Any) -> Episode:
    """A deterministic episode that succeeds at its last two frames when `number` is odd."""
    rng = np.random.default_rng(number)
    success = np.zeros(steps + 1, bool)
    success[-2:] = number % 2 == 1
    values: dict[str, Any] = {
        "frames": rng.integers(0, 256, (steps + 1, size, size, 3), dtype=np.uint8),
        "actions": rng.uniform(-1, 1, (steps, 4)).astype(np.float32),
        "state": rng.normal(size=(steps + 1, 4)).astype(np.float32),
        "instruction": f"push the cube {number % 3}",
        "success": success,
        "progress": np.linspace(0, 1, steps + 1, dtype=np.float32),
        "domain": "real",
        "split": "seen",
        "task": "push" if number % 2 else "reach",
        "provenance": {"behaviour": "expert" if number % 2 else "random", "seed": number},
    }
    return Episode(**{**values, **changes})


def same(a: Episode, b: Episode) -> bool:
    """Whether two episodes agree in every bit."""
    arrays = ("frames", "actions", "state", "success", "progress")
    words = ("instruction", "domain", "split", "task", "provenance")
    return all(
        getattr(a, name).dtype == getattr(b, name).dtype
        and np.array_equal(getattr(a, name), getattr(b, name))
        for name in arrays
    ) and all(getattr(a, name) == getattr(b, name) for name in words)


def specs(size: int = 16, views: tuple[str, ...] = ()) -> Specs:
    """Of `episode`, all cameras of one size."""
    state = (*(StateField(name, "ee_position", "m") for name in "xyz"), StateField("opening", "gripper", "m"))
    cameras = tuple(Camera(name, size, size) for name in ("front", *views))
    return Specs(ObservationSpec(cameras, state), TABLETOP_ACTION_SPEC)


def open_writer(path: Path, size: int = 16, views: tuple[str, ...] = (), **options: Any) -> DatasetWriter:
    """A writer with the test's manifest, three episodes a file."""
    return DatasetWriter(path, specs(size, views), MANIFEST, **{"shard_episodes": 3, **options})
