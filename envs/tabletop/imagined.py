"""Constructors behind `worldgym/ImaginedTabletop-v0`: the bundled world model, judge and starts.

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
    """One imagined tabletop.

    Args:
        checkpoint: bundled name, or a folder that holds `world_model/`, `judge/` and `starts.npz`.
        **settings: any keyword of `WorldModelEnv`.

    Raises:
        CheckpointError: the checkpoint is missing; `make pretrained` builds it.
    """
    return make_imagined(checkpoint=checkpoint, suite="tabletop", **settings)


def make_imagined_tabletop_vec(
    num_envs: int = 1, checkpoint: str = CHECKPOINT, **settings: Any
) -> WorldModelVectorEnv:
    """`num_envs` imagined tabletops, stepped as one batch; keywords as in `make_imagined_tabletop`.

    Raises:
        CheckpointError: the checkpoint is missing; `make pretrained` builds it.
    """
    return make_imagined_vec(num_envs, checkpoint=checkpoint, suite="tabletop", **settings)


# Gymnasium looks for render modes at the entry point, to add its own wrappers for "human" and "rgb_array_list".
make_imagined_tabletop.metadata = METADATA  # type: ignore[attr-defined]
make_imagined_tabletop_vec.metadata = VECTOR_METADATA  # type: ignore[attr-defined]
