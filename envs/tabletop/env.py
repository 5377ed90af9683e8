"""The single tabletop environment: `TabletopVectorEnv` with one environment and no batch dimension.

Example::

    import gymnasium as gym, worldgym
    env = gym.make("worldgym/Tabletop-v0", task="pick_place", render_mode="rgb_array")
    obs, info = env.reset(seed=0)
    obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
"""

from __future__ import annotations

from typing import Any

from gymnasium.vector import AutoresetMode

from envs.tabletop.vector import TabletopVectorEnv
from worldgym.imagination.batch_of_one import BatchOfOne


class TabletopEnv(BatchOfOne):
    """A single tabletop environment. Arguments are those of `TabletopVectorEnv`."""

    batch: TabletopVectorEnv

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(TabletopVectorEnv(1, autoreset_mode=AutoresetMode.DISABLED, **kwargs))

    @property
    def instruction(self) -> str:
        """The instruction of this episode."""
        return self.batch.simulation().instruction

    @instruction.setter
    def instruction(self, text: str) -> None:
        self.batch.simulation().instruction = text

    def scene(self) -> Any:
        """The start state of this episode as plain data; `reset(options={"scene": ...})` starts from it again."""
        return self.batch.scene().to_json()

    def save_state(self) -> bytes:
        """The complete state as bytes; restoring it is bit-exact."""
        return self.batch.save_state()

    def restore_state(self, state: bytes) -> None:
        """Restore a state from `save_state`, in this or another process."""
        self.batch.restore_state(state)
