"""Resumable training state as safetensors and JSON, without pickle: weights, optimizer moments, counters.

A checkpoint also stores the identity of its run. Resuming with other settings or other data raises an error.

Example::

    from worldgym.utils.train_state import TrainState
    state = TrainState("runs/policy/checkpoint", identity={"lr": 8e-4, "data": dataset.fingerprint})
    state.save(policy, optimizer, {"epoch": 3})
    meta = state.load(policy, optimizer)  # {"epoch": 3}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldgym.errors import CheckpointError, ConfigError
from worldgym.utils.files import read_json
from worldgym.utils.folders import MANIFEST, save_folder, settle, verify_folder
from worldgym.utils.staging import discard
from worldgym.utils.tensors import load_tensors, save_tensors
from worldgym.utils.typed import changes

STATE = "state.json"


class TrainState:
    """A checkpoint folder that is replaced atomically: if a save fails, the previous checkpoint is kept.

    Args:
        folder: folder of the checkpoint; its parent is created if needed.
        identity: JSON-serialisable values that identify the run (settings, hash of the data); `load` rejects a
            checkpoint with other values. None skips the comparison.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        self.identity = None if identity is None else plain_facts(identity)

    def exists(self) -> bool:
        """Whether a checkpoint exists; an interrupted save is completed first."""
        if self.folder.is_dir():
            settle(self.folder)
        return (self.folder / STATE).is_file() or (self.folder / MANIFEST).is_file()

    def save(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        meta: Mapping[str, Any],
        **extra: Mapping[str, Tensor] | None,
    ) -> None:
        """Save weights, optimizer, `meta` (JSON-serialisable), and further dictionaries of tensors by name."""
        tensors, scalars = _flatten(optimizer)
        with save_folder(self.folder) as new:
            save_tensors(new / "weights.safetensors", module.state_dict())
            save_tensors(new / "optimizer.safetensors", tensors)
            for name, values in extra.items():
                if values is not None:
                    save_tensors(new / f"{name}.safetensors", values)
            facts = {"meta": dict(meta), "optimizer": scalars, "identity": self.identity}
            (new / STATE).write_text(json.dumps(facts, indent=1))

    def load(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Restore weights and optimizer in place and return `meta`.

        Raises:
            FileNotFoundError: there is no checkpoint.
            CheckpointError: the checkpoint is damaged or belongs to another model.
            ConfigError: the checkpoint belongs to a run with another identity; the message lists the differences.
        """
        if not self.exists():
            raise FileNotFoundError(
                f"no checkpoint in {self.folder}; start without resuming, or give its folder"
            )
        names = (STATE, "weights.safetensors", "optimizer.safetensors")
        verify_folder(self.folder, names, self._remedy)
        data = read_json(self.folder / STATE, self._remedy)
        self._compare(data)
        try:
            module.load_state_dict(load_tensors(self.folder / "weights.safetensors"))
            _restore(optimizer, load_tensors(self.folder / "optimizer.safetensors"), data["optimizer"])
            return dict(data["meta"])
        except CheckpointError:
            raise
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"the checkpoint in {self.folder} is damaged or belongs to another model ({error}). {self._remedy}"
            ) from error

    @property
    def _remedy(self) -> str:
        return f"Remove the folder {self.folder} to start again"

    def _compare(self, data: Any) -> None:
        before = data.get("identity") if isinstance(data, dict) else None
        if self.identity is not None and before is not None:
            refuse_other_run(before, self.identity, self.folder.parent)

    def meta(self) -> dict[str, Any]:
        """Read `meta` without loading weights.

        Raises:
            CheckpointError: there is no readable checkpoint.
        """
        verify_folder(self.folder, (STATE,), self._remedy)
        return dict(read_json(self.folder / STATE, self._remedy)["meta"])

    def load_extra(self, name: str, *, finite: bool = True) -> dict[str, Tensor]:
        """Load one of the further tensor dictionaries of `save`; use `finite=False` if NaN marks unknown values.

        Raises:
            CheckpointError: the file is missing or damaged, or a value is not finite.
        """
        verify_folder(self.folder, (f"{name}.safetensors",), self._remedy)
        return load_tensors(self.folder / f"{name}.safetensors", finite=finite)

    def remove(self) -> None:
        """Delete the checkpoint, after the run is complete."""
        discard(self.folder)


def plain_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Copy of `facts` after a JSON round trip; paths and other objects become strings."""
    return dict(json.loads(json.dumps(dict(facts), default=str)))


def refuse_other_run(before: Mapping[str, Any], now: Mapping[str, Any], run: Path) -> None:
    """Raise a ConfigError with the differences if the run in folder `run` has other settings than the current one."""
    if differences := changes(before, now):
        raise ConfigError(
            f"{run} holds a run with other settings ({differences}). Type the same settings to continue it, give "
            f"another --out, or remove {run} to start over"
        )


def _flatten(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    data = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for index, slots in data["state"].items():
        for key, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value
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
