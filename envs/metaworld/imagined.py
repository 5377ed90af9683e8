"""Constructors of `worldgym/ImaginedMetaWorld-v0`, a world model of Meta-World; it needs no MuJoCo and no metaworld.

Example::

    import gymnasium as gym, worldgym
    env = gym.make("worldgym/ImaginedMetaWorld-v0", task="drawer_open")
    envs = gym.make_vec("worldgym/ImaginedMetaWorld-v0", num_envs=16)
    observation, info = envs.reset(seed=0)
"""

from __future__ import annotations

from worldgym.imagination.registry import constructors

make_imagined_metaworld, make_imagined_metaworld_vec = constructors("metaworld-small", suite="metaworld")
