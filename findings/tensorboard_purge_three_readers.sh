#!/usr/bin/env bash
# tensorboard 2.21.0: a run that was killed and resumed writes a session start at its resumed step (what torch's
# SummaryWriter(purge_step=...) does), so that the points behind it are dropped. Three readers of the same release read the
# same two files in three ways:
#   EventAccumulator (Python, used by scripts):    drops the points behind the start, of all tags
#   the page, default loader (data server):        drops them only for tags that are written again after the start
#   the page, --load_fast=false (Python loader):   drops nothing; the resumed steps are shown twice
# Exits 0 while this holds, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d); trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/site" tensorboard==2.21.0 "setuptools<81"
export PYTHONPATH="$folder/site"
cat > "$folder/write.py" <<'PY'
import sys, time
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

def session(points, start=None):
    writer = EventFileWriter(sys.argv[1] + "/run")
    if start is not None:
        writer.add_event(Event(wall_time=time.time(), step=start, session_log=SessionLog(status=SessionLog.START)))
    for tag, step in points:
        value = Summary.Value(tag=tag, simple_value=float(step))
        writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=[value])))
    writer.close()

session([("loss", step) for step in range(10)] + [("accuracy", 8)])  # killed after step 9
time.sleep(1.5)  # another second, another file name
session([("loss", step) for step in range(5, 12)], start=5)  # resumed from a checkpoint of step 4
PY
cat > "$folder/read.py" <<'PY'
import json, sys, time, urllib.request
from importlib.metadata import version
logs, port = sys.argv[1], sys.argv[2]

def served(tag):
    url = f"http://localhost:{port}/data/plugin/scalars/scalars?run=run&tag={tag}"
    return [point[1] for point in json.load(urllib.request.urlopen(url))]

if port == "0":
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(logs + "/run").Reload()
    found = [[point.step for point in events.Scalars(tag)] for tag in ("loss", "accuracy")]
    name = f"tensorboard {version('tensorboard')}, EventAccumulator"
else:
    for _ in range(60):
        time.sleep(1)
        try:
            if 11 in served("loss"):
                break
        except OSError:
            pass
    found, name = [served("loss"), served("accuracy")], f"page, {sys.argv[3]}"
print(f"{name}: loss at {found[0]}, accuracy at {found[1]}")
once, twice = list(range(12)), [*range(10), *range(5, 12)]
expected = {"EventAccumulator": [once, []], "load_fast=true": [once, [8]], "load_fast=false": [twice, [8]]}
sys.exit(0 if found == expected[sys.argv[3]] else 1)
PY
python3 "$folder/write.py" "$folder/logs"
python3 "$folder/read.py" "$folder/logs" 0 EventAccumulator
for fast in true false; do
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
    python3 -m tensorboard.main --logdir "$folder/logs" --port "$port" --load_fast=$fast >"$folder/server.log" 2>&1 &
    python3 "$folder/read.py" "$folder/logs" "$port" "load_fast=$fast"
    kill $!; wait $! 2>/dev/null || true
done
