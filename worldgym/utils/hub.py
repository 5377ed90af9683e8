"""`from_pretrained` and `save_pretrained` for small models: `config.json` + `model.safetensors`, never pickle.

The hub's mixin does the work; this adds what users of a folder on disk need: a save that replaces config and weights
together, a manifest that notices later damage, finite weights, typed configs, and errors that say which file is
missing. A path is a folder of this machine; the hub is only asked for names with the prefix `hf:`, so a mistyped path
fails at once.

Example::

    class Judge(nn.Module, HubModel, coders={JudgeConfig: (asdict, JudgeConfig.from_dict)}):
        def __init__(self, config: JudgeConfig) -> None: ...
    Judge.from_pretrained("runs/judge")
    Judge.from_pretrained("hf:someone/judge")   # asks the hub
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from typing_extensions import Self

from worldgym.errors import UNBUILDABLE, CheckpointError
from worldgym.utils.files import read_json
from worldgym.utils.folders import save_folder, verify_folder
from worldgym.utils.tensors import load_tensors, save_tensors

CONFIG, WEIGHTS = "config.json", "model.safetensors"
HUB = "hf:"
REMEDY = "give a folder that save_pretrained() wrote, or restore it from a copy"


class HubModel(PyTorchModelHubMixin):
    """Mixin of an `nn.Module` whose `__init__` takes one frozen dataclass (or its dict) named `config`."""

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> str | None:  # type: ignore[override]
        """Write `config.json` and `model.safetensors` into a folder; on any error the old files are as they were."""
        with save_folder(save_directory) as folder:
            save_tensors(folder / WEIGHTS, self.state_dict(), metadata={"format": "pt"})  # type: ignore[attr-defined]
            config = dataclasses.asdict(self.config)  # type: ignore[attr-defined]
            (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        return super().save_pretrained(save_directory, **kwargs) if kwargs.get("push_to_hub") else None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:  # type: ignore[override]
        """Load from a folder, in evaluation mode; `hf:OWNER/NAME` loads from a hub repository instead.

        Raises:
            CheckpointError: a file is missing, damaged, not finite, or made for other shapes.
        """
        name = str(pretrained_model_name_or_path)
        if name.startswith(HUB):
            return super().from_pretrained(name.removeprefix(HUB), **kwargs)
        folder = verify_folder(name, (CONFIG, WEIGHTS), REMEDY)
        config = read_json(folder / CONFIG, REMEDY)
        found = load_tensors(folder / WEIGHTS)
        try:
            model = cls(config)
            # Weights are never guessed; a buffer that an older version did not save keeps its neutral value.
            buffers = {name: buffer for name, buffer in model.named_buffers() if name in model.state_dict()}  # type: ignore[attr-defined]
            model.load_state_dict({**buffers, **found})  # type: ignore[attr-defined]
        except UNBUILDABLE as error:
            raise CheckpointError(
                f"the checkpoint in {folder} is damaged or was made for another model: {error}"
            ) from error
        if device := kwargs.get("map_location"):
            model.to(torch.device(device))  # type: ignore[attr-defined]
        model.eval()  # type: ignore[attr-defined]
        return model
