"""Resumable training state as safetensors and json: weights, optimizer moments, counters. Never pickle.

Example::

    from worldgym.utils.train_state import TrainState
    state = TrainState("runs/policy/checkpoint")
    state.save(policy, optimizer, {"epoch": 3})
    meta = state.load(policy, optimizer)  # {"epoch": 3}
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from worldgym.errors import CheckpointError
from worldgym.utils.files import atomic_save


class TrainState:
    """A checkpoint folder that is replaced as a whole: a kill or a full disk leaves the previous one.

    Args:
        folder: where it lives; the parent is made when needed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def exists(self) -> bool:
        """Whether a complete checkpoint is there."""
        return (self.folder / "state.json").is_file()

    def save(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        meta: Mapping[str, Any],
        **extra: Mapping[str, Tensor] | None,
    ) -> None:
        """Write weights, optimizer and `meta` (json-able), and named tensor dictionaries."""
        tensors, scalars = _flatten(optimizer)
        with atomic_save(self.folder) as new:
            save_file(_plain(module.state_dict()), str(new / "weights.safetensors"))
            save_file(tensors, str(new / "optimizer.safetensors"))
            for name, values in extra.items():
                if values is not None:
                    save_file(_plain(values), str(new / f"{name}.safetensors"))
            (new / "state.json").write_text(json.dumps({"meta": dict(meta), "optimizer": scalars}, indent=1))

    def load(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Restore both in place and return `meta`.

        Raises:
            FileNotFoundError: no complete checkpoint there.
            CheckpointError: damaged, or of another model.
        """
        if not self.exists():
            raise FileNotFoundError(
                f"no checkpoint in {self.folder}; start without resuming, or give its folder"
            )
        try:
            data = json.loads((self.folder / "state.json").read_text())
            module.load_state_dict(load_file(str(self.folder / "weights.safetensors")))
            _restore(optimizer, load_file(str(self.folder / "optimizer.safetensors")), data["optimizer"])
        except FileNotFoundError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"the checkpoint in {self.folder} is damaged or belongs to another model ({error}). "
                "Remove the folder to start again"
            ) from error
        return dict(data["meta"])

    def meta(self) -> dict[str, Any]:
        """What was given to `save` as `meta`, without loading weights."""
        return dict(json.loads((self.folder / "state.json").read_text())["meta"])

    def load_extra(self, name: str) -> dict[str, Tensor]:
        """One of the extra tensor dictionaries of `save`."""
        return load_file(str(self.folder / f"{name}.safetensors"))

    def remove(self) -> None:
        """Delete the checkpoint: the run is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}


def _flatten(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    data = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for index, slots in data["state"].items():
        for key, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value.detach().contiguous().clone()
            else:
                plain[f"{index}.{key}"] = value
    return tensors, {"plain": plain, "groups": data["param_groups"]}


def _restore(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]
) -> None:
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **scalars["plain"]}.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    groups = [{k: tuple(v) if k == "betas" else v for k, v in group.items()} for group in scalars["groups"]]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
