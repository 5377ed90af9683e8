#!/usr/bin/env bash
# safetensors 0.8.0: a file with two or more metadata entries is not reproducible. The same tensors with the same
# metadata, saved several times in one process, give files of different bytes, because the entries are written in a random
# order; with one entry the bytes are always the same. Whoever compares models by the hash of the file is misled.
# Exits 0 while this holds, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder" safetensors==0.8.0 numpy==2.4.6
PYTHONPATH="$folder" python3 <<'PY'
import hashlib, sys, numpy, safetensors
from safetensors.numpy import save

tensors = {"weight": numpy.zeros(4, numpy.float32)}
def kinds(metadata, times=40):
    return len({hashlib.sha256(save(tensors, metadata=metadata)).hexdigest() for _ in range(times)})

several = kinds({"format": "pt", "step": "1", "author": "a", "licence": "b"})
one = kinds({"format": "pt"})
print("safetensors", safetensors.__version__)
print(f"40 saves, four metadata entries: {several} different files; one entry: {one}")
sys.exit(0 if several > 1 and one == 1 else 1)
PY
