"""Constructors behind `worldgym/ImaginedTabletop-v0`: the bundled world model, judge and starts.

Why: `gym.make` takes an id and JSON-able keywords, so that an `EnvSpec` can be sent to a worker; these two
functions turn them into environments and say what to run when the weights are not there.

Example::

    import gymnasium as gym, worldgym
    env = gym.make("worldgym/ImaginedTabletop-v0", horizon=40)
    envs = gym.make_vec("worldgym/ImaginedTabletop-v0", num_envs=16)
    observation, info = envs.reset(seed=0)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worldgym import pretrained
from worldgym.errors import CheckpointError
from worldgym.imagination.env import WorldModelEnv
from worldgym.imagination.vector import WorldModelVectorEnv

CHECKPOINT = "tabletop-small"
JUDGE = "rewards.learned:load_bundled"
# The tabletop's proprioception: hand x, y, z and finger opening, metres. Equal spaces let a policy move over
# unchanged.
STATE_LOW = (-0.3, -0.3, -0.05, -0.01)
STATE_HIGH = (0.3, 0.3, 0.3, 0.15)


def make_imagined_tabletop(**settings: Any) -> WorldModelEnv:
    """One imagined tabletop.

    Args:
        **settings: `checkpoint` (bundled name, default "tabletop-small"; or a folder that holds
            `world_model/` and `starts.npz`), and any keyword of `WorldModelEnv`.

    Raises:
        CheckpointError: the checkpoint is missing; `make pretrained` builds it.
    """
    return WorldModelEnv(**tabletop_settings(**settings))


def make_imagined_tabletop_vec(num_envs: int = 1, **settings: Any) -> WorldModelVectorEnv:
    """`num_envs` imagined tabletops, stepped as one batch; keywords as in `make_imagined_tabletop`.

    Raises:
        CheckpointError: the checkpoint is missing; `make pretrained` builds it.
    """
    return WorldModelVectorEnv(num_envs=num_envs, **tabletop_settings(**settings))


# Gymnasium looks for render modes at the entry point, to add its own wrappers for "human" and "rgb_array_list".
make_imagined_tabletop.metadata = WorldModelEnv.metadata  # type: ignore[attr-defined]
make_imagined_tabletop_vec.metadata = WorldModelVectorEnv.metadata  # type: ignore[attr-defined]


def tabletop_settings(checkpoint: str = CHECKPOINT, **settings: Any) -> dict[str, Any]:
    """Complete an imagined tabletop's keywords by the bundled world model, judge, starts and bounds.

    Raises:
        CheckpointError: the checkpoint is missing or incomplete; `make pretrained` builds it.
    """
    settings.setdefault("reward", JUDGE)
    settings.setdefault("state_low", STATE_LOW)
    settings.setdefault("state_high", STATE_HIGH)
    if "world_model" not in settings or "starts" not in settings:
        folder = Path(checkpoint) if Path(checkpoint).is_dir() else pretrained.path(checkpoint)
        for key, name in (("world_model", "world_model"), ("starts", "starts.npz")):
            if key not in settings:
                if not (folder / name).exists():
                    raise CheckpointError(
                        f"checkpoint {checkpoint!r} has no {name} in {folder}; run `make pretrained`, or pass"
                        f" {key}=..."
                    )
                settings[key] = str(folder / name)
    return settings
