"""The single tabletop environment: the batch-of-one view of `TabletopVectorEnv`.

Example::

    import gymnasium as gym, worldgym
    env = gym.make("worldgym/Tabletop-v0", task="pick_place", render_mode="rgb_array")
    obs, info = env.reset(seed=0)
    obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from envs.tabletop.vector import TabletopVectorEnv, check_actions
from worldgym.imagination.settings import limited_spec


class TabletopEnv(gym.Env):
    """One tabletop. Arguments are those of `TabletopVectorEnv`."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 5}
    _spec: Any = None

    def __init__(self, **kwargs: Any) -> None:
        self.batch = TabletopVectorEnv(1, autoreset_mode=AutoresetMode.DISABLED, **kwargs)
        self.metadata = {k: v for k, v in self.batch.metadata.items() if k != "autoreset_mode"}
        self.render_mode = self.batch.render_mode
        self.observation_space = self.batch.single_observation_space
        self.action_space = self.batch.single_action_space

    @property  # type: ignore[override]
    def spec(self) -> Any:
        """What `gym.make` made it from, with the limit of steps that is in force."""
        return self._spec

    @spec.setter
    def spec(self, value: Any) -> None:
        self._spec = None if value is None else limited_spec(value, self.batch.horizon, self.batch.chunk)

    @property
    def instruction(self) -> str:
        """The words of this episode."""
        return self.batch.simulation().instruction

    @instruction.setter
    def instruction(self, text: str) -> None:
        self.batch.simulation().instruction = text

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Start an episode; see `TabletopVectorEnv.reset`."""
        super().reset(seed=seed)
        observation, info = self.batch.reset(seed=seed, options=options)
        return _first(observation), _first_info(info)

    def scene(self) -> Any:
        """The start state of this episode as plain data; `reset(options={"scene": ...})` starts there again."""
        return self.batch.scene().to_json()

    def step(self, action: Any) -> tuple[dict, float, bool, bool, dict]:
        """One action (4,) or a chunk (K, 4) in [-1, 1]."""
        action = check_actions(action, self.action_space.shape or ())
        observation, reward, terminated, truncated, info = self.batch.step(action[None])
        return (
            _first(observation),
            float(reward[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            _first_info(info),
        )

    def save_state(self) -> bytes:
        """The whole state, bit for bit."""
        return self.batch.save_state()

    def restore_state(self, state: bytes) -> None:
        """Inverse of `save_state`, in any process."""
        self.batch.restore_state(state)

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """`(256, 256, 3)` uint8 with `render_mode="rgb_array"`."""
        frames = self.batch.render()
        return None if frames is None else frames[0]


def _first(observation: dict[str, Any]) -> dict[str, Any]:
    return {k: v[0] for k, v in observation.items()}


def _first_info(info: dict[str, Any]) -> dict[str, Any]:
    out = {}
    for key, value in info.items():
        if not key.startswith("_"):
            first = value[0]
            out[key] = first.item() if isinstance(first, np.generic) else first
    return out
