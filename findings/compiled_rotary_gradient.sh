#!/usr/bin/env bash
# torch 2.13.0 on a CPU with AVX-512: torch.compile computes a wrong gradient of attention with rotary embeddings in
#   bfloat16. The forward pass agrees with eager, and so does everything in float32. In the backward pass some channels of
#   the keys get NaN (here 1,792 of 12,288 gradients of the q, k, v projection). It needs the rotation by halves (cat of
#   a*cos - b*sin and a*sin + b*cos) and heads of 64 channels; without the rotation, or with heads of 32, gradients are
#   right.
# Vectors of 256 bits are right: torch.compile(f, options={"cpp.simdlen": 256}). Seen by hand, not run here: turning off
#   the pattern matcher or epilogue fusion changes nothing, and float32 weights under autocast show the same.
# A training that does not look at its gradient norm has NaN in every weight after one step, while its first loss is that
#   of the eager run.
# Needs g++ and a processor with AVX-512 (elsewhere it ends with 2 and says so).
# Exits 0 while this holds, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/site" torch==2.13.0 numpy==2.4.6
cat > "$folder/run.py" <<'PY'
import sys

import torch

if torch.backends.cpu.get_cpu_capability() != "AVX512":
    print(f"this processor has {torch.backends.cpu.get_cpu_capability()}, and AVX512 is needed to show it")
    sys.exit(2)
torch.set_num_threads(1)


def case(title, head=64, rotate=True, dtype=torch.bfloat16, **settings):
    """Share of gradients that are not finite, and the relative error of all."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    length = 64
    angle = torch.arange(length)[:, None].float() / (100 ** (torch.arange(0, head, 2) / head))
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    project = torch.nn.Linear(head, 3 * head).to(dtype)
    x = torch.randn(1, length, head).to(dtype)

    def turned(x):
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def attend(x):
        q, k, v = project(x).unflatten(-1, (3, 1, head)).permute(2, 0, 3, 1, 4)
        if rotate:
            q, k = turned(q), turned(k)
        weight = ((q @ k.transpose(-1, -2)) * head**-0.5).float().softmax(-1)
        return weight.to(v.dtype) @ v

    def run(function):
        project.zero_grad()
        y = function(x)
        y.float().square().mean().backward()
        return y.detach().float(), project.weight.grad.float().clone()

    (y, true), (z, found) = run(attend), run(torch.compile(attend, **settings))
    lost = int((~torch.isfinite(found)).sum())
    forward = float((y - z).norm() / y.norm())
    error = float((found - true).norm() / true.norm())
    print(f"{title}: forward differs by {forward:.4f}, gradients not finite {lost} of {found.numel()}, error {error:.4f}")
    return forward < 0.01 and (lost > 0, not lost and error < 0.05)


print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
broken, right = (True, False), (False, True)
seen = [
    case("bfloat16") == broken,
    case("bfloat16, without the rotation", rotate=False) == right,
    case("bfloat16, heads of 32", head=32) == right,
    case("float32", dtype=torch.float32) == right,
    case("bfloat16, vectors of 256 bits", options={"cpp.simdlen": 256}) == right,
]
sys.exit(0 if all(seen) else 1)
PY
PYTHONPATH="$folder/site" python3 -W ignore "$folder/run.py"
