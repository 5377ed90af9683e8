"""Constructors of `worldgym/ImaginedTabletop-v0`, which uses the bundled world model, judge and start states.

Example::

    import gymnasium as gym, worldgym
    env = gym.make("worldgym/ImaginedTabletop-v0", horizon=40)
    envs = gym.make_vec("worldgym/ImaginedTabletop-v0", num_envs=16)
    observation, info = envs.reset(seed=0)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worldgym.imagination.registry import METADATA, VECTOR_METADATA, make_imagined, make_imagined_vec

if TYPE_CHECKING:
    from worldgym.imagination.env import WorldModelEnv
    from worldgym.imagination.vector import WorldModelVectorEnv

CHECKPOINT = "tabletop-small"


def make_imagined_tabletop(checkpoint: str = CHECKPOINT, **settings: Any) -> WorldModelEnv:
    """Make a single imagined tabletop environment.

    Args:
        checkpoint: name of a bundled checkpoint, or a folder with `world_model/`, `judge/` and `starts.npz`.
        **settings: any keyword argument of `WorldModelEnv`.

    Raises:
        CheckpointError: the checkpoint is missing; `make pretrained` builds it.
    """
    return make_imagined(checkpoint=checkpoint, suite="tabletop", **settings)


def make_imagined_tabletop_vec(
    num_envs: int = 1, checkpoint: str = CHECKPOINT, **settings: Any
) -> WorldModelVectorEnv:
    """Make a vector environment of `num_envs` imagined tabletops, stepped as one batch.

    The keyword arguments are those of `make_imagined_tabletop`.

    Raises:
        CheckpointError: the checkpoint is missing; `make pretrained` builds it.
    """
    return make_imagined_vec(num_envs, checkpoint=checkpoint, suite="tabletop", **settings)


# Gymnasium reads render modes from the entry point, to add its own wrappers for "human" and "rgb_array_list".
make_imagined_tabletop.metadata = METADATA  # type: ignore[attr-defined]
make_imagined_tabletop_vec.metadata = VECTOR_METADATA  # type: ignore[attr-defined]
