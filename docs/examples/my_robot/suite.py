"""A suite: a cart on rails with one camera. The instruction names the lamp that the cart has to reach."""

from __future__ import annotations

from typing import Any

import numpy as np

from worldgym.data import Episode, SplitManifest
from worldgym.imagination.batch_of_one import BatchOfOne
from worldgym.imagination.slot_env import SlotVectorEnv, Status
from worldgym.specs import ActionSpec, Camera, ObservationSpec, Specs, StateField

SPECS = Specs(
    ObservationSpec((Camera("front", 32, 48),), (StateField("x", "joint", "m"), StateField("y", "joint", "m"))),
    ActionSpec(("dx", "dy"), ("m", "m"), hz=5.0, low=(-0.2, -0.2), high=(0.2, 0.2)),
)
LAMPS = {"left": np.array([-0.7, 0.0]), "right": np.array([0.7, 0.0])}


class CartEnv(SlotVectorEnv):
    """N simulated carts. The base class handles seeds, autoreset, chunks, spaces and infos."""

    def __init__(self, num_envs: int = 1, *, task: str | None = None, split: str = "seen", **settings: Any) -> None:
        settings.pop("cameras", None), settings.pop("image_size", None)  # this suite has one camera of one size
        super().__init__(SPECS, num_envs, state_low=-1.0, state_high=1.0, **settings)
        self.task, self.position, self.tasks = task, np.zeros((num_envs, 2)), ["left"] * num_envs

    def start_slot(self, i: int, seed: int | None, options: dict[str, Any]) -> None:
        self.position[i] = self.np_random[i].uniform(-0.3, 0.3, 2)
        drawn = sorted(LAMPS)[int(self.np_random[i].integers(2))]
        self.tasks[i] = options.get("task") or self.task or drawn

    def step_slot(self, i: int, action: np.ndarray) -> None:
        self.position[i] = np.clip(self.position[i] + SPECS.action.denormalise(action), -1, 1)

    def status_slot(self, i: int) -> Status:
        distance, task = float(np.linalg.norm(self.position[i] - LAMPS[self.tasks[i]])), self.tasks[i]
        state = self.position[i].astype(np.float32)
        return Status(distance < 0.2, max(0.0, 1 - distance / 2), state, f"drive to the {task} lamp", task)

    def draw_slot(self, i: int, camera: Camera) -> np.ndarray:
        frame = np.full((*camera.size, 3), 40, np.uint8)
        things = [*((place, (250, 250, 120)) for place in LAMPS.values()), (self.position[i], (255, 0, 0))]
        for (x, y), colour in things:
            row, column = (np.array([y + 1.2, x + 1.2]) / 2.4 * camera.size).astype(int)
            frame[row - 2 : row + 3, column - 2 : column + 3] = colour
        return frame


class MyRobot:
    """The suite: `worldgym.suite.Suite` describes every attribute."""

    name, specs, horizon = "my_robot", SPECS, 20
    tasks = default_tasks = tuple(sorted(LAMPS))
    splits, domains, gap_knobs = ("seen",), ("real",), ()
    state_bounds = ((-1.0, -1.0), (1.0, 1.0))
    behaviours, mix = ("expert", "random"), {"expert": 0.6, "random": 0.4}

    def specs_for(self, cameras: Any = None, image_size: Any = None) -> Specs:
        return SPECS

    def manifest(self) -> SplitManifest:
        return SplitManifest(name=self.name, rules={})  # nothing is held out

    def make(self, num_envs: int = 1, **settings: Any) -> CartEnv:
        return CartEnv(num_envs, **settings)

    def make_single(self, **settings: Any) -> BatchOfOne:
        return BatchOfOne(CartEnv(1, autoreset_mode="Disabled", **settings))

    def demonstrate(
        self, env: Any, behaviour: str, *, seed: int, task: str, rng: np.random.Generator, split: str = "seen",
        act: Any = None,
    ) -> Episode:  # fmt: skip
        """Record one episode of a scripted behaviour, or of a policy that is given as `act`."""
        carts = env.unwrapped.batch
        observation, _ = env.reset(seed=seed, options={"task": task, "split": split})
        frames, statuses, actions = [observation["image"]], [carts.status_slot(0)], []
        while len(actions) < carts.horizon and not statuses[-1].success:
            if act is not None:
                action = np.asarray(act(observation, len(actions)), np.float32)
            elif behaviour == "expert":
                action = 3 * (LAMPS[task] - carts.position[0]) + rng.normal(0, 0.1, 2)
            else:
                action = rng.uniform(-1, 1, 2)
            actions.append(np.clip(action, -1, 1).astype(np.float32))
            observation, *_ = env.step(actions[-1])
            frames.append(observation["image"])
            statuses.append(carts.status_slot(0))
        return Episode(
            frames=np.stack(frames), actions=np.stack(actions), state=np.stack([s.state for s in statuses]),
            instruction=statuses[0].instruction, success=np.array([s.success for s in statuses]),
            progress=np.array([s.progress for s in statuses], np.float32), domain="real", split=split, task=task,
            provenance={"behaviour": behaviour, "seed": seed},
        )  # fmt: skip
