"""Scripted behaviours that collect logs: experts, noisy and distracted experts, near misses, random motion.

A world model and a judge that are trained only on successes predict success for everything. Near misses are displaced
by 5-13 cm (6-16 px), just outside the tolerance. Distracted episodes perform a task on the wrong object, so that the
instruction matters. After a success the hand continues with another task, so that success does not coincide with the
end of the episode.

Example::

    env = TabletopEnv(terminate_on_success=False)
    episode = rollout(env, "push", seed=3, behaviour="near_miss", rng=np.random.default_rng(3))
    episode.success[-1], episode.provenance["behaviour"]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.recording import counterfactual, scripted
from envs.tabletop.env import TabletopEnv
from envs.tabletop.experts import Offsets, expert_action
from envs.tabletop.grammar import phrase
from envs.tabletop.tasks import NEEDS_OBJECT, Scene, scene_for
from worldgym.data.episode import Episode
from worldgym.suite import COUNTERFACTUAL

BEHAVIOURS = ("expert", "noisy", "near_miss", "distracted", "random")
GOALS = ("reach", "push", "pick_place")  # tasks of a hand that is distracted or has finished its own task
COLLECTOR_VERSION = 2


def _ring(rng: np.random.Generator, low: float, high: float) -> tuple[float, float]:
    angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(low, high)
    return float(radius * np.cos(angle)), float(radius * np.sin(angle))


def near_miss_offsets(rng: np.random.Generator, task: str) -> Offsets:
    """Draw offsets for a near miss of `task`: a displaced grasp, a displaced release, or stopping short."""
    kind = rng.random()
    if task in ("push", "open_drawer", "close_drawer"):
        return (
            Offsets(short=float(rng.uniform(0.04, 0.09)))
            if kind < 0.6
            else Offsets(grasp=_ring(rng, 0.05, 0.09))
        )
    if task in ("pick_place", "stack"):
        return Offsets(grasp=_ring(rng, 0.06, 0.10)) if kind < 0.5 else Offsets(place=_ring(rng, 0.08, 0.14))
    return Offsets(grasp=_ring(rng, 0.06, 0.10))


def _other_goal(scene: Scene, rng: np.random.Generator) -> Scene:
    slots = [i for i, p in enumerate(scene.positions) if p is not None]
    target = int(rng.choice(slots))
    task = str(rng.choice(GOALS))
    return replace(scene, task=task, target=target, side="left" if rng.random() < 0.5 else "right")


class Hand:
    """Controller of one scripted behaviour, for one episode.

    Args:
        env: the environment, at the start of the episode.
        behaviour: one of `BEHAVIOURS`.
        rng: randomness of the behaviour.

    Raises:
        ValueError: unknown behaviour.
    """

    def __init__(self, env: TabletopEnv, behaviour: str, rng: np.random.Generator) -> None:
        if behaviour not in BEHAVIOURS:
            raise ValueError(f"unknown behaviour {behaviour!r}; known: {', '.join(BEHAVIOURS)}, policy")
        self.env, self.behaviour, self.rng = env, behaviour, rng
        scene = env.batch.scene()
        self.goal = _other_goal(scene, rng) if behaviour == "distracted" else scene
        self.offsets = near_miss_offsets(rng, scene.task) if behaviour == "near_miss" else Offsets()
        self.noise = np.zeros(4)
        self.sigma = {
            "expert": 0.05,
            "noisy": rng.uniform(0.2, 0.7),
            "near_miss": 0.1,
            "distracted": 0.15,
            "random": 0.0,
        }[behaviour]
        self.grip = 1.0
        self.drift = np.zeros(3)
        self.patience = int(rng.integers(10, 22))

    def act(self, observation: dict[str, Any], step: int) -> NDArray[np.float32]:
        """The next action (4,) in [-1, 1]; it depends on the true state, not on the observation."""
        rng, env, truth = self.rng, self.env, self.env.batch.simulation().privileged()
        if self.behaviour == "random":
            if rng.random() < 0.25:
                self.drift = rng.normal(0, 0.7, 3) + (0, -0.15, -0.25)
            if rng.random() < 0.15:
                self.grip = -self.grip
            return np.clip([*(self.drift + rng.normal(0, 0.25, 3)), self.grip], -1, 1).astype(np.float32)
        if self.behaviour in ("near_miss", "distracted") and step == self.patience:
            # After a near miss or a distraction the hand does the correct task or another random one.
            self.goal = env.batch.scene() if rng.random() < 0.5 else _other_goal(env.batch.scene(), rng)
            self.offsets = Offsets()
        action = expert_action(self.goal, truth, self.offsets)
        self.noise = 0.5 * self.noise + self.sigma * rng.normal(size=4)
        action[:3] += self.noise[:3]
        if self.behaviour == "noisy" and rng.random() < 0.06:
            action[3] = -action[3]
        return np.clip(action, -1, 1).astype(np.float32)

    def finished(self) -> bool:
        """End a demonstration; other behaviours go on with another random task."""
        if self.behaviour == "expert":
            return True
        self.goal, self.offsets = _other_goal(self.env.batch.scene(), self.rng), Offsets()
        return False


def rollout(
    env: TabletopEnv,
    task: str,
    seed: int,
    behaviour: str,
    rng: np.random.Generator,
    *,
    split: str = "seen",
    act: Callable[[dict, int], NDArray[np.float32]] | None = None,
) -> Episode:
    """Run one episode of a behaviour among `BEHAVIOURS`, of the policy `act`, or a perturbed demonstration."""
    if behaviour == COUNTERFACTUAL:
        return counterfactual(
            env, expert_for, other_instructions, task=task, seed=seed, split=split, rng=rng, version=COLLECTOR_VERSION
        )
    return scripted(
        env, Hand, task=task, seed=seed, behaviour=behaviour, rng=rng, version=COLLECTOR_VERSION, split=split, act=act,
        warmup=(0.65, 8),
    )  # fmt: skip


def expert_for(env: TabletopEnv, instruction: str | None = None) -> NDArray[np.float32]:
    """The expert's action (4,) in the current state, for the episode's or another instruction.

    Raises:
        ValueError: the instruction is of no known task, or the scene lacks an object that it names.
    """
    scene = env.batch.scene()
    if instruction is not None:
        other = scene_for(scene, instruction)
        if other is None:
            raise ValueError(f"{instruction!r} names an object that the scene does not have")
        scene = other
    return expert_action(scene, env.batch.simulation().privileged())


def other_instructions(env: TabletopEnv) -> list[str]:
    """The episode's instruction with another object of the scene as the target; none if the task has no object."""
    scene = env.batch.scene()
    if scene.task not in NEEDS_OBJECT:
        return []
    used = {scene.target, scene.base} if scene.task == "stack" else {scene.target}
    slots = [i for i, place in enumerate(scene.positions) if place is not None and i not in used]
    words = {"side": scene.side, "base": scene.name(scene.base) if scene.task == "stack" else ""}
    return [phrase(scene.task, scene.paraphrase, target=scene.name(slot), **words) for slot in slots]
