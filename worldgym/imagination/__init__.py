"""Gymnasium environments made of a world model, a judge and a start set.

Example::

    from worldgym.imagination import ArrayStarts, WorldModelVectorEnv
    envs = WorldModelVectorEnv(model, judge, ArrayStarts(images, instructions), num_envs=16, chunk=5)
    observation, info = envs.reset(seed=0)
    observation, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
    branches = envs.fork([0] * 64)  # 64 copies of slot 0, in the middle of its episode
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldgym.imagination.env import WorldModelEnv
    from worldgym.imagination.episodes import SavedState
    from worldgym.imagination.starts import ArrayStarts, DatasetStarts, ImageStarts, Start, StartSet
    from worldgym.imagination.vector import WorldModelVectorEnv

# Resolved on first use: simulators import their spaces from this package and do not need torch.
_LAZY = {
    **dict.fromkeys(("ArrayStarts", "DatasetStarts", "ImageStarts", "Start", "StartSet"), "starts"),
    "SavedState": "episodes",
    "WorldModelEnv": "env",
    "WorldModelVectorEnv": "vector",
}

__all__ = [
    "ArrayStarts",
    "DatasetStarts",
    "ImageStarts",
    "SavedState",
    "Start",
    "StartSet",
    "WorldModelEnv",
    "WorldModelVectorEnv",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(import_module(f"worldgym.imagination.{_LAZY[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(
        f"module 'worldgym.imagination' has no attribute {name!r}; it has {', '.join(__all__)}"
    )
