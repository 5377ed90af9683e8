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

import numpy as np
from numpy.typing import NDArray

from envs.tabletop.env import TabletopEnv
from envs.tabletop.experts import Offsets, expert_action
from envs.tabletop.tasks import Scene
from worldgym.data.episode import Episode

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
        scene: start state of the episode.
        behaviour: one of `BEHAVIOURS`.
        rng: randomness of the behaviour.

    Raises:
        ValueError: unknown behaviour.
    """

    def __init__(self, scene: Scene, behaviour: str, rng: np.random.Generator) -> None:
        if behaviour not in BEHAVIOURS:
            raise ValueError(f"unknown behaviour {behaviour!r}; known: {', '.join(BEHAVIOURS)}, policy")
        self.behaviour, self.rng = behaviour, rng
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

    def act(self, env: TabletopEnv, step: int) -> NDArray[np.float32]:
        """The next action (4,) in [-1, 1]."""
        rng, truth = self.rng, env.batch.simulation().privileged()
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

    def finished(self, env: TabletopEnv) -> None:
        """Switch to another random task; called a few steps after the instruction was fulfilled."""
        self.goal, self.offsets = _other_goal(env.batch.scene(), self.rng), Offsets()


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
    """Run one episode and log it with per-frame success and progress.

    Args:
        env: made with `terminate_on_success=False`; its horizon bounds the length.
        task: name of the task; with `seed` and `split` it determines the start state.
        seed: seed of the start state.
        behaviour: one of `BEHAVIOURS`, or `"policy"` with `act`.
        rng: randomness of the behaviour.
        split: split of start states and instructions.
        act: function `(observation, step) -> action (4,)` for `"policy"`.

    Raises:
        ValueError: unknown behaviour, or `"policy"` without `act`.
    """
    if behaviour == "policy" and act is None:
        raise ValueError("behaviour 'policy' needs act=, a function (observation, step) -> action (4,)")
    observation, info = env.reset(seed=seed, options={"task": task, "split": split})
    warmup = 0
    if behaviour == "expert" and rng.random() < 0.65:
        # Demonstrations from perturbed start states show how to recover from the errors of a policy.
        warmup = int(rng.integers(1, 9))
        random_hand = Hand(env.batch.scene(), "random", rng)
        for step in range(warmup):
            observation, _, _, _, info = env.step(random_hand.act(env, step))
    hand = None if behaviour == "policy" else Hand(env.batch.scene(), behaviour, rng)
    observations, states, actions = [observation], [observation["state"]], []
    success, progress = [info["success"]], [info["progress"]]
    since = 0
    for step in range(env.batch.horizon - warmup):
        action = hand.act(env, step) if hand else act(observation, step)  # type: ignore[misc]
        observation, _, _, truncated, info = env.step(action)
        observations.append(observation)
        states.append(observation["state"])
        actions.append(action)
        success.append(info["success"])
        progress.append(info["progress"])
        since = since + 1 if since or info["success"] else 0
        if behaviour == "expert" and since == 3:
            break
        if hand and since == 3:
            hand.finished(env)
        if truncated:
            break
    batch = env.batch
    keys = batch.specs.observation.camera_keys
    videos = {name: np.stack([each[key] for each in observations]) for name, key in keys.items()}
    return Episode(
        frames=videos.pop(batch.specs.observation.main.name),
        actions=np.stack(actions).astype(np.float32),
        state=np.stack(states).astype(np.float32),
        views=videos,
        instruction=env.instruction,
        success=np.array(success, bool),
        progress=np.array(progress, np.float32),
        domain=batch.domain,
        split=split,
        task=task,
        provenance={
            "behaviour": behaviour,
            "seed": int(seed),
            "collector_version": COLLECTOR_VERSION,
            "gap": batch.gap,
            "steps": len(actions),
            "warmup": warmup,
        },
    )
