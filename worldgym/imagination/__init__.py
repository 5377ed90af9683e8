"""Imagination: a world model, a judge and a start set as Gymnasium environments.

Example::

    from worldgym.imagination import ArrayStarts, WorldModelVectorEnv
    envs = WorldModelVectorEnv(model, judge, ArrayStarts(images, instructions), num_envs=16, chunk=5)
    observation, info = envs.reset(seed=0)
    observation, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
    branches = envs.fork([0] * 64)  # 64 copies of slot 0, mid-episode
"""

from worldgym.imagination.env import WorldModelEnv
from worldgym.imagination.slots import SavedState
from worldgym.imagination.starts import ArrayStarts, DatasetStarts, ImageStarts, Start, StartSet
from worldgym.imagination.vector import WorldModelVectorEnv

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
