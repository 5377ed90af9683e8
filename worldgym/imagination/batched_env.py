"""Common part of batched Gymnasium environments: resets, seeds, autoreset, info masks, final observations.

Imagined environments and simulators differ in how a slot starts and what a step does. Everything else that Gymnasium
requires of a vector environment is implemented here. A simulator derives from `slot_env.SlotVectorEnv`, which has an
even smaller interface.

Example::

    class Mine(BatchedEnv):
        def _start(self, rows, options, seeds): ...     # begin episodes in these slots, return their info
        def _advance(self, actions, moving): ...        # step the slots `moving`, return a BatchStep
        def _observation(self): ...                     # current observation of all slots
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from worldgym.imagination.checks import check_actions, check_mask
from worldgym.imagination.settings import horizon_of, limited_spec, whole

Flags = NDArray[np.bool_]
Rows = NDArray[np.int64]
Column = tuple[str, Any, Flags]
"""An info entry: its key, one value per slot, and the mask of slots that have it."""
Seed = int | Sequence[int | None] | None


class EpisodeOverError(AssertionError, ValueError):
    """An episode that is over was stepped while autoreset is disabled."""


class BatchStep(NamedTuple):
    """Result of a step: `reward (N,)` float64, `terminated (N,)` and `truncated (N,)` bool, info entries."""

    reward: NDArray[np.float64]
    terminated: Flags
    truncated: Flags
    columns: list[Column]


class BatchedEnv(VectorEnv[Any, Any, Any], ABC):
    """N slots that start, step and end independently.

    Slot i of `reset(seed=s)` is seeded with s + i for any N.

    Args:
        num_envs: number of slots.
        observation_space: space of one slot.
        action_space: space of one slot.
        horizon: frames until truncation.
        chunk: None, or K frames per step.
        render_mode: None or "rgb_array".
        autoreset_mode: one of Gymnasium's three, or its value ("NextStep", "SameStep", "Disabled").
        fps: frames per second, for videos.

    Raises:
        ValueError: an impossible setting.
    """

    metadata: dict[str, Any] = {
        "render_modes": ["rgb_array"],
        "render_fps": 5,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }
    tensors = False  # True: observations are torch tensors, which are not split into final observations
    single_observation_space: spaces.Dict
    _spec: Any = None

    def __init__(
        self,
        num_envs: int,
        observation_space: spaces.Dict,
        action_space: spaces.Box,
        *,
        horizon: int,
        chunk: int | None = None,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        fps: float | None = None,
    ) -> None:
        check_settings(num_envs, chunk, render_mode)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.horizon, self.chunk, self.render_mode = horizon_of(horizon, None, chunk), chunk, render_mode
        rate = (type(self).metadata["render_fps"] if fps is None else fps) / (chunk or 1)
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode, "render_fps": rate}
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self._set_size(num_envs)
        self._over, self._started = np.zeros(num_envs, np.bool_), False
        self._streams: list[np.random.Generator | None] = [None] * num_envs
        self._seeds = [-1] * num_envs

    def _set_size(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    # -- methods that an environment implements ---------------------------------------------------------------------
    @abstractmethod
    def _start(self, rows: Rows, options: dict[str, Any], seeds: Sequence[int | None]) -> list[Column]:
        """Begin an episode in the slots `rows`, whose generators are already seeded; `seeds` has one entry per row."""

    @abstractmethod
    def _advance(self, actions: Any, moving: Flags) -> BatchStep:
        """Step the slots `moving` by `actions (N, ...)`; leave the others unchanged."""

    @abstractmethod
    def _observation(self) -> dict[str, Any]:
        """Current observation of every slot; later steps must not change it."""

    def _convert_outcome(self, reward: Any, terminated: Any, truncated: Any) -> tuple[Any, Any, Any]:
        """Convert rewards and end flags to the returned type."""
        return reward, terminated, truncated

    # -- Gymnasium -------------------------------------------------------------------------------------------------
    def reset(  # type: ignore[override]
        self, *, seed: Seed = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start episodes.

        Args:
            seed: slot i is seeded with `seed + i`, or `seed[i]`; None continues the present generators.
            options: options of the environment, and `reset_mask`: (num_envs,) bool, the slots to reset.

        Raises:
            ValueError: an unknown option, one that does not fit, or another number of seeds.
        """
        options = dict(options or {})
        mask = check_mask(options.pop("reset_mask", None), self.num_envs)
        if not self.started and not mask.all():
            raise ValueError("reset_mask before the first reset; call reset() without a mask once")
        if seed is None or isinstance(seed, (int, np.integer)):
            seeds: Sequence[int | None] = [
                None if seed is None else int(seed) + i for i in range(self.num_envs)
            ]
        else:
            seeds = seed
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds; expected {self.num_envs}, one per environment, or an int")
        for i, chosen in enumerate(seeds):
            if chosen is not None and mask[i]:
                self._seed_slot(i, int(chosen))
        infos: dict[str, Any] = {}
        for key, values, present in self._begin(np.flatnonzero(mask), options, seeds):
            put_info(infos, key, values, present)
        return self._observation(), infos

    def _begin(
        self, rows: Rows, options: dict[str, Any], seeds: Sequence[int | None] | None = None
    ) -> list[Column]:
        columns = self._start(rows, options, [None if seeds is None else seeds[i] for i in rows])
        self._started = True
        self.over[rows] = False
        return columns

    def step(self, actions: Any) -> tuple[dict[str, Any], Any, Any, Any, dict[str, Any]]:
        """Step every slot by one action, or by one chunk of K.

        Returns:
            Observation, reward (num_envs,) float64, terminated and truncated (num_envs,) bool, info.

        Raises:
            RuntimeError: there was no reset.
            ValueError: actions of the wrong shape, NaN, or beyond [-1, 1].
            EpisodeOverError: with autoreset disabled, an episode that is over is stepped.
        """
        if not self.started:
            raise RuntimeError("step before reset; call reset(seed=...) first")
        waiting = self.over.copy()
        if self.autoreset_mode is AutoresetMode.DISABLED and waiting.any():
            raise EpisodeOverError(
                f"environments {np.flatnonzero(waiting).tolist()} are over and autoreset is disabled; call"
                " reset(options={'reset_mask': mask}) first"
            )
        actions = check_actions(actions, self.action_space.shape or (), ~waiting)
        nothing = np.zeros(self.num_envs, np.bool_)
        result = BatchStep(np.zeros(self.num_envs), nothing, nothing.copy(), [])
        if not waiting.all():
            result = self._advance(actions, ~waiting)
        columns = list(result.columns)
        if waiting.any():  # NEXT_STEP: their action was ignored; this step returns their first observation
            columns += self._begin(np.flatnonzero(waiting), {})
        over = result.terminated | result.truncated
        infos: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP and over.any():
            self._final(infos, columns, over)
            columns = [(key, values, present & ~over) for key, values, present in columns]
            columns += self._begin(np.flatnonzero(over), {})
        else:
            self.over[:] = over
        for key, values, present in columns:
            put_info(infos, key, values, present)
        return self._observation(), *self._convert_outcome(result.reward, result.terminated, result.truncated), infos

    def _final(self, infos: dict[str, Any], columns: list[Column], over: Flags) -> None:
        """SAME_STEP: final observation and info of ended episodes, in the format of SyncVectorEnv."""
        last = self._observation()
        final_info: dict[str, Any] = {}
        for key, values, present in columns:
            put_info(final_info, key, values, present & over)
        if self.tensors:
            infos["final_obs"] = last
        else:
            infos["final_obs"] = np.full(self.num_envs, None, object)
            for i in np.flatnonzero(over):
                infos["final_obs"][i] = {key: value[i] for key, value in last.items()}
        infos["final_info"] = final_info
        infos["_final_obs"], infos["_final_info"] = over.copy(), over.copy()

    # -- reading ---------------------------------------------------------------------------------------------------
    @property
    def over(self) -> Flags:
        """(num_envs,) bool, episodes that have ended and wait for a reset; callers may write to it."""
        return self._over

    @property
    def started(self) -> bool:
        """Whether there was a reset."""
        return self._started

    @property
    def finished(self) -> bool:
        """Whether every episode is over and waits for a reset."""
        return self.started and bool(self.over.all())

    @property  # type: ignore[override]
    def spec(self) -> Any:
        """The spec that `gym.make_vec` used, with the step limit in force."""
        return self._spec

    @spec.setter
    def spec(self, value: Any) -> None:
        self._spec = limited_spec(value, self.horizon, self.chunk)

    # -- random streams --------------------------------------------------------------------------------------------
    def _seed_slot(self, i: int, seed: int | None) -> None:
        self._streams[i], self._seeds[i] = seeding.np_random(seed)

    @property  # type: ignore[override]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """One generator per slot, as in `SyncVectorEnv`; all randomness of a slot is drawn from it."""
        for i, stream in enumerate(self._streams):
            if stream is None:
                self._seed_slot(i, None)
        return tuple(stream for stream in self._streams if stream is not None)

    @np_random.setter  # type: ignore[override]
    def np_random(self, streams: Sequence[np.random.Generator]) -> None:
        self._streams, self._seeds = list(streams), [-1] * self.num_envs

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seed of each slot's generator, -1 where it is unknown."""
        return tuple(self._seeds) if self.np_random else ()


def check_settings(num_envs: int, chunk: int | None, render_mode: str | None) -> None:
    """Check the settings that every batched environment has.

    Raises:
        ValueError: one of them is impossible.
    """
    whole("num_envs", num_envs)
    if chunk is not None:
        whole("chunk", chunk, "None or ")
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"render_mode={render_mode!r}; expected None or 'rgb_array'")


def put_info(infos: dict[str, Any], key: str, values: Any, mask: Flags) -> None:
    """Write `values[mask]` under `key` and the mask under `_key`, as Gymnasium's own vector environments do.

    Args:
        infos: the batched info dictionary, changed in place.
        key: name of the entry; absent while no slot has it.
        values: one value per slot: an array or tensor whose first dimension is the number of slots.
        mask: (num_envs,) bool, the slots that have this entry.
    """
    if not mask.any():
        return
    if not isinstance(values, np.ndarray):  # a tensor, under tensors=True
        if key in infos:
            import torch

            where = torch.as_tensor(mask, device=values.device).view(-1, *[1] * (values.dim() - 1))
            values, mask = torch.where(where, values, infos[key]), mask | infos[f"_{key}"]
        infos[key], infos[f"_{key}"] = values, mask.copy()
        return
    if key not in infos:
        blank = np.full(values.shape, None, object) if values.dtype == object else np.zeros_like(values)
        infos[key], infos[f"_{key}"] = blank, np.zeros(len(mask), np.bool_)
    infos[key][mask] = values[mask]
    infos[f"_{key}"] = infos[f"_{key}"] | mask
