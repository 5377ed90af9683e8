"""The tabletop as vectors instead of images: noisy, late sensors for the actor and the true state for a critic.

Comparisons of state estimation, such as denoising world-model learning (DWL, arXiv 2408.14472), need thousands of
episodes and no camera. This environment steps the physics without drawing a frame. It implements the interface
`agents.algorithms.ppo.StateEnv`.

Example::

    env = StateTabletop(64, task="reach", domain="soft", gap=0.5, randomise=1.0, noise=0.03, latency=2)
    obs = env.reset(seed=0)                         # {"actor": (64, 14), "privileged": (64, 13)}
    obs, reward, done, info = env.step(np.zeros((64, 4), np.float32))
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.gap import within
from envs.tabletop.scene import OPEN_WIDTH, WORKSPACE_HIGH, WORKSPACE_LOW, Physics
from envs.tabletop.simulation import Simulation
from envs.tabletop.tasks import Truth, draw_scene
from worldgym.errors import ConfigError

TASKS = ("reach", "push", "pick_place")
"""Tasks whose state is complete with one object: no drawer, no second object."""
DOMAINS = ("real", "soft")
MIDDLE = (WORKSPACE_LOW + WORKSPACE_HIGH) / 2
HALF = (WORKSPACE_HIGH - WORKSPACE_LOW) / 2
DISTANCE = 0.15
"""Metres that relative positions are divided by."""
SENSED = 10
"""Noisy numbers of the actor's observation; the previous action follows them."""
SEED_STRIDE = 1_000_003
"""Distance between the scene seeds of two consecutive seeds."""


class StateTabletop:
    """N tabletops with vectors as observations, 5 steps per second.

    **Observation.** `actor` `(N, 14)`: hand x, y, z and finger opening; target minus hand x, y, z; place; previous
    action. The place is the tray minus the hand x, y and 0 (`pick_place`), or 0, 0 and the side, -1 for left and 1 for
    right (`push`), or zeros (`reach`). All but the previous action and the side are measured with noise, late and with
    dropout. `privileged` `(N, 13)`: the true hand and opening, target, target minus hand, and place, at present.
    Positions are divided by half the workspace, relative positions by 0.15 m.

    **Randomisations.** The start depends only on the seed and the index of the episode, which is i + k N for episode
    k of environment i. With `randomise` every environment has its own physics, which depends on the seed and i and
    stays until `reset`.

    **Reward and success.** The change of `judge_truth`'s progress in a step, plus 1 at success, which ends the episode
    (`terminated`). Other episodes end after `horizon` steps.

    Args:
        num_envs: N.
        task: `reach`, `push` or `pick_place`.
        domain: `real`, or `soft`, the misspecified simulator.
        gap: misspecification of the dynamics of Soft, in [0, 1].
        randomise: width of the physics around those of the domain, in [0, 1]; see `Physics.randomised`.
        noise: standard deviation of every sensor, metres, drawn again at every step.
        latency: steps by which the sensors are late; the first reading is repeated at the start.
        horizon: largest number of steps of an episode.
        dropout: probability of a step in which the sensors repeat their last reading, in [0, 1).

    Raises:
        ConfigError: an argument is outside its range.
    """

    action_dim = 4
    sizes = {"actor": SENSED + 4, "privileged": 13}

    def __init__(
        self, num_envs: int, task: str = "reach", domain: str = "real", gap: float = 0.5, randomise: float = 0.0,
        noise: float = 0.0, latency: int = 0, horizon: int = 40, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        for name, value, known in (("task", task, TASKS), ("domain", domain, DOMAINS)):
            if value not in known:
                raise ConfigError(
                    f"unknown {name} {value!r}; expected one of {', '.join(known)}. Try {name}={known[0]!r}"
                )
        for name, number, low in (("num_envs", num_envs, 1), ("latency", latency, 0), ("horizon", horizon, 1)):
            if not isinstance(number, int | np.integer) or number < low:
                raise ConfigError(
                    f"{name} must be a whole number of at least {low}; got {number!r}. Try {name}={low}"
                )
        if not 0 <= noise <= 1:
            raise ConfigError(f"noise must lie in [0, 1] metres; got {noise!r}. Try noise=0.03")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1); got {dropout!r}. Try dropout=0.1")
        self.num_envs, self.task, self.noise, self.latency = int(num_envs), task, float(noise), int(latency)
        self.horizon, self.dropout, self.randomise = int(horizon), float(dropout), within("randomise", randomise)
        self.physics = Physics().softened(within("gap", gap)) if domain == "soft" else Physics()
        self._simulations = [Simulation(self.physics) for _ in range(num_envs)] if not self.randomise else []
        self._seed: int | None = None
        n = self.num_envs
        self._episode = np.zeros(n, int)
        self._t = np.zeros(n, int)
        self._progress = np.zeros(n)
        self._action = np.zeros((n, 4), np.float32)
        self._true = np.zeros((n, SENSED))  # metres; the side in the last place
        # A reading is noisy when it is taken, so that a late or repeated one is the same number again.
        self._readings = np.zeros((n, self.latency + 1, SENSED))  # newest first
        self._shown = np.zeros((n, SENSED))
        self._noise = np.zeros((n, self.horizon + 1, SENSED))
        self._dropped = np.zeros((n, self.horizon + 1), bool)

    @property
    def simulations(self) -> list[Simulation]:
        """The simulation of every environment, for scripted experts."""
        return self._simulations

    def reset(self, seed: int = 0) -> dict[str, NDArray[np.float32]]:
        """Start episode 0 of every environment.

        Args:
            seed: seed of starts, noise and randomised physics; not negative.

        Returns:
            `{"actor": (N, 14), "privileged": (N, 13)}` float32.
        """
        if seed < 0:
            raise ConfigError(f"seed must not be negative; got {seed}. Try seed=0")
        if self.randomise and seed != self._seed:
            streams = [np.random.default_rng((seed, i, 2)) for i in range(self.num_envs)]
            self._simulations = [
                Simulation(self.physics.randomised(self.randomise, rng)) for rng in streams
            ]
        self._seed = int(seed)
        self._episode[:] = 0
        for i in range(self.num_envs):
            self._begin(i)
        return self._observation()

    def step(
        self, actions: Any
    ) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float32], NDArray[np.bool_], dict[str, Any]]:
        """Advance 0.2 s; an environment whose episode ends starts the next one in the same call.

        Args:
            actions: `(N, 4)`: dx, dy, dz and gripper (> 0 opens), clipped to [-1, 1].

        Returns:
            observation, reward `(N,)`, done `(N,)` and info with `terminated`, `final` and `success`, as in
            `agents.algorithms.ppo.StateEnv`.

        Raises:
            ConfigError: before `reset`, or the actions have another shape or are not finite.
        """
        commands = np.asarray(actions, np.float32)
        if self._seed is None:
            raise ConfigError("step was called before reset; expected a start. Type env.reset(seed=0) first")
        if commands.shape != (self.num_envs, 4) or not np.isfinite(commands).all():
            raise ConfigError(
                f"actions have shape {commands.shape} and {int((~np.isfinite(commands)).sum())} values that are not "
                f"finite; expected {(self.num_envs, 4)} and finite numbers in [-1, 1]. Pass one row per environment"
            )
        self._action = commands.clip(-1, 1)
        reward = np.zeros(self.num_envs, np.float32)
        success = np.zeros(self.num_envs, bool)
        self._t += 1
        for i, simulation in enumerate(self._simulations):
            simulation.step(self._action[i])
            success[i], progress = simulation.truth()
            reward[i] = progress - self._progress[i] + success[i]
            self._progress[i] = progress
            self._sense(i)
        done = success | (self._t >= self.horizon)
        final = obs = self._observation()
        if done.any():
            for i in np.flatnonzero(done).tolist():
                self._episode[i] += 1
                self._begin(i)
            obs = self._observation()
        return obs, reward, done, {"terminated": success, "final": final, "success": success.copy()}

    def _begin(self, i: int) -> None:
        """Start an episode of environment i."""
        assert self._seed is not None
        index = i + int(self._episode[i]) * self.num_envs
        rng = np.random.default_rng((self._seed, index, 1))
        self._noise[i] = rng.standard_normal(self._noise[i].shape)
        self._dropped[i] = rng.random(self.horizon + 1) < self.dropout
        self._simulations[i].load(draw_scene(self._seed * SEED_STRIDE + index, self.task))
        self._progress[i] = self._simulations[i].truth()[1]
        self._t[i], self._action[i] = 0, 0.0
        self._sense(i)
        self._readings[i] = self._readings[i, 0]
        self._shown[i] = self._readings[i, 0]

    def _sense(self, i: int) -> None:
        """Read the sensors of environment i."""
        simulation = self._simulations[i]
        scene, truth = simulation.scene, simulation.privileged()
        self._true[i] = _state(self.task, scene.tray, scene.side, scene.target, truth)
        error = self.noise * self._noise[i, self._t[i]]
        error[9] = 0.0  # the side and the absence of a place are known
        if self.task != "pick_place":
            error[7:9] = 0.0
        self._readings[i, 1:] = self._readings[i, :-1].copy()
        self._readings[i, 0] = self._true[i] + error
        if not self._dropped[i, self._t[i]]:
            self._shown[i] = self._readings[i, -1]

    def _observation(self) -> dict[str, NDArray[np.float32]]:
        true = _sensed(self._true)
        target = (self._true[:, :3] + self._true[:, 4:7] - MIDDLE) / HALF
        parts = [true[:, :4], target, true[:, 4:]]
        return {
            "actor": np.concatenate([_sensed(self._shown), self._action], 1).astype(np.float32),
            "privileged": np.concatenate(parts, 1).astype(np.float32),
        }


def _state(
    task: str, tray: tuple[float, float], side: str, target: int, truth: Truth
) -> NDArray[np.float64]:
    """Hand, opening, target minus hand, and place `(10,)`, metres."""
    place = np.zeros(3)
    if task == "pick_place":
        place[:2] = np.array(tray) - truth.hand[:2]
    elif task == "push":
        place[2] = 1.0 if side == "right" else -1.0
    return np.concatenate([truth.hand, [truth.opening], truth.objects[target] - truth.hand, place])


def _sensed(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Normalise `(N, 10)`."""
    opening = 2 * x[:, 3:4] / OPEN_WIDTH - 1
    return np.concatenate(
        [(x[:, :3] - MIDDLE) / HALF, opening, x[:, 4:7] / DISTANCE, x[:, 7:9] / DISTANCE, x[:, 9:]], 1
    )
