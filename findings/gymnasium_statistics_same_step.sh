#!/usr/bin/env bash
# gymnasium 1.2.2: the vector wrapper RecordEpisodeStatistics around environments in autoreset mode SAME_STEP counts the
# first episode right and every later one a step short (length and return), because the step after an end, which is the
# first one of a new episode in this mode, is treated as the ignored step of mode NEXT_STEP.
# Exits 0 while this holds, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder" gymnasium==1.2.2 numpy==2.4.6
PYTHONPATH="$folder" python3 - <<'PY'
import sys, gymnasium, numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

class Five(gymnasium.Env):
    observation_space, action_space = spaces.Discrete(6), spaces.Discrete(2)
    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return 0, {}
    def step(self, action):
        self.t += 1
        return self.t, 1.0, self.t == 5, False, {}

def lengths(mode, steps):
    envs = RecordEpisodeStatistics(SyncVectorEnv([Five], autoreset_mode=mode))
    envs.reset(seed=0)
    found = []
    for _ in range(steps):
        info = envs.step(np.zeros(1, int))[-1]
        if "episode" in info:
            found.append((int(info["episode"]["l"][0]), float(info["episode"]["r"][0])))
    return found

same, following = lengths(AutoresetMode.SAME_STEP, 20), lengths(AutoresetMode.NEXT_STEP, 23)
print("gymnasium", gymnasium.__version__, "episodes of 5 steps and a return of 5")
print("SAME_STEP", same)
print("NEXT_STEP", following)
assert set(following) == {(5, 5.0)} and len(same) == 4
sys.exit(0 if same[0] == (5, 5.0) and same[1:] == [(4, 4.0)] * 3 else 1)
PY
