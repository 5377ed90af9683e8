"""`worldgym import`: recorded episodes of others, as a dataset that every trainer here takes.

Reads LeRobotDataset folders, v2.0 to v3.0, and folders of BridgeData V2 samples (mp4 + npz). Nothing in the source is
changed. What it cannot know it does not make up: words that were not recorded, and success where nobody noted it.

Example::

    worldgym import --source data/pusht --out data/mine --camera observation.image
    worldgym train tokenizer --data data/mine --out runs/tokenizer
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from worldgym.errors import ConfigError


@dataclass(frozen=True)
class ImportConfig:
    """Convert a folder.

    Args:
        source: a LeRobotDataset folder, or one of BridgeData V2 samples.
        out: new folder of the dataset.
        image_size: pixels of the frames, cut to the square in their middle.
        camera: feature that holds the pictures; needed where there are several.
        episodes: at most so many; all when None.
    """

    source: Path
    out: Path
    image_size: int = 64
    camera: str | None = None
    episodes: int | None = None

    def __post_init__(self) -> None:
        """Validate."""
        if self.image_size < 8 or self.image_size % 8:
            raise ConfigError(f"image_size is {self.image_size}, expected a multiple of 8")
        if self.episodes is not None and self.episodes < 1:
            raise ConfigError(f"episodes is {self.episodes}, expected at least 1, or nothing for all")


def run(config: ImportConfig) -> int:
    """Convert and say what came of it."""
    from worldgym.data.bridge import write_bridge
    from worldgym.data.imports import import_lerobot

    if any(config.source.glob("*.npz")):
        if config.camera is not None:
            raise ConfigError("samples of mp4 + npz have one camera; leave --camera out")
        count = write_bridge(config.source, config.out, config.image_size, config.episodes)
    else:
        count = import_lerobot(
            config.source, config.out, config.image_size, camera=config.camera, limit=config.episodes
        )
    sys.stdout.write(f"{count} episodes imported to {config.out}\n")
    return 0
