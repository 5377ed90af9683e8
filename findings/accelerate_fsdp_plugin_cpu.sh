#!/usr/bin/env bash
# accelerate 1.15.0: an Accelerator that is given an FSDP plugin (FullyShardedDataParallelPlugin(fsdp_version=2)) in several
# processes on CPUs ignores it without an error or a warning. prepare() wraps the model in DistributedDataParallel, and every
# process holds all weights and all optimizer state. accelerator.state has no attribute fsdp_plugin then, and
# distributed_type is MULTI_CPU. A script that was tested so on CPUs has not tested sharding, and one that relies on it for
# memory runs out of it. torch 2.13.0 itself can shard there: fully_shard on a mesh of CPU processes with gloo leaves half of
# a weight in each of two processes, and a step with clipping and AdamW works.
# Exits 0 while this holds, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/site" \
    torch==2.13.0 numpy==2.4.6 accelerate==1.15.0
cat > "$folder/run.py" <<'PY'
import os
import sys
import warnings

import accelerate
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def by_accelerate(rank, folder):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="29611")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        plugin = accelerate.FullyShardedDataParallelPlugin(fsdp_version=2)
        accelerator = accelerate.Accelerator(cpu=True, fsdp_plugin=plugin)
        net = torch.nn.Linear(64, 64)
        net, _ = accelerator.prepare(net, torch.optim.AdamW(net.parameters()))
    weight = next(net.parameters())
    kept = hasattr(weight, "to_local")
    facts = [str(accelerator.distributed_type.value), type(net).__name__, weight.numel(), kept, len(said)]
    torch.save(facts, f"{folder}/accelerate-{rank}.pt")


def by_torch(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    torch.manual_seed(0)
    net = torch.nn.Linear(64, 64)
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(2, 64)).square().mean().backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    torch.save([net.weight.numel(), net.weight.to_local().numel()], f"{folder}/torch-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    folder = sys.argv[1]
    torch.multiprocessing.spawn(by_accelerate, (folder,), nprocs=2)
    torch.multiprocessing.spawn(by_torch, (folder,), nprocs=2)
    given = [torch.load(f"{folder}/accelerate-{rank}.pt") for rank in range(2)]
    own = [torch.load(f"{folder}/torch-{rank}.pt") for rank in range(2)]
    print("accelerate", accelerate.__version__, "torch", torch.__version__)
    for kind, wrapper, size, sharded, warned in given:
        print(f"FSDP plugin on CPU: {kind}, {wrapper}, {size} weights in the process, sharded {sharded}, warnings {warned}")
    print("torch's fully_shard on CPU: weights in all, in a process:", own)
    ignored = all(row == ["MULTI_CPU", "DistributedDataParallel", 4096, False, 0] for row in given)
    sys.exit(0 if ignored and own == [[4096, 2048], [4096, 2048]] else 1)
PY
OMP_NUM_THREADS=1 PYTHONPATH="$folder/site" python3 "$folder/run.py" "$folder"
