#!/usr/bin/env bash
# tfrecord 1.14.6 (numpy 2.4.6, protobuf 7.36.2): a bytes feature with several values loses the zero bytes at the end of
# each value. The loader puts the values into a NumPy array of dtype S, which takes trailing zeros for padding: two
# float32 pairs of 8 bytes come back with 8 and 4 bytes. A feature with one value is returned whole, so an episode stored
# as one record with a list of encoded arrays or pictures per feature (the layout of RLDS) is damaged, and a file with
# one step per record is not. Recordings of a robot end in zeros often: an open gripper, a hand at rest.
# Exits 0 while this holds, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/site" tfrecord==1.14.6 numpy==2.4.6 \
    protobuf==7.36.2
cat > "$folder/run.py" <<'PY'
import sys

import numpy as np
from tfrecord.reader import tfrecord_loader
from tfrecord.writer import TFRecordWriter

rows = np.array([[0.5, -1.0], [0.25, 0.0]], "<f4")
file = sys.argv[1]
writer = TFRecordWriter(file)
writer.write({"several": ([row.tobytes() for row in rows], "byte"), "one": (rows[1].tobytes(), "byte")})
writer.close()
read = next(iter(tfrecord_loader(file, None)))
several, one = read["several"], bytes(read["one"])
print("written 8 and 8 bytes, read", [len(value) for value in several], several.dtype)
print("one value alone: written 8 bytes, read", len(one))
holds = [len(value) for value in several] == [8, 4] and len(one) == 8
print("as described" if holds else "changed")
sys.exit(0 if holds else 1)
PY
PYTHONPATH="$folder/site" python3 "$folder/run.py" "$folder/steps.tfrecord"
