"""Adapter for Stable-Baselines3: its algorithms run on a batch of environments unmodified.

SB3 does not accept a Gymnasium `VectorEnv`, and its own `make_vec_env` steps environments one by one, with one forward
pass of the world model each. This adapter passes it the batch. SB3 expects the observation after an episode end to be
the first of the next episode (Gymnasium's SAME_STEP), the final observation in `terminal_observation`, and the
truncation flag in `TimeLimit.truncated`, from which it bootstraps. With another autoreset mode it would run without an
error but be wrong, so other modes are refused. Episode statistics are recorded here; no `Monitor` is needed.

An episode whose judgement failed is truncated with `info["invalid"]`. SB3 has no such flag and trains on it as on an
episode that reached its time limit, with a reward of 0.

Example::

    from stable_baselines3 import PPO
    from worldgym.imagination.adapters.sb3 import make_sb3_vec_env
    envs = make_sb3_vec_env("worldgym/Imagined-v0", num_envs=16, reward_kind="difference")
    PPO("MultiInputPolicy", envs, n_steps=40).learn(20_000)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from worldgym.imagination.adapters.action_repeat import ActionRepeat
from worldgym.imagination.adapters.features import ImageLanguageFeatures
from worldgym.utils.optional import require

require("stable_baselines3", extra="sb3")

from stable_baselines3.common.monitor import Monitor  # noqa: E402
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor  # noqa: E402
from stable_baselines3.common.vec_env import VecEnv  # noqa: E402


class ImageLanguageExtractor(BaseFeaturesExtractor):
    """Features of image, instruction and state for SB3.

    Pass it as `policy_kwargs={"features_extractor_class": ImageLanguageExtractor}`.

    Args:
        observation_space: SB3's space, whose images have channels first.
        features: a class with `dim`, constructed with the space; `rewards.judge_features.JudgeFeatures` is a trained
            encoder.
        **settings: settings of that class.
    """

    def __init__(
        self,
        observation_space: gym.spaces.Dict,
        features: Callable[..., Any] = ImageLanguageFeatures,
        **settings: Any,
    ) -> None:
        made = features(observation_space, **settings)
        super().__init__(observation_space, made.dim)
        self.features = made

    def forward(self, observations: Any) -> Any:
        """Features `(B, dim)` of SB3's observations; images are in [0, 1]."""
        return self.features(observations)


def make_sb3_vec_env(
    env_id: str = "worldgym/Imagined-v0",
    num_envs: int = 8,
    *,
    action_repeat: bool = False,
    held: bool = False,
    wrap: Callable[[VectorEnv], VectorEnv] | None = None,
    seed: int | None = None,
    **settings: Any,
) -> SB3VecEnv:
    """A registered batch of environments for SB3: SAME_STEP autoreset, instructions as embeddings.

    Args:
        env_id: a Gymnasium id with a vector entry point, such as `worldgym/Imagined-v0` (with `checkpoint`; by default
            the bundled one) or the id of a simulator.
        num_envs: number of slots.
        action_repeat: one action for all frames of a `chunk`, see `ActionRepeat`.
        held: earlier name of `action_repeat`.
        wrap: outermost wrapper of the batch, such as `rewards.judge_features.JudgeFeatureWrapper`.
        seed: slot i is seeded with `seed + i` at the first reset.
        **settings: settings of the environment, see `WorldModelVectorEnv`.

    Raises:
        ValueError: settings that SB3 cannot work with.
    """
    import worldgym  # noqa: F401  (registers the ids)

    settings = {"autoreset_mode": "SameStep", "instruction": "embedding", **settings}
    envs = gym.make_vec(env_id, num_envs=num_envs, vectorization_mode="vector_entry_point", **settings)
    envs = ActionRepeat(envs) if action_repeat or held else envs
    made = SB3VecEnv(envs if wrap is None else wrap(envs))
    if seed is not None:
        made.seed(seed)
    return made


class SB3VecEnv(VecEnv):
    """A Gymnasium vector environment as an SB3 `VecEnv`.

    Args:
        envs: in autoreset mode SAME_STEP, with numeric spaces only, returning NumPy arrays.

    Raises:
        ValueError: another mode, text instructions, or `tensors=True`; the message names the setting to pass instead.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        mode = (envs.metadata or {}).get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                f"autoreset mode is {getattr(mode, 'value', mode)!r}; Stable-Baselines3 needs "
                "gym.make_vec(..., autoreset_mode='SameStep')"
            )
        space = envs.single_observation_space
        words = [
            name for name, part in getattr(space, "spaces", {}).items() if isinstance(part, gym.spaces.Text)
        ]
        if words or isinstance(space, gym.spaces.Text):
            raise ValueError(
                f"observation {words} is text, and Stable-Baselines3 takes numbers only; make the environment with "
                "instruction='embedding'"
            )
        if getattr(envs.unwrapped, "tensors", False):
            raise ValueError(
                "the environment returns torch tensors and Stable-Baselines3 takes arrays; use tensors=False"
            )
        self.envs = envs
        self._actions: Any = None
        self._returned, self._length = np.zeros(envs.num_envs), np.zeros(envs.num_envs, np.int64)
        self._began = time.time()
        super().__init__(envs.num_envs, space, envs.single_action_space)
        self.metadata = dict(envs.metadata)  # VecVideoRecorder reads the frame rate from it

    # -- SB3's loop ------------------------------------------------------------------------------
    def reset(self) -> Any:
        """Start all episodes with the seeds and options set by `seed()` and `set_options()`."""
        options = _per_slot(self._options)
        seeds = None if all(seed is None for seed in self._seeds) else list(self._seeds)
        observation, info = self.envs.reset(seed=seeds, options=options)  # type: ignore[arg-type]
        self.reset_infos = _rows(info, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        self._returned[:], self._length[:] = 0, 0
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        """Store `actions (num_envs, ...)` for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> Any:
        """Return observation, reward (num_envs,) float32, done (num_envs,) bool, and one info dict per slot."""
        observation, reward, terminated, truncated, info = self.envs.step(self._actions)
        done = terminated | truncated
        self._returned += reward
        self._length += 1
        infos = _rows(info, self.num_envs)
        finals = _rows(info["final_info"], self.num_envs) if done.any() else infos
        for i in map(int, np.flatnonzero(done)):
            for name in ("final_obs", "final_info"):
                infos[i].pop(name, None)
            self.reset_infos[i] = infos[i]
            infos[i] = finals[i]
            infos[i]["terminal_observation"] = info["final_obs"][i]
            infos[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
            infos[i]["episode"] = {
                "r": round(float(self._returned[i]), 6),
                "l": int(self._length[i]),
                "t": round(time.time() - self._began, 6),
            }
            if "success_once" in infos[i]:
                infos[i]["is_success"] = bool(infos[i]["success_once"])
        self._returned[done], self._length[done] = 0, 0
        return observation, reward.astype(np.float32), done, infos

    def close(self) -> None:
        """Close the batch."""
        self.envs.close()

    # -- methods that SB3 expects of single environments -------------------------------------------
    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The batch's attribute, repeated for each slot."""
        return [getattr(self.envs.unwrapped, attr_name)] * len(self._chosen(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set the batch's attribute, for all slots at once.

        Raises:
            ValueError: only some slots are given; all slots share one environment.
        """
        if len(self._chosen(indices)) != self.num_envs:
            raise ValueError(f"set_attr({attr_name!r}) for some slots only: all slots are one batch; leave out indices")
        setattr(self.envs.unwrapped, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Call the batch's method once; a result with one value per slot is split, any other is given to every slot."""
        result = getattr(self.envs.unwrapped, method_name)(*args, **kwargs)
        shared = isinstance(result, list | tuple | np.ndarray) and len(result) == self.num_envs
        return [result[i] if shared else result for i in self._chosen(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Any = None) -> list[bool]:
        """True for `Monitor`, whose episode statistics are already in the infos; else False."""
        return [issubclass(wrapper_class, Monitor)] * len(self._chosen(indices))

    def get_images(self) -> Sequence[np.ndarray | None]:
        """The current frame of each slot, for `render()` and video recorders."""
        frames: Any = self.envs.render()
        return [None] * self.num_envs if frames is None else list(frames)

    def _chosen(self, indices: Any) -> list[int]:
        if indices is None:
            return list(range(self.num_envs))
        return list(indices) if isinstance(indices, Iterable) else [int(indices)]


def _rows(info: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """A vector environment's info as one dict per slot, each with the entries that its masks mark."""
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    for key, values in info.items():
        if key.startswith("_") or key in ("final_obs", "final_info"):
            continue
        present = info.get(f"_{key}", np.ones(count, np.bool_))
        for i in map(int, np.flatnonzero(present)):
            value = values[i]
            rows[i][key] = value.item() if isinstance(value, np.generic) else value
    return rows


def _per_slot(options: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Convert SB3's options, one dict per slot, to those of a vector environment, one list per key."""
    keys = {key: None for row in options for key in row}
    return {key: [row.get(key) for row in options] for key in keys} or None
