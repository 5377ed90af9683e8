#!/usr/bin/env bash
# safetensors 0.8.0, numpy flavour: an array that is a transposed view is saved without a word and comes back with its
# values in another order (the shape is right, the bytes are those of the memory underneath). The torch flavour of the
# same release refuses such a tensor with a ValueError. A copy by numpy.ascontiguousarray is saved correctly.
# Exits 0 while this holds, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder" safetensors==0.8.0 numpy==2.4.6
PYTHONPATH="$folder" python3 - "$folder" <<'PY'
import sys, numpy, safetensors
from safetensors.numpy import load_file, save_file

path = sys.argv[1] + "/x.safetensors"
view = numpy.arange(6, dtype=numpy.float32).reshape(2, 3).T  # (3, 2), a view
save_file({"view": view, "copy": numpy.ascontiguousarray(view)}, path)
back = load_file(path)
print("safetensors", safetensors.__version__, "numpy", numpy.__version__)
print("saved ", view.tolist())
print("loaded", back["view"].tolist(), "(from the view)")
print("loaded", back["copy"].tolist(), "(from a contiguous copy)")
assert back["view"].shape == view.shape
assert numpy.array_equal(back["copy"], view)
wrong = not numpy.array_equal(back["view"], view)
print("the view came back", "with other values" if wrong else "right")
sys.exit(0 if wrong else 1)
PY
