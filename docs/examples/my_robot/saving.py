"""Loading and saving that the example's world model, judge and policy share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typing_extensions import Self

from worldgym.specs import Specs
from worldgym.utils.folders import save_folder, verify_folder


class SavedPart(nn.Module):
    """A network that is built from `Specs` alone. `type` is the name in the entry point."""

    type: str

    def __init__(self, specs: Specs) -> None:
        super().__init__()
        self.specs = specs

    @property
    def device(self) -> torch.device:
        """Where the weights are (`--device`); the parts move their inputs there."""
        return next(self.parameters()).device

    @classmethod
    def for_data(cls, specs: Specs, preset: str, arrays: Any = None) -> Self:
        """A new part for a dataset; the training commands call this."""
        return cls(specs)

    def save_pretrained(self, folder: str | Path) -> None:
        with save_folder(folder) as new:  # replaces the folder as a whole and writes a manifest
            config = {"type": self.type, "specs": self.specs.to_dict()}
            (new / "config.json").write_text(json.dumps(config))
            weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
            save_file(weights, new / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        files = ("config.json", "model.safetensors")
        found = verify_folder(folder, files, "train the part again, or restore the folder from a copy")
        part = cls(Specs.from_dict(json.loads((found / "config.json").read_text())["specs"]))
        part.load_state_dict(load_file(found / "model.safetensors"))
        return part.eval()
