#!/usr/bin/env bash
# peft 0.21.2: adapters that inject_adapter_in_model adds to a bfloat16 model are bfloat16, while those of get_peft_model are
# float32 (its autocast_adapter_dtype, on by default; the other function has no such argument). Nothing is said. With the
# same data, optimizer and learning rate (AdamW, 1e-5, a usual one for full fine-tuning), nine tenths or more of the
# weights of the injected lora_A never change in 100 steps, because an update is smaller than half the spacing of bfloat16 at
# the weight; of those in float32, nearly all change. A package that keeps its own model class and injects adapters must cast
# them itself (peft.tuners.tuners_utils.cast_adapter_dtype does).
# Exits 0 while this holds, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/site" \
    torch==2.13.0 numpy==2.4.6 transformers==5.23.0 accelerate==1.15.0 peft==0.21.2
cat > "$folder/run.py" <<'PY'
import sys

import peft
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.tuners.tuners_utils import cast_adapter_dtype
from torch import nn

torch.set_num_threads(1)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)).bfloat16()


def config():
    return LoraConfig(r=4, target_modules=["0", "2"])


def cast():
    made = inject_adapter_in_model(config(), model())
    cast_adapter_dtype(made, "default")
    return made


def moved(made):
    """Precision of the adapters, and the share of the weights of lora_A that 100 steps change."""
    torch.manual_seed(1)
    down = [weight for name, weight in made.named_parameters() if "lora_A" in name]
    trained = [weight for name, weight in made.named_parameters() if "lora_" in name]
    before = [weight.detach().clone() for weight in down]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0)
    x, y = torch.randn(256, 64).bfloat16(), torch.randn(256, 64)
    for _ in range(100):
        optimizer.zero_grad()
        (made(x).float() - y).square().mean().backward()
        optimizer.step()
    changed = [(a != b).float().mean().item() for a, b in zip(before, down)]
    return {str(weight.dtype) for weight in down}, sum(changed) / len(changed)


results = {
    "get_peft_model": moved(get_peft_model(model(), config())),
    "inject_adapter_in_model": moved(inject_adapter_in_model(config(), model())),
    "the same, cast": moved(cast()),
}
print("peft", peft.__version__, "torch", torch.__version__)
for name, (kinds, share) in results.items():
    print(f"{name:<26}{', '.join(kinds):<16}{share:6.1%} of lora_A changed")
holds = (
    results["get_peft_model"][0] == results["the same, cast"][0] == {"torch.float32"}
    and results["inject_adapter_in_model"][0] == {"torch.bfloat16"}
    and results["get_peft_model"][1] > 0.95
    and results["the same, cast"][1] > 0.95
    and results["inject_adapter_in_model"][1] < 0.1
)
sys.exit(0 if holds else 1)
PY
PYTHONPATH="$folder/site" python3 -W ignore "$folder/run.py"
