"""Scripted behaviours that collect logs: Meta-World's experts, noisy ones, near misses, other tasks, random motion.

A world model and a judge that are trained only on successes predict success for everything. `near_miss` acts towards
an object that it sees 3 to 8 cm beside its place, or stops short; `distracted` executes another task that the scene
allows, such as closing the faucet that is to be opened. After a while both may turn to their instruction.

Example::

    env = MetaWorldEnv(terminate_on_success=False)
    episode = rollout(env, "drawer_open", seed=3, behaviour="near_miss", rng=np.random.default_rng(3))
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.metaworld.tasks import find_task, task_of
from envs.metaworld.vector import MetaWorldEnv
from envs.metaworld.world import World
from envs.recording import counterfactual, scripted
from worldgym.data.episode import Episode
from worldgym.suite import COUNTERFACTUAL

BEHAVIOURS = ("expert", "noisy", "near_miss", "distracted", "random")
COLLECTOR_VERSION = 1
SAME_SCENE = (
    ("reach", "push", "pick_place"), ("drawer_open", "drawer_close"), ("window_open", "window_close"),
    ("faucet_open", "faucet_close"),
)  # fmt: skip
"""Tasks whose scenes have the same object, so that the expert of one can act in the scene of another."""
SIGMA = {"expert": 0.05, "noisy": 0.5, "near_miss": 0.1, "distracted": 0.1, "random": 0.0}


def other_task(task: str, rng: np.random.Generator) -> str | None:
    """Return another task that the scene of `task` allows; None if there is none."""
    others = other_tasks(task)
    return str(rng.choice(others)) if others else None


def other_tasks(task: str) -> list[str]:
    """The other tasks that the scene of `task` allows."""
    return [name for group in SAME_SCENE if task in group for name in group if name != task]


class Arm:
    """Controller of one scripted behaviour, for one episode.

    Args:
        env: the environment, at the start of the episode.
        behaviour: one of `BEHAVIOURS`.
        rng: randomness of the behaviour.

    Raises:
        ValueError: unknown behaviour.
    """

    def __init__(self, env: MetaWorldEnv, behaviour: str, rng: np.random.Generator) -> None:
        if behaviour not in BEHAVIOURS:
            raise ValueError(f"unknown behaviour {behaviour!r}; known: {', '.join(BEHAVIOURS)}, policy")
        self.env, self.behaviour, self.rng = env, behaviour, rng
        self.task = env.batch.status_slot(0).task
        self.sigma = SIGMA[behaviour] * (rng.uniform(0.4, 1.4) if behaviour == "noisy" else 1.0)
        self.noise, self.drift, self.grip = np.zeros(4), np.zeros(3), -1.0
        self.offset, self.stop = np.zeros(3), np.inf
        self.goal: str | None = self.task
        if behaviour == "distracted":
            self.goal = other_task(self.task, rng)  # without another task: random motion
        elif behaviour == "near_miss" and rng.random() < 0.5:
            self.stop = float(rng.uniform(0.3, 0.95))
        elif behaviour == "near_miss":
            direction = rng.normal(size=3) * (1, 1, 0.5)
            self.offset = direction / np.linalg.norm(direction) * rng.uniform(0.03, 0.08)
        self.patience = int(rng.integers(12, 30))

    def act(self, observation: dict[str, Any], step: int) -> NDArray[np.float32]:
        """The next action (4,) in [-1, 1]; it depends on the true state, not on the observation."""
        rng = self.rng
        if step == self.patience and self.behaviour in ("near_miss", "distracted") and rng.random() < 0.5:
            self.goal, self.offset, self.stop = self.task, np.zeros(3), np.inf
        if self.behaviour == "random" or self.goal is None:
            if rng.random() < 0.25:
                self.drift = rng.normal(0, 0.7, 3)
            if rng.random() < 0.15:
                self.grip = -self.grip
            return np.clip([*(self.drift + rng.normal(0, 0.25, 3)), self.grip], -1, 1).astype(np.float32)
        status = self.env.batch.status_slot(0)
        if status.progress >= self.stop:  # stops short, hovers, and keeps its distance
            action = np.array([*rng.normal(0, 0.1, 3), -1.0])
        else:
            action = expert_action(self.env, self.goal, self.offset)
        self.noise = 0.5 * self.noise + self.sigma * rng.normal(size=4)
        action[:3] += self.noise[:3]
        if self.behaviour == "noisy" and rng.random() < 0.05:
            action[3] = -action[3]
        return np.clip(action, -1, 1).astype(np.float32)

    def finished(self) -> bool:
        """End a demonstration; other behaviours go on, half of them with another task of the scene."""
        if self.behaviour == "expert":
            return True
        self.goal = other_task(self.task, self.rng) if self.rng.random() < 0.5 else None
        self.offset, self.stop = np.zeros(3), np.inf
        return False


def expert_action(env: MetaWorldEnv, task: str, offset: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Action (4,) in [-1, 1] of Meta-World's expert in the environment's current state; see `expert_in`."""
    with env.batch.turn().take() as world:
        return expert_in(world, task, offset)


def expert_in(world: World, task: str, offset: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Action (4,) in [-1, 1] of Meta-World's expert.

    Args:
        world: the simulation.
        task: task of the expert.
        offset: displacement of the object in the expert's observation, metres (3,).
    """
    from metaworld.policies import ENV_POLICY_MAP

    seen = world.observation.copy()
    if offset is not None:
        seen[4:7] += offset
    policy: Any = ENV_POLICY_MAP[find_task(task).environment]  # a class whose constructor takes nothing
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Constant", UserWarning)  # its actions are clipped, as they are here
        return np.clip(np.asarray(policy().get_action(seen), np.float64), -1, 1)


def rollout(
    env: MetaWorldEnv,
    task: str,
    seed: int,
    behaviour: str,
    rng: np.random.Generator,
    *,
    split: str = "seen",
    act: Callable[[dict[str, Any], int], Any] | None = None,
) -> Episode:
    """Run one episode of a behaviour among `BEHAVIOURS`, of the policy `act`, or a perturbed demonstration."""
    if behaviour == COUNTERFACTUAL:
        return counterfactual(
            env, expert_for, other_instructions, task=task, seed=seed, split=split, rng=rng, version=COLLECTOR_VERSION
        )
    return scripted(
        env, Arm, task=task, seed=seed, behaviour=behaviour, rng=rng, version=COLLECTOR_VERSION, split=split, act=act
    )  # fmt: skip


def expert_for(env: MetaWorldEnv, instruction: str | None = None) -> NDArray[np.float32]:
    """The expert's action (4,) in the current state, for the episode's or another instruction."""
    task = env.batch.status_slot(0).task if instruction is None else task_of(instruction)
    return expert_action(env, task).astype(np.float32)


def other_instructions(env: MetaWorldEnv) -> list[str]:
    """A sentence of every other task that the scene allows."""
    return [find_task(task).sentence(0) for task in other_tasks(env.batch.status_slot(0).task)]
