"""Tensors on disk: safetensors, with errors that can be explained and weights that are finite.

`safetensors` reports a full disk as an error of its own class, and loads NaN as it loads numbers. A network with one
NaN gives black frames and failures without a message, so weights are checked when they are loaded.

Example::

    from worldgym.utils.tensors import load_tensors, save_tensors
    save_tensors(folder / "model.safetensors", model.state_dict())
    model.load_state_dict(load_tensors(folder / "model.safetensors"))
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldgym.errors import CheckpointError


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write `tensors` as safetensors, on the CPU and contiguous.

    Args:
        path: the file, in a folder of `worldgym.utils.folders.save_folder` or a path of `atomic_path`.
        tensors: by name.
        metadata: at most one entry: safetensors 0.8 writes several in random order, and the bytes differ.

    Raises:
        OSError: as writing a file does, a full disk among them.
    """
    if metadata is not None and len(metadata) > 1:
        raise ValueError(
            f"got {len(metadata)} metadata entries, expected at most one; put them in one JSON string"
        )
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    try:
        save_file(plain, str(path), metadata=dict(metadata) if metadata else None)
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        raise OSError(int(code.group(1)) if code else errno.EIO, str(error), str(path)) from error


def load_tensors(path: str | os.PathLike[str], *, finite: bool = True) -> dict[str, Tensor]:
    """Read a safetensors file.

    Args:
        path: the file.
        finite: False accepts NaN and infinity.

    Raises:
        CheckpointError: missing, damaged, or with a value that is not finite; names the tensor.
    """
    try:
        tensors: dict[str, Tensor] = load_file(str(path))
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} can't be read as safetensors ({error}); restore it from a copy"
        ) from error
    if finite:
        require_finite(tensors, path)
    return tensors


def require_finite(tensors: Mapping[str, Tensor], where: str | os.PathLike[str]) -> None:
    """Raise a CheckpointError that names the first tensor with NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(
                f"{where}: {name} holds {count} values that are NaN or infinite, of {tensor.numel()}; these weights "
                "are damaged or their training diverged: restore them from a copy, or train again with a lower --lr"
            )
