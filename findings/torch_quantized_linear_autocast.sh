#!/usr/bin/env bash
# torch 2.13.0 (CPU): a module whose Linear layers were replaced by `quantize_dynamic` cannot run under bfloat16 autocast.
# Under autocast, nn.Linear takes whatever dtype the operation before it has returned. The dynamically quantized Linear
# that replaces it is not an autocast operation: its own output stays float32 and is right, so two of them in a row work,
# but it raises a RuntimeError as soon as an operation that autocast does run in bfloat16 (a matrix product, a
# convolution, attention) comes before it. Most transformers have one, so `quantize_dynamic(model)` works alone and with
# plain stacks of Linear layers, and fails inside the `autocast` block around which the float model was written. It does
# not matter that the layer was called in float32 before. `.float()` in front of each such layer, or autocast switched
# off, is what helps. Both the function and the class are still there although their own warning of this version says
# that they "will be removed in 2.10".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/check.py" <<'PY'
import re
import warnings

import torch
from torch import nn


class Attention(nn.Module):
    """One layer between two Linear layers: a product of matrices, or nothing."""

    def __init__(self, product):
        super().__init__()
        self.first, self.second, self.product = nn.Linear(8, 8), nn.Linear(8, 8), product

    def forward(self, x):
        x = self.first(x)
        if self.product:
            x = torch.softmax(x @ x.transpose(1, 2), -1) @ x
        return self.second(x)


def ran(model, x, enabled):
    """Dtype of the output, or the error, under autocast or without it."""
    try:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            return str(model(x).dtype)
    except RuntimeError as error:
        return f"RuntimeError: {str(error).splitlines()[0]}"


torch.manual_seed(0)
print("torch", torch.__version__)
x, found = torch.randn(2, 5, 8), {}
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for product in (False, True):
        model = Attention(product).eval()
        int8 = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
        for name, each in (("float32", model), ("int8", int8)):
            for enabled in (False, True):
                key = (name, "product" if product else "Linear only", "autocast" if enabled else "plain")
                found[key] = ran(each, x, enabled)
                print(*key, "->", found[key], sep=" | ")
        with torch.no_grad():
            assert (int8(x) - model(x)).abs().max() < 0.1
removed = {version for w in said for version in re.findall(r"removed in (\d+\.\d+)", str(w.message))}
print("says that it is removed in", removed)
fails = {key for key, value in found.items() if value.startswith("RuntimeError")}
assert fails == {("int8", "product", "autocast")}, fails
assert "BFloat16" in found["int8", "product", "autocast"]
assert found["int8", "Linear only", "autocast"] == "torch.float32"
assert found["float32", "product", "autocast"] == "torch.bfloat16"
assert removed == {"2.10"}, removed
PY
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.3.5"
"$folder/venv/bin/python" "$folder/check.py"
