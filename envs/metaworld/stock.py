"""Meta-World as its package makes it: all meshes, shadows and smoothed edges; the reference for speed.

Example::

    step = stock()
    step()              # a control step of 50 ms with its frame; returns 1
"""

from __future__ import annotations

from collections.abc import Callable

from envs.engine import mujoco  # noqa: F401  (chooses the OpenGL backend before the package is imported)
from envs.metaworld.specs import REPEAT
from envs.metaworld.tasks import DEFAULT_TASKS, find_task


def stock(size: int = 64, seed: int = 0) -> Callable[[], int]:
    """A function that takes one control step in the unmodified environment of one task and draws its frame.

    Episodes are reset when they end. The function returns 1, the number of steps.

    Args:
        size: side of the frame in pixels.
        seed: of starts and actions; it also chooses the task.
    """
    import gymnasium as gym
    import metaworld  # noqa: F401  (registers the ids)

    task = find_task(DEFAULT_TASKS[seed % len(DEFAULT_TASKS)])
    env = gym.make(
        "Meta-World/MT1", env_name=task.environment, render_mode="rgb_array", camera_name="corner2", width=size,
        height=size, seed=seed, disable_env_checker=True,
    )  # fmt: skip
    env.action_space.seed(seed)
    env.reset()

    def step() -> int:
        action = env.action_space.sample()
        for _ in range(REPEAT):
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
                break
        env.render()
        return 1

    return step
