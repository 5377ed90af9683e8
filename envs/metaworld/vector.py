"""Meta-World as Gymnasium environments with instructions, fast pictures and action repeat.

Task Description
    A Sawyer arm with a two-finger gripper and one object: a puck, a drawer, a button, a door, a window, a faucet or a
    plate (Yu et al. 2019, arXiv 1910.10897). An English instruction names the task.
Randomizations
    Positions of object and goal, and the sentence; fully determined by (seed, task, split).
Success Conditions
    Those of Meta-World, in the state after an action.

Example::

    envs = MetaWorldVectorEnv(4, task="drawer_open", image_size=64)
    obs, info = envs.reset(seed=0)
    obs, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from envs.metaworld.physics import Physics
from envs.metaworld.specs import CAMERAS, HORIZON, STATE_HIGH, STATE_LOW, metaworld_specs
from envs.metaworld.tasks import DEFAULT_TASKS, SPLITS, UNSEEN_TASKS, find_task
from envs.metaworld.world import Turn, World, shared_world
from envs.sizes import ImageSize, height_width
from worldgym.errors import ConfigError
from worldgym.imagination.batch_of_one import BatchOfOne
from worldgym.imagination.slot_env import SlotVectorEnv, Status
from worldgym.specs import Camera


class MetaWorldVectorEnv(SlotVectorEnv):
    """N arms in one process.

    Args:
        num_envs: number of slots, i.e. parallel environments.
        domain: `"real"` is stock Meta-World, `"soft"` the misspecified software simulator.
        gap: misspecification of the dynamics of `"soft"`, in [0, 1].
        looks: misspecification of its appearance, in [0, 1]; None for the value of `gap`.
        task: a task of the suite, or None for a random one of the default tasks per episode.
        split: split of start states and instructions; `unseen_task` draws among tasks that are not recorded.
        cameras: `"front"`, `"wrist"` or both; observations of the first one have the key `image`, of a second one
            `image_<name>`.
        image_size: size of the front camera in pixels, 16..256, one number or (height, width).
        wrist_size: size of the wrist camera.
        **settings: horizon (steps of 50 ms), max_episode_steps, chunk, flat_actions, terminate_on_success, render_mode,
            autoreset_mode, instruction as in `SlotVectorEnv`.

    Raises:
        ConfigError: an unknown task, split, domain or camera, or a value out of range.
        DependencyError: the package metaworld is not installed.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        domain: Literal["real", "soft"] = "real",
        gap: float = 0.0,
        looks: float | None = None,
        task: str | None = None,
        split: str = "seen",
        cameras: Sequence[str] = ("front",),
        image_size: ImageSize = CAMERAS["front"],
        wrist_size: ImageSize = CAMERAS["wrist"],
        horizon: int | None = None,
        **settings: Any,
    ) -> None:
        if domain not in ("real", "soft"):
            raise ConfigError(f"unknown domain {domain!r}; expected 'real' or 'soft'")
        if domain == "real" and (gap != 0.0 or looks is not None):
            raise ConfigError(f"gap={gap}, looks={looks} need domain='soft'; domain='real' has no gap")
        if task is not None:
            find_task(task)
        if split not in SPLITS:
            raise ConfigError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
        if horizon is None and settings.get("max_episode_steps") is None:
            horizon = HORIZON
        super().__init__(
            metaworld_specs(cameras, image_size, wrist_size),
            num_envs,
            domain=domain,
            horizon=horizon,
            state_low=STATE_LOW,
            state_high=STATE_HIGH,
            **settings,
        )
        self.gap, self.looks, self.task, self.split = gap, looks, task, split
        self.physics, self.front_size = Physics().softened(gap, looks), height_width(image_size)
        self._turns = [Turn() for _ in range(num_envs)]
        self._status: list[Status] = [Status(False, 0.0, np.zeros(4, np.float32), "", "")] * num_envs

    # -- one slot ----------------------------------------------------------------------------------------------------
    def start_slot(self, i: int, seed: int | None, options: dict[str, Any]) -> None:
        """Start an episode; options `task`, `split` and `instruction` replace those of the environment."""
        rng, split = self.np_random[i], options.get("split") or self.split
        if split not in SPLITS:
            raise ConfigError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
        drawn = UNSEEN_TASKS if split == "unseen_task" else DEFAULT_TASKS
        seed = int(rng.integers(2**31)) if seed is None else int(seed)
        task = options.get("task") or self.task or drawn[int(rng.integers(len(drawn)))]
        sentence = options.get("instruction") or find_task(task).sentence(seed, split)
        self._turns[i] = turn = Turn(shared_world(task, self.physics))
        with turn.take(fresh=True) as world:
            world.start(seed)
            self._note(i, world, str(sentence), task)

    def _note(self, i: int, world: World, instruction: str, task: str) -> None:
        self._status[i] = Status(world.success, world.progress, world.state(), instruction, task)

    def step_slot(self, i: int, action: NDArray[np.float32]) -> None:
        """Advance slot `i` by 50 ms with `action (4,)`."""
        with self._turns[i].take() as world:
            world.step(action)
            self._note(i, world, self._status[i].instruction, self._status[i].task)

    def status_slot(self, i: int) -> Status:
        """Success, progress, state (4,), instruction and task of slot `i`."""
        return self._status[i]

    def draw_slot(self, i: int, camera: Camera) -> NDArray[np.uint8]:
        """Render `camera` of slot `i`, `(height, width, 3)` uint8."""
        with self._turns[i].take() as world:
            return world.draw(camera.name, camera.size)

    # -- reading -----------------------------------------------------------------------------------------------------
    def turn(self, i: int = 0) -> Turn:
        """Access to the simulation of slot `i` and its true state, for experts and audits only."""
        return self._turns[i]

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:  # type: ignore[override]
        """Render one `(256, 256, 3)` uint8 frame of the front camera per slot; None without a `render_mode`."""
        if self.render_mode is None:
            return None
        frames = []
        for turn in self._turns:
            with turn.take() as world:
                frames.append(world.draw("front", (256, 256)))
        return tuple(frames)


class MetaWorldEnv(BatchOfOne):
    """A single environment. Arguments are those of `MetaWorldVectorEnv`."""

    batch: MetaWorldVectorEnv

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(MetaWorldVectorEnv(1, autoreset_mode=AutoresetMode.DISABLED, **kwargs))

    @property
    def instruction(self) -> str:
        """The instruction of this episode."""
        return self.batch.status_slot(0).instruction
