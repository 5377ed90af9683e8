#!/usr/bin/env bash
# mujoco 3.12.0 and 4.0.0: a model that is saved as XML (MjSpec.to_xml, mj_saveLastXML) and compiled again is another model.
#   3.12.0 (also 3.3.0, 3.3.7, 3.8.1): the compiler attributes inertiagrouprange and settotalmass are left out of the file
#     without a warning, so masses and inertias come from all geoms, the visible ones too: a mug of 43 g weighs 405 g
#     afterwards. robosuite 1.5.2 has inertiagrouprange="0 0" in its base scene, and its DataCollectionWrapper stores the
#     XML of mj_saveLastXML as the model of an episode: read back with mujoco 3.3.0, the table of its Lift weighs 70 kg in
#     place of 32.
#   4.0.0 (also 3.17.0): both attributes are kept. In all versions the file has six significant digits, so sizes and
#     positions of a randomised scene are off by up to 5e-7 of their value. Under the same physics, a box and a ball that
#     fall on each other are then 3e-7 m off at the start and 6e-5 m, two hundred times as much, within 3 s.
# Actions of a log that are replayed in the scene that was saved with it need not repeat the log. A binary model
# (mj_saveModel) is read back exactly.
# Exits 0 while this holds, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
for version in 3.12.0 4.0.0; do
    python3 -m pip install --quiet --disable-pip-version-check --target "$folder/$version" "mujoco==$version" numpy==2.4.6
done
cat > "$folder/run.py" <<'PY'
import sys
import tempfile
from pathlib import Path

import mujoco
import numpy as np

MUG = """<mujoco><compiler %s/><worldbody><body name="mug" pos="0 0 .3"><freejoint/>
<geom type="box" size=".03 .03 .03" group="0" density="200"/>
<geom type="cylinder" size=".06 .08" group="1" contype="0" conaffinity="0" density="200"/></body></worldbody></mujoco>"""
SCENE = """<mujoco><worldbody><geom type="plane" size="1 1 .1"/>
<body pos="0.123456789 0.2 0.31234567"><freejoint/><geom type="box" size=".0312345678 .03 .03" mass=".123456789"/></body>
<body pos="0.13 0.21 0.41234567"><freejoint/><geom type="sphere" size=".0312345678"/></body></worldbody></mujoco>"""


def again(xml):
    """The model, and what its own XML and its own binary file compile to."""
    spec = mujoco.MjSpec.from_string(xml)
    model = spec.compile()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.mjb")
        mujoco.mj_saveModel(model, path)
        binary = mujoco.MjModel.from_binary_path(path)
    return model, mujoco.MjModel.from_xml_string(spec.to_xml()), binary


def path(model, steps=1500):
    data, out = mujoco.MjData(model), []
    for _ in range(steps):
        mujoco.mj_step(model, data)
        out.append(data.qpos.copy())
    return np.array(out)


new = mujoco.__version__.startswith("4")
holds = True
for attribute in ('inertiagrouprange="0 0"', 'settotalmass="2"'):
    first, second, _ = again(MUG % attribute)
    kept = bool(np.isclose(first.body_mass[1], second.body_mass[1], rtol=1e-5))
    print(f"mujoco {mujoco.__version__}  {attribute:<24} mass {first.body_mass[1]:.4f} kg, from the saved XML {second.body_mass[1]:.4f} kg")
    holds &= kept == new
first, second, binary = again(SCENE)
ways = [path(model) for model in (first, second, binary)]
apart = np.abs(ways[0] - ways[1]).max(1)
exact = np.array_equal(ways[0], ways[2])
print(f"mujoco {mujoco.__version__}  same scene from its saved XML: apart by {apart[0]:.1e} at the start, {apart[1000]:.1e} after 2 s, "
      f"{apart.max():.1e} m at most in 3 s; from the binary file exactly the same: {exact}")
sys.exit(0 if holds and 1e-8 < apart[0] < 1e-6 and apart.max() > 1e-5 and exact else 1)
PY
for version in 3.12.0 4.0.0; do
    MUJOCO_GL=disabled PYTHONPATH="$folder/$version" python3 -W ignore "$folder/run.py"
done
