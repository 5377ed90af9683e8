"""The single environment, implemented as a view of a batch of one slot.

Example::

    class MineEnv(BatchOfOne):
        def __init__(self, **settings):
            super().__init__(MineVectorEnv(1, autoreset_mode="Disabled", **settings))
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from numpy.typing import NDArray

from worldgym.imagination.batched_env import EpisodeOverError
from worldgym.imagination.settings import limited_spec


class BatchOfOne(gym.Env[dict[str, Any], Any]):
    """The single environment: a `BatchedEnv` of one slot, with autoreset disabled.

    Args:
        batch: the batch.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 5}
    nan_keys: tuple[str, ...] = ()  # info entries that may be NaN
    _spec: Any = None

    def __init__(self, batch: Any) -> None:
        self.batch = batch
        self.render_mode = batch.render_mode
        self.metadata = {k: v for k, v in batch.metadata.items() if k != "autoreset_mode"}
        self.observation_space, self.action_space = batch.single_observation_space, batch.single_action_space

    @property
    def specs(self) -> Any:
        """Cameras, state fields and actions of the batch; None if it has no specs."""
        return getattr(self.batch, "specs", None)

    @property  # type: ignore[override]
    def spec(self) -> Any:
        """The spec that `gym.make` used, with the step limit in force."""
        return self._spec

    @spec.setter
    def spec(self, value: Any) -> None:
        self._spec = None if value is None else limited_spec(value, self.batch.horizon, self.batch.chunk)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode; options are those of the batch, for one slot."""
        if seed is None:
            self._share_stream()
        observation, info = self.batch.reset(seed=seed, options=options)
        if seed is not None:
            (self._np_random,), (self._np_random_seed,) = self.batch.np_random, self.batch.np_random_seed
        return _first(observation), self._first_info(info)

    def _share_stream(self) -> None:
        """Share one random generator between this environment and its batch."""
        if self._np_random is None:
            self._np_random, self._np_random_seed = seeding.np_random()
        self.batch.np_random = (self._np_random,)

    def step(self, action: Any) -> tuple[dict[str, Any], Any, Any, Any, dict[str, Any]]:
        """Step by one action `(A,)`, or a chunk `(K, A)`, with values in [-1, 1].

        Raises:
            ValueError: wrong shape, NaN, or values beyond [-1, 1].
            EpisodeOverError: the episode is over.
        """
        batch = action[None] if hasattr(action, "detach") else np.asarray(action)[None]
        if self.batch.finished:
            raise EpisodeOverError("the episode is over; call reset() to start another one")
        observation, reward, terminated, truncated, info = self.batch.step(batch)
        first, first_info = _first(observation), self._first_info(info)
        if self.batch.tensors:
            return first, reward[0], terminated[0], truncated[0], first_info
        return first, float(reward[0]), bool(terminated[0]), bool(truncated[0]), first_info

    def _first_info(self, info: dict[str, Any]) -> dict[str, Any]:
        first: dict[str, Any] = {}
        for key, value in info.items():
            if not key.startswith("_") and info[f"_{key}"][0]:
                item = value[0]
                item = item.item() if isinstance(item, np.generic) else item
                first[key] = EqualNaN(item) if key in self.nan_keys else item
        return first

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """The current frame, (H, W, 3) uint8, with `render_mode="rgb_array"`."""
        frames = self.batch.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        """Close the batch of one; closing twice is allowed."""
        self.batch.close()


class EqualNaN(float):
    """A float whose NaN equals NaN: Gymnasium's checker compares the infos of two runs by ==."""

    def __eq__(self, other: object) -> bool:
        return float(self) == other or (math.isnan(self) and isinstance(other, float) and math.isnan(other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = float.__hash__

    def __reduce__(self) -> tuple[type[EqualNaN], tuple[float]]:
        return EqualNaN, (float(self),)


def _first(observation: dict[str, Any]) -> dict[str, Any]:
    return {key: value[0] for key, value in observation.items()}
