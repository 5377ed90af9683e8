#!/usr/bin/env bash
# torch 2.13.0: making any optimizer, even SGD, imports the whole compiler front end (torch._dynamo) and sympy, although
# nothing is compiled. `import torch` alone does not. Neither TORCHDYNAMO_DISABLE=1 nor TORCH_COMPILE_DISABLE=1 prevents
# it: the constructor calls a function that is wrapped by torch._disable_dynamo, which imports torch._dynamo on its first
# call. A short-lived worker process that makes an optimizer pays for it once per process: seconds of CPU time and a few
# dozen megabytes, most of all where byte code is not cached (PYTHONDONTWRITEBYTECODE=1, read-only images).
# A process that only runs inference does not pay.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.2.6
cat >"$folder/check.py" <<'PY'
import os
import resource
import sys
import time

import torch


def loaded(name):
    return sum(module == name or module.startswith(name + ".") for module in sys.modules)


def megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


setting = sys.argv[1]
before = (loaded("torch._dynamo"), loaded("sympy"), len(sys.modules), megabytes())
weight = torch.nn.Parameter(torch.zeros(3))
(weight * 2).sum().backward()
trained = (loaded("torch._dynamo"), loaded("sympy"))
began = time.process_time()
torch.optim.SGD([weight], lr=0.1)
spent = time.process_time() - began
after = (loaded("torch._dynamo"), loaded("sympy"), len(sys.modules), megabytes())
print(f"torch {torch.__version__}, {setting}: modules of torch._dynamo, of sympy, of all: {before[:3]} after import torch,")
print(f"  {after[:3]} after SGD(); {spent:.1f} s of CPU time, {after[3] - before[3]:.0f} MB")
assert before[:2] == (0, 0) and trained == (0, 0), (before, trained)
assert after[0] > 50 and after[1] > 100 and after[2] - before[2] > 300, after
PY
"$folder/venv/bin/python" "$folder/check.py" "no setting"
TORCHDYNAMO_DISABLE=1 "$folder/venv/bin/python" "$folder/check.py" "TORCHDYNAMO_DISABLE=1"
TORCH_COMPILE_DISABLE=1 "$folder/venv/bin/python" "$folder/check.py" "TORCH_COMPILE_DISABLE=1"
