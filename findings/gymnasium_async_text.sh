#!/usr/bin/env bash
# gymnasium 1.2.2 and 1.4.0: an environment whose observation holds a Text, in an AsyncVectorEnv with its default shared
# memory. The workers send the right text, but the parent decodes the shared buffer once, when it is made, and hands that
# out at every reset and step: a word of the first letter of the character set. With shared_memory=False it is right.
# Exits 0 while this holds, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
cat > "$folder/run.py" <<'PY'
import sys, gymnasium, numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv

class Told(gymnasium.Env):
    observation_space = spaces.Dict(number=spaces.Discrete(9), words=spaces.Text(max_length=8, charset="abcdeghlnorw "))
    action_space = spaces.Discrete(2)
    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return {"number": 3, "words": "go left"}, {}
    def step(self, action):
        return {"number": 4, "words": "go on"}, 0.0, False, False, {}

def seen(**how):
    envs = AsyncVectorEnv([Told, Told], **how)
    first = envs.reset(seed=0)[0]
    then = envs.step(np.zeros(2, int))[0]
    envs.close()
    return [first["words"], then["words"]], [first["number"].tolist(), then["number"].tolist()]

if __name__ == "__main__":
    Told.observation_space = spaces.Dict(number=spaces.Discrete(9), words=spaces.Text(max_length=8, charset="abcdefghlnorteg "))
    shared, numbers = seen()
    plain, _ = seen(shared_memory=False)
    print("gymnasium", gymnasium.__version__, "shared:", shared, numbers, "not shared:", plain)
    right = [("go left",) * 2, ("go on",) * 2]
    assert [tuple(w) for w in plain] == right and numbers == [[3, 3], [4, 4]]
    wrong = [tuple(w) for w in shared] != right and tuple(shared[0]) == tuple(shared[1])
    sys.exit(0 if wrong else 1)
PY
for version in 1.2.2 1.4.0; do
    python3 -m pip install --quiet --disable-pip-version-check --target "$folder/$version" "gymnasium==$version" numpy==2.4.6
    PYTHONPATH="$folder/$version" python3 "$folder/run.py"
done
