#!/usr/bin/env bash
# mujoco 3.12.0 and later (4.0.0 is the newest): equality of an enumerator and a NumPy integer depends on the side.
#   model.jnt_type[i] == mjJNT_HINGE is True, mjJNT_HINGE == model.jnt_type[i] is False. `in` asks the second way, so
#   `model.jnt_type[i] in (mjJNT_HINGE, mjJNT_SLIDE)` is False for every joint, and {mjJNT_HINGE: ...}[model.jnt_type[i]]
#   finds nothing, without an error. Whole arrays (model.jnt_type == mjJNT_HINGE), numpy.isin, plain integers
#   (int(model.jnt_type[i]), also on both sides of ==) and tables with int(mjJNT_HINGE) as keys are right.
#   3.11.0 (also 3.0.0 to 3.10.0): all of these agree.
# Code that sorts joints or geoms by `in` takes the other branch from one minor version to the next. robosuite 1.5.2, which
# asks for "mujoco>=3.3.0" and so gets 4.0.0, stops with a bare AssertionError in get_joint_qpos_addr when its Lift is
# made, and so with 3.12.0; with 3.9.0 and earlier Lift runs (seen by hand, not run here; 3.11.0 stops it for another
# reason, MjData.qM is gone).
# Exits 0 while this holds, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
for version in 3.11.0 3.12.0 4.0.0; do
    python3 -m pip install --quiet --disable-pip-version-check --target "$folder/$version" "mujoco==$version" numpy==2.4.6
done
cat > "$folder/run.py" <<'PY'
import sys

import mujoco
import numpy as np

MODEL = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><body><joint type='hinge'/><geom size='.1'/></body>"
    "<body pos='1 0 0'><joint type='slide'/><geom size='.1'/></body></worldbody></mujoco>"
)
HINGE, SLIDE = mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE
kinds = MODEL.jnt_type
found = {
    "kind == HINGE": bool(kinds[0] == HINGE),
    "HINGE == kind": bool(HINGE == kinds[0]),
    "kind in (HINGE, SLIDE)": kinds[0] in (HINGE, SLIDE),
    "{HINGE: 1}.get(kind)": {HINGE: 1}.get(kinds[0]) == 1,
    "int(kind) in (HINGE, SLIDE)": int(kinds[0]) in (HINGE, SLIDE),
    "{int(HINGE): 1}.get(kind)": {int(HINGE): 1}.get(kinds[0]) == 1,
    "kinds == HINGE": (kinds == HINGE).tolist() == [True, False],
    "numpy.isin": np.isin(kinds, [HINGE, SLIDE]).tolist() == [True, True],
}
print(f"mujoco {mujoco.__version__}  " + ", ".join(f"{what}: {value}" for what, value in found.items()))
one_sided = {"HINGE == kind", "kind in (HINGE, SLIDE)", "{HINGE: 1}.get(kind)"}
old = mujoco.__version__ == "3.11.0"
sys.exit(0 if {what for what, value in found.items() if not value} == (set() if old else one_sided) else 1)
PY
for version in 3.11.0 3.12.0 4.0.0; do
    MUJOCO_GL=disabled PYTHONPATH="$folder/$version" python3 -W ignore "$folder/run.py"
done
