"""Loading of a saved world model of any registered type.

Example::

    world_model = load_world_model("tabletop-small")        # a bundled checkpoint
    world_model = load_world_model("runs/mine/export")      # its config.json names its type
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worldgym import pretrained
from worldgym.registry import WORLD_MODELS
from worldgym.serving.address import is_address
from worldgym.utils.devices import choose_device, place


def load_world_model(name_or_path: str | Path, *, device: str | None = None) -> Any:
    """Load a world model of any registered type.

    Args:
        name_or_path: a bundled name such as `"tabletop-small"`, the folder of a bundle, or a folder written by the
            `save_pretrained` of a world model. An address such as `ws://127.0.0.1:8000` is a world model on a server.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; passed to `from_pretrained` if that accepts it, and the model is
            moved there if it has `to`. None leaves it where `from_pretrained` put it.

    Raises:
        CheckpointError: no world model at this path, or a damaged one.
        ConfigError: its type is not registered here (the message lists the known types), or it is a policy only.
    """
    if is_address(name_or_path):
        return WORLD_MODELS.get("remote")(str(name_or_path))
    path = Path(name_or_path)
    if not path.exists():
        path = pretrained.path(str(name_or_path))
    if (path / "world_model").is_dir():
        path = path / "world_model"
    model = WORLD_MODELS.load(path, offered={} if device is None else {"device": device})
    if hasattr(model, "check_world_model"):  # some joint models are policies only
        model.check_world_model()
    return model if device is None else place(model, choose_device(device))
