#!/usr/bin/env bash
# torch 2.13.0, CPU: GroupNorm of a bfloat16 batch in channels_last order is several times slower than of the same batch in
# float32, although it moves half the bytes (here 3 to 7 times: 64 channels, 8 groups, 16 x 16). In the usual order bfloat16
# is about as fast as that, and even x.float(), GroupNorm, .bfloat16() is faster than GroupNorm of x. The same batch
# costs as much under autocast, which does not list group_norm, so a network that was moved to channels_last and bfloat16
# for its convolutions loses there what they gain. Values agree within a rounding of bfloat16.
# Measured as ratios of medians in one process with one thread, against bounds of 2 (1.2 for the detour through float32).
# Exits 0 while this holds, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/site" torch==2.13.0 numpy==2.4.6
cat > "$folder/run.py" <<'PY'
import statistics
import sys
import time

import torch

torch.manual_seed(0)
torch.set_num_threads(1)
torch.set_grad_enabled(False)
norm = torch.nn.GroupNorm(8, 64)
half = torch.nn.GroupNorm(8, 64).bfloat16()
usual = torch.randn(64, 64, 16, 16)
last = usual.to(memory_format=torch.channels_last)


def autocast():
    with torch.autocast("cpu", torch.bfloat16):
        return norm(last.bfloat16())


works = {
    "float32, usual order": lambda: norm(usual),
    "float32, channels_last": lambda: norm(last),
    "bfloat16, usual order": lambda: half(usual_half),
    "bfloat16, channels_last": lambda: half(last_half),
    "bfloat16, channels_last, autocast": autocast,
    "through float32": lambda: norm(last_half.float()).bfloat16(),
}
usual_half, last_half = usual.bfloat16(), last.bfloat16()
times = {name: [] for name in works}
for turn in range(60):
    for name, work in works.items():
        began = time.perf_counter()
        work()
        if turn >= 10:
            times[name].append(time.perf_counter() - began)
cost = {name: 1e3 * statistics.median(values) for name, values in times.items()}
print("torch", torch.__version__)
for name, value in cost.items():
    print(f"{name:<36}{value:7.2f} ms")
slow = cost["bfloat16, channels_last"]
same = torch.allclose(half(last_half).float(), norm(last_half.float()), atol=0.05)
holds = (
    same
    and slow > 2 * cost["float32, channels_last"]
    and slow > 2 * cost["bfloat16, usual order"]
    and slow > 1.2 * cost["through float32"]
    and cost["bfloat16, channels_last, autocast"] > 2 * cost["float32, channels_last"]
)
sys.exit(0 if holds else 1)
PY
PYTHONPATH="$folder/site" python3 "$folder/run.py"
