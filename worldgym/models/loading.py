"""A saved world model of any registered type.

Example::

    world_model = load_world_model("tabletop-small")        # a bundled checkpoint
    world_model = load_world_model("runs/mine/export")      # its config.json says which type it is
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worldgym import pretrained
from worldgym.registry import WORLD_MODELS
from worldgym.utils.devices import choose_device, place


def load_world_model(name_or_path: str | Path, *, device: str | None = None) -> Any:
    """A world model of any registered type.

    Args:
        name_or_path: a bundled name such as `"tabletop-small"`, a bundle's folder, or a folder that the
            `save_pretrained` of a world model wrote.
        device: `auto`, `cpu`, `cuda` or `cuda:N`: given to a `from_pretrained` that takes it, and the model is moved
            there where it has `to`. None leaves it where its `from_pretrained` put it.

    Raises:
        CheckpointError: no world model there, or a damaged one.
        ConfigError: its type is unknown here; lists what is known.
    """
    path = Path(name_or_path)
    if not path.exists():
        path = pretrained.path(str(name_or_path))
    if (path / "world_model").is_dir():
        path = path / "world_model"
    model = WORLD_MODELS.load(path, offered={} if device is None else {"device": device})
    return model if device is None else place(model, choose_device(device))
