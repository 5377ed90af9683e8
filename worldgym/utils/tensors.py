"""Saves and loads safetensors files, with clear errors and a check for NaN and infinity.

`safetensors` reports a full disk by its own exception class, and loads NaN without an error. A network with a single
NaN gives black frames or fails without a message, so weights are checked when they are loaded.

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
    """Write a safetensors file; tensors are copied to the CPU and made contiguous.

    Args:
        path: the file, in a folder of `worldgym.utils.folders.save_folder` or a path of `atomic_path`.
        tensors: tensors by name.
        metadata: at most one entry, because safetensors 0.8 writes several entries in random order, which would make
            the bytes of the file differ between runs.

    Raises:
        OSError: writing failed, e.g. because the disk is full.
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
        finite: reject NaN and infinity.

    Raises:
        CheckpointError: the file is missing or damaged, or a value is not finite; the message names the tensor.
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
    """Raise a CheckpointError if a tensor has NaN or infinity; the message names the first one."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(
                f"{where}: {name} holds {count} values that are NaN or infinite, of {tensor.numel()}; the weights are "
                "damaged or the training diverged: restore them from a copy, or train again with a lower --lr"
            )
