"""Constructors of `worldgym/ImaginedTabletop-v0`, which uses the bundled world model, judge and start states.

Example::

    import gymnasium as gym, worldgym
    env = gym.make("worldgym/ImaginedTabletop-v0", horizon=40)
    envs = gym.make_vec("worldgym/ImaginedTabletop-v0", num_envs=16)
    observation, info = envs.reset(seed=0)
"""

from __future__ import annotations

from worldgym.imagination.registry import constructors

make_imagined_tabletop, make_imagined_tabletop_vec = constructors("tabletop-small", suite="tabletop")
