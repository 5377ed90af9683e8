"""The single imagined environment: the batch-of-one view of `WorldModelVectorEnv`.

Task Description
    Dream forward from a real frame under the agent's actions until a judge sees the instruction fulfilled.
Randomizations
    The start (image, state, instruction) and the world model's noise; wholly determined by the seed.
Success Conditions
    The judge's probability of success reaches `success_threshold`, the judge's own by default. It can be wrong:
    replay what matters in Real.

Example::

    from worldgym.imagination import WorldModelEnv
    env = WorldModelEnv("runs/wm", reward="rewards.learned:load_bundled", starts="tabletop-small")
    observation, info = env.reset(seed=0, options={"instruction": "push the red cube to the left"})
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    saved = env.save_state()  # env.restore_state(saved) continues from here, bit for bit
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from worldgym.imagination.episodes import SavedState
from worldgym.imagination.settings import limited_spec
from worldgym.imagination.starts import StartSet
from worldgym.imagination.vector import WorldModelVectorEnv
from worldgym.protocols import RewardModel, WorldModel


class WorldModelEnv(gym.Env[dict[str, Any], Any]):
    """One world model, judge and start set as a `gymnasium.Env`.

    Args:
        world_model: a `protocols.WorldModel`, or the path or name of a checkpoint.
        reward: a `protocols.RewardModel`, an entry point "package.module:factory", or None for no reward.
        starts: a `StartSet`, the path or name of one, or None if every reset brings an `initial_image`.
        render_mode: None or "rgb_array".
        **settings: horizon, chunk, judge_every, ... as in `WorldModelVectorEnv`.

    Raises:
        TypeError: an unknown keyword, or an object that does not follow its protocol.
        ValueError: an impossible setting.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 5}
    _spec: Any = None

    def __init__(
        self,
        world_model: WorldModel | str | Path,
        reward: RewardModel | str | None = None,
        starts: StartSet | str | Path | None = None,
        *,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        for key in ("num_envs", "autoreset_mode"):
            if key in settings:
                raise TypeError(
                    f"{key} belongs to many environments; use gym.make_vec or WorldModelVectorEnv"
                )
        self.batch = WorldModelVectorEnv(
            world_model,
            reward,
            starts,
            num_envs=1,
            autoreset_mode=AutoresetMode.DISABLED,
            render_mode=render_mode,
            **settings,
        )
        self.render_mode = render_mode
        self.metadata = {k: v for k, v in self.batch.metadata.items() if k != "autoreset_mode"}
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
        return self.batch.instructions[0]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode; options as in `WorldModelVectorEnv.reset`, for one slot."""
        if seed is not None or self._np_random is None:
            self._np_random, self._np_random_seed = seeding.np_random(seed)
        self.batch.np_random = (self._np_random,)  # one stream, whichever of the two the user looks at
        observation, info = self.batch.reset(options=options)
        return _first(observation), _first_info(info)

    def step(self, action: Any) -> tuple[dict[str, Any], Any, Any, Any, dict[str, Any]]:
        """Imagine one action `(A,)`, or a chunk `(K, A)`, of values in [-1, 1].

        Raises:
            ValueError: wrong shape, NaN, or values beyond [-1, 1].
            AssertionError: the episode is over.
        """
        batch = action[None] if isinstance(action, torch.Tensor) else np.asarray(action)[None]
        if self.batch.finished:
            raise AssertionError("the episode is over; call reset() to start another one")
        observation, reward, terminated, truncated, info = self.batch.step(batch)
        if self.batch.tensors:
            return _first(observation), reward[0], terminated[0], truncated[0], _first_info(info)
        return (
            _first(observation),
            float(reward[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            _first_info(info),
        )

    def save_state(self) -> SavedState:
        """The whole episode as a value that later steps leave alone, random streams included."""
        return self.batch.save_state()

    def restore_state(self, state: SavedState) -> None:
        """Inverse of `save_state`: the same actions then give the same bits."""
        if self._np_random is None:
            self._np_random, self._np_random_seed = seeding.np_random()
        self.batch.np_random = (self._np_random,)
        self.batch.restore_state(state)

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """The current frame, (H, W, 3) uint8, with `render_mode="rgb_array"`."""
        frames = self.batch.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        """Close the batch of one; closing twice is allowed."""
        self.batch.close()


def _first(observation: dict[str, Any]) -> dict[str, Any]:
    return {key: value[0] for key, value in observation.items()}


class Judged(float):
    """A judged probability, or NaN, which equals itself here: Gymnasium's checker compares infos of two runs by ==."""

    def __eq__(self, other: object) -> bool:
        return float(self) == other or (math.isnan(self) and isinstance(other, float) and math.isnan(other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = float.__hash__

    def __reduce__(self) -> tuple[type[Judged], tuple[float]]:
        return Judged, (float(self),)


def _first_info(info: dict[str, Any]) -> dict[str, Any]:
    first: dict[str, Any] = {}
    for key, value in info.items():
        if not key.startswith("_") and info[f"_{key}"][0]:
            item = value[0]
            item = item.item() if isinstance(item, np.generic) else item
            first[key] = Judged(item) if key == "p_success" else item
    return first
