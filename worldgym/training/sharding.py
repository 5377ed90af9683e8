"""Weights distributed over processes: each holds its part of every weight, gradient, average and optimizer state.

This is fully sharded data parallelism (FSDP; Zhao et al. 2023, arXiv 2304.11277) by torch's `fully_shard`, which the
FSDP of accelerate calls too. A layer's weights are gathered when it computes, and released after it.

Example::

    shard([*network.blocks, network], device)     # inner modules before the ones that contain them
    whole(parameter)                              # all of it; every process must call this
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from worldgym.errors import ConfigError


def shard(modules: Sequence[nn.Module], device: torch.device) -> None:
    """Distribute the parameters of modules over the processes of the current group, in place.

    Args:
        modules: inner modules before outer ones. Each gathers its own parameters, without those of modules before it,
            for the time of its `forward`.
        device: device of the parameters.

    Raises:
        ConfigError: there is no process group.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if not (dist.is_available() and dist.is_initialized()):
        raise ConfigError(
            "there is only one process to hold the weights; add --processes 2, or leave --shard out"
        )
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in modules:
        fully_shard(module, mesh=mesh)


def is_sharded(value: Tensor) -> bool:
    """Whether a tensor is distributed over processes."""
    return hasattr(value, "full_tensor")


def whole(value: Tensor) -> Tensor:
    """All of a tensor; for a distributed one every process must call this. Others are returned unchanged."""
    return value.full_tensor() if is_sharded(value) else value  # type: ignore[operator]


def placed_like(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of `value`, distributed like another tensor; a tensor that is not is returned unchanged."""
    if not is_sharded(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)  # type: ignore[attr-defined]
