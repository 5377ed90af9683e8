"""`from_pretrained` and `save_pretrained` for small models: `config.json` + `model.safetensors`, never pickle.

The hub's mixin does the work; this adds what users of a folder on disk need: an atomic save, so that a full disk
leaves the old weights whole, and errors that say which file is missing or damaged.

Example::

    class Judge(nn.Module, HubModel, coders={JudgeConfig: (asdict, JudgeConfig.from_dict)}):
        def __init__(self, config: JudgeConfig) -> None: ...
    Judge.from_pretrained("runs/judge")
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import load_file, save_file
from typing_extensions import Self

from worldgym.errors import CheckpointError
from worldgym.utils.files import atomic_save

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class HubModel(PyTorchModelHubMixin):
    """Mixin of an `nn.Module` whose `__init__` takes one frozen dataclass (or its dict) named `config`."""

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> str | None:  # type: ignore[override]
        """Write `config.json` and `model.safetensors` into a folder; on any error the old files are as they were."""
        with atomic_save(save_directory) as folder:
            tensors = {name: t.detach().cpu().contiguous().clone() for name, t in self.state_dict().items()}  # type: ignore[attr-defined]
            save_file(tensors, str(folder / WEIGHTS), metadata={"format": "pt"})
            config = dataclasses.asdict(self.config)  # type: ignore[attr-defined]
            (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        return super().save_pretrained(save_directory, **kwargs) if kwargs.get("push_to_hub") else None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:  # type: ignore[override]
        """Load from a folder (or, when it is no folder on disk, from a hub repository), in evaluation mode.

        Raises:
            CheckpointError: a file is missing, damaged, or made for other shapes.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            looks_local = (
                folder.is_absolute() or str(folder).startswith((".", "runs")) or str(folder).count("/") != 1
            )
            if looks_local:
                raise CheckpointError(
                    f"no folder {folder}; give one that save_pretrained() wrote, with {CONFIG} and {WEIGHTS}"
                )
            return super().from_pretrained(str(pretrained_model_name_or_path), **kwargs)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder} holds no {name}; give a folder that save_pretrained() wrote")
        try:
            model = cls(json.loads((folder / CONFIG).read_text()))
            found = load_file(str(folder / WEIGHTS))
            # Weights are never guessed; a buffer that an older version did not save keeps its neutral value.
            buffers = {name: buffer for name, buffer in model.named_buffers() if name in model.state_dict()}  # type: ignore[attr-defined]
            model.load_state_dict({**buffers, **found})  # type: ignore[attr-defined]
        except Exception as error:
            raise CheckpointError(
                f"the checkpoint in {folder} is damaged or was made for another model: {error}"
            ) from error
        if device := kwargs.get("map_location"):
            model.to(torch.device(device))  # type: ignore[attr-defined]
        model.eval()  # type: ignore[attr-defined]
        return model
