#!/usr/bin/env bash
# mujoco 3.3.0: a state saved with mj_getState(mjSTATE_INTEGRATION) and restored by mj_setState and then mj_forward (which
# is needed before positions of bodies or contacts can be read or drawn) does not continue bit-identically when something
# touches: mj_forward solves the contacts again from the restored warm start, and writes its own solution over it, so the
# next mj_step starts its solver elsewhere. In the scene below positions differ by 1e-20 m after one step and by 6e-16 m
# after 200. mj_setState once more after mj_forward restores the warm start, keeps the derived positions, and continues
# bit-identically; so does no mj_forward at all.
# Exits 0 while this holds, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/site" mujoco==3.3.0 numpy==2.4.6
cat > "$folder/run.py" <<'PY'
import sys

import mujoco
import numpy as np

XML = """
<mujoco>
  <worldbody>
    <geom type="plane" size="2 2 .1"/>
    <body pos="0 0 .3"><freejoint/><geom type="box" size=".05 .04 .03"/></body>
    <body pos=".03 .01 .5"><freejoint/><geom type="capsule" size=".03 .06" euler="0 80 10"/></body>
    <body pos="-.02 .02 .7"><freejoint/><geom type="box" size=".04 .04 .04" euler="20 30 0"/></body>
  </worldbody>
</mujoco>
"""
model = mujoco.MjModel.from_xml_string(XML)
data = mujoco.MjData(model)
spec = mujoco.mjtState.mjSTATE_INTEGRATION
state = np.empty(mujoco.mj_stateSize(model, spec))
mujoco.mj_step(model, data, 250)
mujoco.mj_getState(model, data, state, spec)
print("mujoco", mujoco.__version__, "contacts", data.ncon)


def continued(*restore):
    for step in restore:
        step()
    path = []
    for _ in range(200):
        mujoco.mj_step(model, data)
        path.append(data.qpos.copy())
    return np.array(path)


put = lambda: mujoco.mj_setState(model, data, state, spec)
forward = lambda: mujoco.mj_forward(model, data)
expected = continued()
only, then_forward, twice = continued(put), continued(put, forward), continued(put, forward, put)
for name, path in (("mj_setState", only), ("mj_setState, mj_forward", then_forward), ("... and mj_setState", twice)):
    off = np.abs(path - expected).max(1)
    print(f"{name:<26} differs after 1, 10, 200 steps by {off[0]:.1e} {off[9]:.1e} {off[-1]:.1e}")
holds = (
    np.array_equal(only, expected) and np.array_equal(twice, expected) and not np.array_equal(then_forward, expected)
)
sys.exit(0 if holds else 1)
PY
PYTHONPATH="$folder/site" python3 "$folder/run.py"
