"""What published OpenVLA-OFT checkpoints (arXiv 2502.19645) have beside the model: action head and proprioception.

The published files of these parts are pickles, which are not read here. One line converts each to safetensors
(`CONVERT`); torch's `weights_only=True` then reads the pickle without running code, in a process of the user's choice.

Example::

    parts = read_parts(folder, statistics)      # None for a checkpoint without an action head
    parts.settings, parts.weights
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldgym.errors import CheckpointError
from worldgym.utils.tensors import load_tensors

PARTS = ("action_head", "proprio_projector")
CHUNK = 8
"""Actions per chunk of the checkpoints fine-tuned on LIBERO; 25 for ALOHA, 5 for BridgeData. No file has the number."""
CONVERT = (
    "python -c \"import torch; from safetensors.torch import save_file; save_file({{k.removeprefix('module.'): "
    "v.contiguous() for k, v in torch.load('{file}', map_location='cpu', weights_only=True).items()}}, "
    "'{name}.safetensors')\""
)


@dataclass(frozen=True)
class OFTParts:
    """Action head and projector of proprioception.

    Args:
        settings: fields of `HFVLAConfig`.
        weights: tensors by their names in an `HFVLAPolicy`.
        state_dim: length of the proprioception vector, 0 without.
    """

    settings: dict[str, Any]
    weights: dict[str, Tensor]
    state_dim: int


def read_parts(folder: Path, statistics: Mapping[str, Any], end_id: int | None) -> OFTParts | None:
    """Read the parts in a folder; None if it has no action head.

    Args:
        folder: a checkpoint, with `action_head.safetensors` and optionally `proprio_projector.safetensors`.
        statistics: of the dataset; `proprio` has `q01` and `q99` of the proprioception.
        end_id: token that ends a sentence.

    Raises:
        CheckpointError: a part is a pickle, damaged, or without statistics.
    """
    found = {name: _part(folder, name) for name in PARTS}
    head, projector = found["action_head"], found["proprio_projector"]
    if head is None:
        return None
    if end_id is None:
        raise CheckpointError(f"the tokenizer in {folder} has no token </s>; give that of the checkpoint")
    weights = {f"head.model.{name.removeprefix('model.')}": value for name, value in head.items()}
    settings: dict[str, Any] = {
        "head": "l1", "slots": "oft", "end_id": end_id, "chunk": CHUNK, "prefix_attention": "full", "state": "none",
    }  # fmt: skip
    size = 0
    if projector is not None:
        layers = {"fc1": "state_token.0", "fc2": "state_token.2"}
        try:
            for name, value in projector.items():
                layer, _, kind = name.partition(".")
                weights[f"{layers[layer]}.{kind}"] = value
            size = int(projector["fc1.weight"].shape[1])
        except KeyError as error:
            raise CheckpointError(
                f"{folder / 'proprio_projector.safetensors'} has other layers than fc1 and fc2: {error}"
            ) from error
        low, high = _ends(statistics, folder, size)
        weights |= {"state_mean": (low + high) / 2, "state_std": ((high - low) / 2).clamp_min(1e-6)}
        settings |= {"state": "token", "state_after_images": True, "state_clip": 1.0}
    return OFTParts(settings, weights, size)


def _part(folder: Path, name: str) -> dict[str, Tensor] | None:
    file = folder / f"{name}.safetensors"
    if file.is_file():
        return {key.removeprefix("module."): value for key, value in load_tensors(file).items()}
    if pickles := sorted(folder.glob(f"{name}*.pt")):
        command = CONVERT.format(file=pickles[-1].name, name=name)
        raise CheckpointError(
            f"{pickles[-1]} is a pickle, which is not read here. Convert it in that folder; type: {command}"
        )
    return None


def _ends(statistics: Mapping[str, Any], folder: Path, size: int) -> tuple[Tensor, Tensor]:
    told = statistics.get("proprio")
    if not isinstance(told, Mapping) or not {"q01", "q99"} <= set(told) or len(told["q01"]) != size:
        raise CheckpointError(
            f"the statistics in {folder} lack q01 and q99 of {size} numbers of proprioception (`proprio`); give the "
            "dataset_statistics.json of the checkpoint"
        )
    low, high = (torch.from_numpy(np.asarray(told[end], np.float32)) for end in ("q01", "q99"))
    return low, high
