"""One task of Meta-World as a simulation that several environments share.

An environment of Meta-World takes 30 MB and a tenth of a second to make, and writes start states into its model. Here
each task has one such environment per process and physics, and slots take turns in it (`Turn`). What differs between
episodes is saved (`Snapshot`) when another slot takes its turn.

Rendering uses a copy of the model with thinned meshes, without shadows, in which goals are visible.

Example::

    world = World(find_task("drawer_open"), Physics())
    one, other = Turn(world), Turn(world)
    with one.take(fresh=True):
        world.start(seed=3)
    with other.take(fresh=True):
        world.start(seed=4)
    with one.take():                                    # continues the first episode
        world.step(np.array([0, 1, 0, -1], np.float32))
        world.success, world.progress, world.draw("front", (64, 64)).shape
"""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.engine import mujoco
from envs.metaworld.physics import Physics
from envs.metaworld.specs import REPEAT
from envs.metaworld.tasks import TASKS, Task, find_task
from envs.render import draw
from envs.thin_meshes import thin_meshes
from worldgym.errors import ConfigError, DependencyError

_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
WRITTEN = ("body_pos", "body_quat", "site_pos", "geom_pos")
"""Arrays of the model into which Meta-World writes the start state."""
CELL = 0.02
MARKER, MARKER_SIZE = (0.1, 0.9, 0.1, 1.0), 0.03
PUCK = (0.15, 0.3, 0.95, 1.0)
AZIMUTH, ELEVATION, DISTANCE, LOOKAT = 150.0, -40.0, 0.95, (0.0, 0.67, 0.10)


@dataclass(frozen=True)
class Snapshot:
    """Everything that differs between two episodes of one task.

    Args:
        state: MuJoCo's integration state.
        model: the arrays `WRITTEN`.
        attributes: plain attributes of the environment.
        late: commands that are under way.
        observation: Meta-World's observation `(39,)`, for experts.
        success: whether the task is fulfilled.
        distance: metres between object and goal.
        start: the same at the start.
    """

    state: NDArray[np.float64]
    model: tuple[NDArray[np.float64], ...]
    attributes: dict[str, Any]
    late: tuple[NDArray[np.float64], ...]
    observation: NDArray[np.float64]
    success: bool
    distance: float
    start: float


class World:
    """The simulation of a task.

    Args:
        task: the task.
        physics: dynamics and appearance.

    Raises:
        DependencyError: the package metaworld is not installed.
    """

    def __init__(self, task: Task, physics: Physics) -> None:
        self.task, self.physics = task, physics
        self.env = make_environment(task.environment)
        self.model, self.data = self.env.model, self.env.data
        self._soften()
        self._pictures = picture_model(self.model, task, physics)
        self._assets = f"metaworld {task.environment} {physics}"
        self._front = mujoco.MjvCamera()
        self._front.type = mujoco.mjtCamera.mjCAMERA_FREE
        self._front.lookat[:] = LOOKAT
        self._front.azimuth, self._front.elevation = AZIMUTH + physics.azimuth, ELEVATION
        self._front.distance = DISTANCE
        self._wrist = int(self.model.camera("gripperPOV").id)
        angle = physics.rotation
        self._turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        self._late: tuple[NDArray[np.float64], ...] = ()
        self.observation = np.zeros(39)
        self.success, self.distance, self._start = False, 0.0, 1.0
        self.lock = threading.RLock()
        self.holder: Turn | None = None

    def _soften(self) -> None:
        p, m = self.physics, self.model
        m.geom_friction[:] *= p.friction
        m.dof_damping[:] *= p.damping
        m.eq_solref[m.eq_type == mujoco.mjtEq.mjEQ_WELD, 0] = p.weld

    # -- one episode -------------------------------------------------------------------------------------------------
    def start(self, seed: int) -> None:
        """Begin the episode that `seed` determines."""
        env = self.env
        env.seed(int(seed) % 2**32)
        env.reset()
        mujoco.mj_forward(self.model, self.data)  # reset writes the layout without computing where things are then
        env._prev_obs = env._get_curr_obs_combined_no_goal()
        self.observation = env._get_obs()
        self._late = (np.zeros(4),) * self.physics.latency
        _, info = env.evaluate_state(self.observation, np.zeros(4, np.float32))
        self._judge(info)
        self._start = max(1e-6, self.distance)

    def _judge(self, info: dict[str, Any]) -> None:
        self.success, self.distance = bool(info["success"]), float(info["obj_to_target"])
        if axes := list(self.task.axes):
            self.distance = float(np.linalg.norm((self.observation[4:7] - self.env._target_pos)[axes]))

    def step(self, action: NDArray[np.floating]) -> None:
        """Hold `action (4,)` in [-1, 1] for `REPEAT` steps of Meta-World; gripper > 0 closes."""
        p = self.physics
        command = np.clip(np.asarray(action, np.float64), -1, 1)
        command[:3] *= p.gain
        command[:2] = self._turn @ command[:2] + p.bias
        for _ in range(REPEAT):
            queue = (*self._late, command)
            now, self._late = queue[0], queue[1:]
            self.env.curr_path_length = 0  # the horizon is the caller's
            self.observation, _, _, _, info = self.env.step(now.astype(np.float32))
        self._judge(info)

    @property
    def name(self) -> str:
        """Name of the task in the suite."""
        return next(name for name, task in TASKS.items() if task == self.task)

    @property
    def progress(self) -> float:
        """Share of the distance between object and goal that has been covered, in [0, 1]; 1 at success."""
        return 1.0 if self.success else float(np.clip(1 - self.distance / self._start, 0, 1))

    def state(self) -> NDArray[np.float32]:
        """Proprioception (4,): hand x, y, z and distance between the fingers, metres."""
        apart = np.linalg.norm(self.data.body("rightclaw").xpos - self.data.body("leftclaw").xpos)
        return np.array([*self.env.get_endeff_pos(), apart], np.float32)

    def draw(self, camera: str, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Render a camera, `(height, width, 3)` uint8."""
        if self.task.marker:
            self.data.site("goal").xpos = self.env._target_pos  # every step of the simulation moves it back
        view = self._front if camera == "front" else self._wrist
        return draw(self._pictures, self.data, size, camera=view, assets=self._assets)

    # -- taking turns ------------------------------------------------------------------------------------------------
    def save(self) -> Snapshot:
        """Return what `load` needs to continue this episode; the following steps are bit-identical."""
        state = np.empty(mujoco.mj_stateSize(self.model, _STATE))
        mujoco.mj_getState(self.model, self.data, state, _STATE)
        return Snapshot(
            state, tuple(getattr(self.model, name).copy() for name in WRITTEN), plain_attributes(self.env), self._late,
            self.observation, self.success, self.distance, self._start,
        )  # fmt: skip

    def load(self, saved: Snapshot) -> None:
        """Continue an episode."""
        for name, value in zip(WRITTEN, saved.model, strict=True):
            getattr(self.model, name)[:] = value
        mujoco.mj_setState(self.model, self.data, saved.state, _STATE)
        mujoco.mj_forward(self.model, self.data)
        mujoco.mj_setState(self.model, self.data, saved.state, _STATE)  # mj_forward moved the solver's warm start
        for name, value in saved.attributes.items():
            setattr(self.env, name, value.copy() if isinstance(value, np.ndarray) else value)
        self._late, self.observation = saved.late, saved.observation
        self.success, self.distance, self._start = saved.success, saved.distance, saved.start


@lru_cache(maxsize=32)
def shared_world(task: str, physics: Physics) -> World:
    """Return the process's simulation of a task, in which all environments take turns.

    It holds about 80 MB. The last 32 are kept; environments keep those in which they have episodes.
    """
    return World(find_task(task), physics)


# A child must not use a simulation that another thread of its parent was stepping when it was forked.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=shared_world.cache_clear)


class Turn:
    """The episode of one slot in a simulation that several slots share. It may be taken from any thread.

    Args:
        world: the simulation; None before the first episode.
    """

    def __init__(self, world: World | None = None) -> None:
        self.world = world
        self._saved: Snapshot | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Task, physics and the episode, for copies and other processes; the copy is an episode of its own."""
        if self.world is None:
            return {"task": None}
        with self.take() as world:
            return {"task": world.name, "physics": world.physics, "saved": world.save()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Inverse of `__getstate__`."""
        self.world, self._saved = None, None
        if state["task"] is not None:
            self.world, self._saved = shared_world(state["task"], state["physics"]), state["saved"]

    @contextmanager
    def take(self, fresh: bool = False) -> Iterator[World]:
        """Hold the simulation with this episode in it, alone.

        Args:
            fresh: a new episode will be started, so there is nothing to continue.
        """
        world = self.world
        if world is None:
            raise ConfigError("this slot has no episode yet; call reset() first")
        with world.lock:
            if world.holder is not self:
                if world.holder is not None:
                    world.holder._saved = world.save()
                if self._saved is not None and not fresh:
                    world.load(self._saved)
                world.holder, self._saved = self, None
            yield world


def make_environment(name: str) -> Any:
    """Make a bare environment of Meta-World whose start states depend on its seed, and whose experts see the goal."""
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except ImportError as error:
        raise DependencyError(
            "the suite metaworld needs the package metaworld; type: pip install 'worldgym[metaworld]'"
        ) from error
    env = ALL_V3_ENVIRONMENTS[name]()
    env._set_task_called, env._partially_observable = True, False
    env._freeze_rand_vec, env.seeded_rand_vec = False, True
    env.__dict__.pop("sawyer_observation_space", None)  # its bounds depend on whether the goal is observed
    return env


def plain_attributes(env: Any) -> dict[str, Any]:
    """Copies of the environment's attributes that an episode may change.

    Arrays that are views of MuJoCo's memory belong to its state, and are left out.
    """
    found: dict[str, Any] = {}
    for name, value in vars(env).items():
        if isinstance(value, np.ndarray):
            owner = value
            while isinstance(owner.base, np.ndarray):
                owner = owner.base
            if owner.base is None:
                found[name] = value.copy()
        elif value is None or isinstance(value, bool | int | float | str | np.generic):
            found[name] = value
    return found


def picture_model(model: mujoco.MjModel, task: Task, physics: Physics) -> mujoco.MjModel:
    """A copy of `model` for rendering: thin meshes, no shadows, visible goals, and the appearance of `physics`."""
    shown = copy.deepcopy(model)
    thin_meshes(shown, CELL)
    quality = shown.vis.quality
    quality.shadowsize, quality.offsamples = 0, 0
    quality.numslices, quality.numstacks, quality.numquads = 12, 8, 2
    shown.vis.global_.offwidth = shown.vis.global_.offheight = 512
    shown.site_rgba[:, 3] = 0
    if task.marker:
        goal = shown.site("goal").id
        shown.site_rgba[goal], shown.site_size[goal] = MARKER, MARKER_SIZE
    puck = mujoco.mj_name2id(shown, mujoco.mjtObj.mjOBJ_GEOM, "objGeom")
    if puck >= 0:  # red under a red gripper otherwise
        shown.geom_matid[puck], shown.geom_rgba[puck] = -1, PUCK
    shown.vis.headlight.ambient[:] *= physics.brightness
    shown.vis.headlight.diffuse[:] *= physics.brightness
    shown.light_diffuse[:] *= physics.brightness
    shown.mat_rgba[:, :3] += physics.tint * (np.array([0.4, 0.9, 0.5]) - shown.mat_rgba[:, :3]) * 0.5
    return shown
