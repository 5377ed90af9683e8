#!/usr/bin/env bash
# metaworld 3.1.1 (mujoco 3.3.0): the observation of reset() is not of the state in which the episode begins. The layout
# is written into the model and into joint positions after the kinematics were computed, and they are not computed
# again, so positions of objects in the first observation are those of the default layout. For window-close-v3 the handle
# is 20 cm away from where it is after one step with a zero action, and the task's own evaluate_state says that the
# window is already closed. A world model or a policy whose first frame is drawn from the same data sees that layout, too.
# After mujoco.mj_forward(model, data) the first observation agrees with the next.
# Exits 0 while this holds, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/site" metaworld==3.1.1 mujoco==3.3.0 \
    gymnasium==1.2.2 numpy==2.4.6 scipy==1.17.1
cat > "$folder/run.py" <<'PY'
import sys
import warnings

import mujoco
import numpy as np

warnings.simplefilter("ignore")
from metaworld.env_dict import ALL_V3_ENVIRONMENTS

idle = np.zeros(4, np.float32)
off, early = {}, {}
for name in ("window-close-v3", "window-open-v3", "drawer-open-v3", "faucet-open-v3", "reach-v3"):
    env = ALL_V3_ENVIRONMENTS[name]()
    env._set_task_called, env._freeze_rand_vec, env.seeded_rand_vec = True, False, True
    env.seed(3)
    first, _ = env.reset()
    success = env.evaluate_state(first, idle)[1]["success"]
    mujoco.mj_forward(env.model, env.data)
    computed = env._get_curr_obs_combined_no_goal()
    second, *_ = env.step(idle)
    off[name] = tuple(float(np.linalg.norm(seen[4:7] - second[4:7])) for seen in (first, computed))
    early[name] = bool(success)
    print(f"{name:<18} object of the first observation off by {off[name][0]:.3f} m, after mj_forward {off[name][1]:.3f} m, "
          f"success at reset {early[name]}")
moved = [name for name, (stale, _) in off.items() if stale > 0.03]
holds = (
    {"window-close-v3", "window-open-v3", "faucet-open-v3"} <= set(moved) and "reach-v3" not in moved
    and max(computed for _, computed in off.values()) < 0.01 and early["window-close-v3"]
)
sys.exit(0 if holds else 1)
PY
MUJOCO_GL=disabled PYTHONPATH="$folder/site" python3 "$folder/run.py"
