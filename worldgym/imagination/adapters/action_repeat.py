"""Action repeat: one action per chunk, applied to all frames of the chunk.

A policy that learns from scratch explores badly when its action changes every 0.2 s, and a chunk of five independent
actions has twenty dimensions. With one action per chunk there are four dimensions, and an episode has eight decisions.

Example::

    envs = ActionRepeat(gym.make_vec("worldgym/Imagined-v0", num_envs=16, chunk=5))
    envs.single_action_space    # Box(-1, 1, (4,))
"""

from __future__ import annotations

import pkgutil
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space


class ActionRepeat(VectorWrapper):
    """A vector environment that steps chunks but takes one action per step.

    Args:
        env: a vector environment whose actions are `(K, A)` chunks.

    Raises:
        ValueError: the actions have another shape; the message names the settings to pass.
    """

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        space = env.single_action_space
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 2:
            raise ValueError(
                f"actions are {space}; repeating one needs chunks (K, A): make the environment with chunk=5, without "
                "flat_actions"
            )
        self.frames = space.shape[0]
        self.single_action_space = gym.spaces.Box(space.low[0], space.high[0], dtype=np.float32)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step with `actions (N, A)`, arrays or tensors; each action is repeated for the frames of a chunk."""
        if hasattr(actions, "detach"):
            repeated: Any = actions[:, None].expand(-1, self.frames, -1)
        else:
            repeated = np.repeat(np.asarray(actions)[:, None], self.frames, 1)
        return self.env.step(repeated)


class HeldAction(gym.ActionWrapper):
    """The single-environment version of `ActionRepeat`: one action `(A,)` for all frames of a chunk.

    Args:
        env: an environment whose actions are `(K, A)` chunks.

    Raises:
        ValueError: the actions have another shape; the message names the settings to pass.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        space = env.action_space
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 2:
            raise ValueError(
                f"actions are {space}; repeating one needs chunks (K, A): make the environment with chunk=5, without "
                "flat_actions"
            )
        self.frames = space.shape[0]
        self.action_space = gym.spaces.Box(space.low[0], space.high[0], dtype=np.float32)

    def action(self, action: Any) -> Any:
        """Repeat an action `(A,)` to a chunk `(K, A)`."""
        return np.repeat(np.asarray(action)[None], self.frames, 0)


def make_action_repeat(env_id: str, **settings: Any) -> gym.Env:
    """Entry point of `worldgym/ActionRepeat-v0`: the environment `env_id` with one action per chunk.

    Raises:
        ValueError: `wrap` is given, which wraps batches.
    """
    if settings.pop("wrap", None) is not None:
        raise ValueError("wrap is a wrapper of batches; use gym.make_vec, or wrap the result of gym.make yourself")
    return HeldAction(gym.make(env_id, **settings))


def make_action_repeat_vec(
    env_id: str, num_envs: int = 1, *, wrap: str | None = None, **settings: Any
) -> VectorEnv:
    """Vector entry point of `worldgym/ActionRepeat-v0`: the batch of `env_id` with one action per chunk.

    Args:
        env_id: id of the batch.
        num_envs: number of slots.
        wrap: `module:attribute` of an outermost wrapper; a text, because other processes must find it.
        **settings: settings of the batch.
    """
    envs = ActionRepeat(gym.make_vec(env_id, num_envs=num_envs, **settings))
    return envs if wrap is None else pkgutil.resolve_name(wrap)(envs)  # type: ignore[no-any-return]


def __getattr__(name: str) -> Any:
    """Resolve names of earlier versions, with a deprecation warning."""
    from worldgym.moved import earlier

    return earlier(__name__, name)
