"""A simulator as a batched Gymnasium environment; a suite implements start, step, status and rendering of one slot.

Task Description
    The simulator's tasks. Success and progress come from the simulator and are ground truth.
Randomizations
    Slot i of `reset(seed=s)` depends only on s + i.
Success Conditions
    `Status.success`. The reward is 1 at the first success of an episode.

Example::

    class Mine(SlotVectorEnv):
        def start_slot(self, i, seed, options): self.sims[i].load(seed, options.get("task"))
        def step_slot(self, i, action): self.sims[i].step(action)
        def status_slot(self, i): return Status(success, progress, state, instruction, task)
        def draw_slot(self, i, camera): return self.sims[i].draw(camera.name, camera.size)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from worldgym.imagination.batched_env import BatchedEnv, BatchStep, Column, Flags, Rows, check_settings
from worldgym.imagination.checks import check_picture
from worldgym.imagination.observations import (
    Bound,
    InstructionMode,
    action_space,
    instruction_space,
    observation_space,
)
from worldgym.imagination.settings import horizon_of
from worldgym.specs import Camera, Specs


class Status(NamedTuple):
    """Current status of a slot.

    Args:
        success: whether the instruction is fulfilled.
        progress: in [0, 1].
        state: `(S,)` float32, proprioception in the units of the suite's spec.
        instruction: instruction of the episode.
        task: name of the task.
    """

    success: bool
    progress: float
    state: NDArray[np.float32]
    instruction: str
    task: str


class SlotVectorEnv(BatchedEnv):
    """N slots of a simulator, stepped one after another.

    Observation: `Dict(image, image_<name> of each further camera, instruction, state)`. Info has the same entries after
    a reset and after a step: `success`, `progress`, `task`, `instruction_text`, and of the current episode
    `success_once`, `success_at_end`, `return`, `episode_len`. With a chunk it also has an entry for every step of the
    chunk, where the last one is repeated after an episode end: `path` (num_envs, K, S), the proprioception,
    `path_success` (num_envs, K) and `path_progress`.

    Args:
        specs: cameras with their sizes, state fields, meaning of actions.
        num_envs: number of slots.
        domain: name of the domain, as in `Episode.domain`.
        horizon: frames until truncation; 40 when None.
        max_episode_steps: the same in steps of one chunk, as in Gymnasium's vector environments.
        chunk: None for actions `(A,)`, K for `(K, A)` stepped as K frames.
        flat_actions: True takes a chunk as one vector `(K A,)`, for libraries without matrix actions.
        terminate_on_success: False keeps an episode going after success.
        render_mode: None or "rgb_array".
        autoreset_mode: one of Gymnasium's three.
        instruction: "text", or "embedding" for libraries that take numbers only.
        instructions: sentences that will occur and may need characters outside the spec's alphabet.
        state_low: lower bound of the state, a number or S numbers; None for that of the suite's spec.
        state_high: upper bound of the state, likewise.

    Raises:
        ValueError: an impossible setting.
    """

    option_names: tuple[str, ...] = ("task", "split", "instruction")
    """Options of `reset` that `start_slot` accepts."""

    def __init__(
        self,
        specs: Specs,
        num_envs: int = 1,
        *,
        domain: str = "real",
        horizon: int | None = None,
        max_episode_steps: int | None = None,
        chunk: int | None = None,
        flat_actions: bool = False,
        terminate_on_success: bool = True,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        instruction: InstructionMode = "text",
        instructions: Sequence[str] = (),
        state_low: Bound = -np.inf,
        state_high: Bound = np.inf,
    ) -> None:
        check_settings(num_envs, chunk, render_mode)
        if not isinstance(terminate_on_success, bool | np.bool_):
            raise ValueError(f"terminate_on_success={terminate_on_success!r}; expected True or False")
        if specs.action is None:
            raise ValueError("these specs have no action spec; give Specs(observation, action)")
        words: spaces.Text | None = None
        if instructions:
            words = instruction_space(
                instructions, specs.observation.alphabet, specs.observation.max_instruction
            )
        super().__init__(
            num_envs,
            observation_space(specs.observation, instruction, state_low, state_high, words),
            action_space(specs.action.dim, chunk, flat_actions),
            horizon=horizon_of(horizon, max_episode_steps, chunk),
            chunk=chunk,
            render_mode=render_mode,
            autoreset_mode=autoreset_mode,
            fps=specs.action.hz,
        )
        self.specs, self.domain, self.instruction_mode = specs, domain, instruction
        self.terminate_on_success = terminate_on_success
        self._steps, self._returns = np.zeros(num_envs, np.int64), np.zeros(num_envs)
        self._success_once, self._stale = np.zeros(num_envs, np.bool_), np.ones(num_envs, np.bool_)
        self._frames = {
            camera.name: np.zeros((num_envs, *camera.size, 3), np.uint8)
            for camera in specs.observation.cameras
        }
        self.interactions = 0  # total number of environment steps, the cost of using a real robot

    # -- methods that a suite implements ---------------------------------------------------------------------------
    @abstractmethod
    def start_slot(self, i: int, seed: int | None, options: dict[str, Any]) -> None:
        """Begin an episode in slot `i`.

        Args:
            i: the slot; its generator is `np_random[i]`, freshly seeded with `seed` if there is one.
            seed: the seed, or None: draw random values from the generator.
            options: the options of this slot, keys among `option_names`.
        """

    @abstractmethod
    def step_slot(self, i: int, action: NDArray[np.float32]) -> None:
        """Step slot `i` by one action `(A,)` in [-1, 1]."""

    @abstractmethod
    def status_slot(self, i: int) -> Status:
        """Current status of slot `i`."""

    @abstractmethod
    def draw_slot(self, i: int, camera: Camera) -> NDArray[np.uint8]:
        """Current image of a camera in slot `i`, `(H, W, 3)` uint8 of the camera's size."""

    # -- starting and stepping -------------------------------------------------------------------------------------
    def _start(self, rows: Rows, options: dict[str, Any], seeds: Sequence[int | None]) -> list[Column]:
        if unknown := set(options) - set(self.option_names):
            raise ValueError(
                f"unknown reset options {sorted(unknown)}; known: {', '.join((*self.option_names, 'reset_mask'))}"
            )
        streams = self.np_random  # every slot has a generator from here on
        assert len(streams) == self.num_envs
        for i, seed in zip(map(int, rows), seeds, strict=True):
            self._steps[i], self._returns[i], self._success_once[i], self._stale[i] = 0, 0.0, False, True
            self.start_slot(i, seed, {key: _of_slot(value, i) for key, value in options.items()})
        present = np.zeros(self.num_envs, np.bool_)
        present[rows] = True
        return self._columns(present, self._step_status(present))

    def _advance(self, actions: Any, moving: Flags) -> BatchStep:
        if hasattr(actions, "cpu"):
            actions = actions.cpu().numpy()
        assert self.specs.action is not None
        chunks = actions.reshape(self.num_envs, -1, self.specs.action.dim)
        reward = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, np.bool_), np.zeros(self.num_envs, np.bool_)
        path = self._step_status(moving)
        for i in map(int, np.flatnonzero(moving)):
            self._stale[i] = True
            for t, action in enumerate(chunks[i]):
                self.step_slot(i, action)
                self.interactions += 1
                self._steps[i] += 1
                now = self.status_slot(i)
                if path:
                    path["path"][i, t:] = now.state
                    path["path_success"][i, t:], path["path_progress"][i, t:] = now.success, now.progress
                reward[i] += float(now.success and not self._success_once[i])
                self._success_once[i] |= now.success
                terminated[i] = now.success and self.terminate_on_success
                truncated[i] = self._steps[i] >= self.horizon and not terminated[i]
                if terminated[i] or truncated[i]:
                    break
        self._returns += reward
        return BatchStep(reward, terminated, truncated, self._columns(moving, path))

    def _step_status(self, present: Flags) -> dict[str, NDArray[Any]]:
        """Current status of the slots, repeated for the steps of a chunk; empty without a chunk."""
        if self.chunk is None:
            return {}
        shape, size = (self.num_envs, self.chunk), self.specs.observation.state_dim
        path = {
            "path": np.zeros((*shape, size), np.float32),
            "path_success": np.zeros(shape, np.bool_),
            "path_progress": np.zeros(shape, np.float32),
        }
        for i in map(int, np.flatnonzero(present)):
            now = self.status_slot(i)
            path["path"][i], path["path_success"][i], path["path_progress"][i] = (
                now.state,
                now.success,
                now.progress,
            )
        return path

    def _columns(self, present: Flags, path: dict[str, NDArray[Any]]) -> list[Column]:
        """Info entries of the slots `present`, the same ones after a reset and after a step."""
        n = self.num_envs
        success, progress = np.zeros(n, np.bool_), np.zeros(n, np.float32)
        task, words = np.full(n, "", object), np.full(n, "", object)
        for i in map(int, np.flatnonzero(present)):
            now = self.status_slot(i)
            success[i], progress[i], task[i], words[i] = now.success, now.progress, now.task, now.instruction
        entries = {
            "success": success,
            "progress": progress,
            "task": task,
            "instruction_text": words,
            "success_once": self._success_once.copy(),
            "success_at_end": success.copy(),
            "return": self._returns.copy(),
            "episode_len": self._steps.copy(),
            **path,
        }
        return [(key, values, present) for key, values in entries.items()]

    # -- reading ---------------------------------------------------------------------------------------------------
    def _observation(self) -> dict[str, Any]:
        spec = self.specs.observation
        for camera in spec.cameras:
            for i in map(int, np.flatnonzero(self._stale)):
                picture = check_picture(self.draw_slot(i, camera), camera, type(self).__name__)
                self._frames[camera.name][i] = picture
        self._stale[:] = False
        standing = [self.status_slot(i) for i in range(self.num_envs)]
        words: Any = tuple(now.instruction for now in standing)
        if self.instruction_mode == "embedding":
            from worldgym.text import embed

            words = embed(words)
        seen = {spec.camera_keys[name]: frames.copy() for name, frames in self._frames.items()}
        seen["instruction"] = words
        return {**seen, "state": np.stack([now.state for now in standing])} if spec.state_dim else seen

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:  # type: ignore[override]
        """Current image of the main camera in each slot, (H, W, 3) uint8, with `render_mode="rgb_array"`."""
        if self.render_mode is None:
            return None
        camera = self.specs.observation.main
        return tuple(self.draw_slot(i, camera) for i in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """There is nothing to release."""


def _of_slot(value: Any, i: int) -> Any:
    """Value of an option for slot `i`: lists, tuples and object arrays hold one entry per slot."""
    return (
        value[i]
        if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim)
        else value
    )
