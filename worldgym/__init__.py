"""A gym in which a learned, action-conditioned video world model replaces the simulator.

Importing worldgym only registers the environment ids. torch, MuJoCo and the models are imported when an environment
is made or an attribute is first used, so `import worldgym` stays fast in worker processes and tools.

Example::

    import gymnasium as gym
    import worldgym

    env = gym.make("worldgym/Imagined-v0", checkpoint="runs/bundle")
    observation, info = env.reset(seed=0)
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldgym._version import __version__
from worldgym.moved import install as _install_earlier_names

if TYPE_CHECKING:
    from worldgym.data import ActionSpec, DatasetWriter, Episode, EpisodeDataset, SplitManifest
    from worldgym.imagination.env import WorldModelEnv
    from worldgym.imagination.vector import WorldModelVectorEnv
    from worldgym.models import load_world_model

# attribute -> module that defines it (PEP 562: imported on first use)
_LAZY = {
    "WorldModelEnv": "worldgym.imagination.env",
    "WorldModelVectorEnv": "worldgym.imagination.vector",
    "load_world_model": "worldgym.models",
    "ActionSpec": "worldgym.data",
    "Episode": "worldgym.data",
    "EpisodeDataset": "worldgym.data",
    "DatasetWriter": "worldgym.data",
    "SplitManifest": "worldgym.data",
}

SUITE_IDS = Path(__file__).resolve().parent.parent / "envs" / "environments.json"
"""Environment ids of the suites in this project, read from JSON so that no simulator is imported."""


def _suite_environments() -> dict[str, tuple[str, str]]:
    if not SUITE_IDS.is_file():
        return {}
    return {name: (single, batch) for name, (single, batch) in json.loads(SUITE_IDS.read_text()).items()}


# id -> (entry point of the single environment, entry point of the vector environment). They are strings, so that
# nothing is imported until an environment is made.
ENVIRONMENTS = {
    "worldgym/Imagined-v0": (
        "worldgym.imagination.registry:make_imagined",
        "worldgym.imagination.registry:make_imagined_vec",
    ),
    **dict.fromkeys(
        ("worldgym/ActionRepeat-v0", "worldgym/Held-v0"),  # the second id is the name in earlier versions
        (
            "worldgym.imagination.adapters.action_repeat:make_action_repeat",
            "worldgym.imagination.adapters.action_repeat:make_action_repeat_vec",
        ),
    ),
    **_suite_environments(),
}

__all__ = [
    "ENVIRONMENTS",
    "ActionSpec",
    "DatasetWriter",
    "Episode",
    "EpisodeDataset",
    "SplitManifest",
    "WorldModelEnv",
    "WorldModelVectorEnv",
    "__version__",
    "load_world_model",
    "register_environments",
]


def register_environments() -> None:
    """Register the ids of `ENVIRONMENTS` with Gymnasium; a second call has no effect."""
    from gymnasium.envs.registration import register, registry

    for env_id, (entry_point, vector_entry_point) in ENVIRONMENTS.items():
        if env_id not in registry:
            register(id=env_id, entry_point=entry_point, vector_entry_point=vector_entry_point)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'worldgym' has no attribute {name!r}; it has {', '.join(sorted(__all__))}.")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


_install_earlier_names()
register_environments()
