"""Training in this process, in several processes of this machine, or on the workers of a Ray cluster.

Example::

    run_ranks(train, job, model, data, processes=2, address=None, out=Path("runs/world_model"), device=here.device)

    def train(rank, job, model, data): ...      # in a process group if there are several processes
"""

from __future__ import annotations

import copy
import json
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldgym import errors
from worldgym.errors import WorldgymError

if TYPE_CHECKING:
    import torch

Function = Callable[[int, Any, Any, Any], None]


def run_ranks(
    function: Function,
    job: Any,
    model: Any,
    data: Any,
    *,
    processes: int,
    address: str | None,
    out: Path,
    device: torch.device,
) -> None:
    """Call `function(rank, job, model, data)` once per process.

    Args:
        function: a function of a module; writes files only if its rank is 0.
        job: passed to the function.
        model: on `device` if it is the only process; several get copies, each on its device.
        data: passed to the function.
        processes: number of processes; each gets its share of the cores.
        address: None for this machine; otherwise the address of a Ray cluster (`pipelines.ray_training.on_ray`).
        out: run folder.
        device: `cuda` without a number distributes the processes over all GPUs.
    """
    import torch

    if address is None and processes == 1:
        function(0, job, model, data)
        return
    model = model.to("cpu")
    if address is not None:
        from experiments.pipelines.ray_training import on_ray

        on_ray(function, job, model, data, processes, address, out, gpu=device.type != "cpu")
        return
    with tempfile.TemporaryDirectory() as folder:  # the processes find each other through a file in it
        arguments = (function, job, model, data, processes, device, f"{folder}/group")
        try:
            torch.multiprocessing.spawn(_process, arguments, nprocs=processes)  # type: ignore[no-untyped-call]
        except torch.multiprocessing.ProcessRaisedException:
            if (error := _told(Path(folder))) is not None:
                raise error from None
            raise


def _process(
    rank: int, function: Function, job: Any, model: Any, data: Any, processes: int, device: Any, group: str
) -> None:
    """Run one of several processes on this machine."""
    import torch
    import torch.distributed as dist

    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    # NCCL needs a GPU for every process
    backend = (
        "cpu:gloo,cuda:nccl" if device.type == "cuda" and torch.cuda.device_count() >= processes else "gloo"
    )
    dist.init_process_group(backend, init_method=f"file://{group}", rank=rank, world_size=processes)
    try:
        own = copy.deepcopy(model)  # the model passed in is in memory shared by all processes
        function(rank, job, own.to(device_of_rank(device, rank)), data)
    except WorldgymError as error:
        facts = {"type": type(error).__name__, "text": str(error)}
        Path(f"{group}.{rank}.error").write_text(json.dumps(facts))
        raise
    finally:
        dist.destroy_process_group()


def _told(folder: Path) -> WorldgymError | None:
    """The error that a process left in `folder`, or None."""
    files = sorted(folder.glob("*.error"))
    if not files:
        return None
    facts = json.loads(files[0].read_text())
    kind: type[WorldgymError] = getattr(errors, facts["type"], WorldgymError)
    return kind(facts["text"])


def device_of_rank(device: torch.device, rank: int) -> torch.device:
    """Device of one of several processes on this machine; `cuda` without a number distributes them over all GPUs."""
    import torch

    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", rank % torch.cuda.device_count())
