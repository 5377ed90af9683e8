#!/usr/bin/env bash
# torch 2.13.0, CPU: replacing one row of a channels_last batch changes the convolution of the rows that were not touched.
# Tensor.index_copy and index_add return a contiguous batch, so the memory format is lost for all rows, and the convolution
# then takes another kernel with another order of additions (here 4.8e-06 off). Their sibling index_fill, the in-place
# index_copy_ on a clone, out[rows] = new, torch.where with a mask and torch.cat keep channels_last, and the same rows give
# the same bits. Likewise x[rows] keeps the format and x.index_select(0, rows) does not. Values are equal in every case;
# only the strides differ. It matters where rows of a batch are independent, as in a batched environment that resets one
# of its slots, and results are compared bit by bit.
# Exits 0 while this holds, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/site" torch==2.13.0 numpy==2.4.6
cat > "$folder/run.py" <<'PY'
import sys

import torch
from torch.nn.functional import conv2d

torch.manual_seed(0)
torch.set_num_threads(1)
batch = torch.randn(8, 64, 16, 16).to(memory_format=torch.channels_last)
kernel, new, row = torch.randn(64, 64, 3, 3) / 20, torch.randn(1, 64, 16, 16), torch.tensor([5])
others = torch.tensor([i for i in range(8) if i != 5])


def assigned():
    out = batch.clone()
    out[row] = new
    return out


def masked():
    here = torch.zeros(8, 1, 1, 1, dtype=torch.bool)
    here[row] = True
    return torch.where(here, new.to(memory_format=torch.channels_last), batch)


def last(x):
    return x.is_contiguous(memory_format=torch.channels_last)


before, kept, lost = conv2d(batch, kernel, padding=1)[others], [], []
ways = {
    "clone, then out[row] = new": (assigned(), kept),
    "torch.where with a mask": (masked(), kept),
    "torch.cat of the pieces": (torch.cat([batch[:5], new.to(memory_format=torch.channels_last), batch[6:]]), kept),
    "clone, then index_copy_": (batch.clone().index_copy_(0, row, new), kept),
    "index_fill": (batch.index_fill(0, row, 0.0), kept),
    "index_copy": (batch.index_copy(0, row, new), lost),
    "index_add": (batch.index_add(0, row, new - batch[row]), lost),
}
print("torch", torch.__version__)
for name, (out, group) in ways.items():
    assert torch.equal(out[others], batch[others])
    off = (conv2d(out, kernel, padding=1)[others] - before).abs().max().item()
    group.append((last(out), off))
    print(f"{name:28s} channels_last {last(out)!s:5s} largest change of an untouched row's output {off:.1e}")
print("x[rows] channels_last", last(batch[others]), " index_select", last(batch.index_select(0, others)))
holds = (
    all(fmt and off == 0 for fmt, off in kept)
    and not any(fmt for fmt, _ in lost)
    and last(batch[others])
    and not last(batch.index_select(0, others))
)
sys.exit(0 if holds else 1)
PY
PYTHONPATH="$folder/site" python3 "$folder/run.py"
