"""Seven joints move a red spot on a screen; the instruction names the lamp that it has to reach.

The state has nine fields: seven joints and the spot's coordinates. There is no gripper, and the two coordinates are no
end-effector position of three, so whatever needs such roles has to stay off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from worldgym.data import Episode, SplitManifest
from worldgym.imagination.batch_of_one import BatchOfOne
from worldgym.imagination.slot_env import SlotVectorEnv, Status
from worldgym.specs import ActionSpec, Camera, ObservationSpec, Specs, StateField

CAMERAS = (Camera("table", 24, 40), Camera("side", 16, 32))
JOINTS = tuple(f"joint_{i}" for i in range(7))
STATE = (*(StateField(name, "joint", "rad") for name in JOINTS), StateField("u"), StateField("v"))
ACTIONS = ActionSpec(JOINTS, ("rad",) * 7, 10.0, (-0.3,) * 7, (0.3,) * 7)
LAMPS = {"left lamp": (-0.6, 0.0), "right lamp": (0.6, 0.0)}
MIX = np.random.default_rng(0).normal(0, 0.5, (7, 2))  # how joints move the spot
NEAR = 0.3


class ArmEnv(SlotVectorEnv):
    """N such arms."""

    option_names = ("task", "split", "instruction", "state")

    def __init__(
        self, num_envs: int = 1, *, task: str | None = None, split: str = "seen", **settings: Any
    ) -> None:
        cameras = settings.pop("cameras", None)
        settings.pop("image_size", None)
        observation = ObservationSpec(CAMERAS, STATE)
        super().__init__(
            Specs(observation if cameras is None else observation.select(cameras), ACTIONS),
            num_envs,
            **settings,
        )
        self.task = task
        self.joints, self.lamps = np.zeros((num_envs, 7)), ["left lamp"] * num_envs

    def start_slot(self, i: int, seed: int | None, options: dict[str, Any]) -> None:
        rng = self.np_random[i]
        self.joints[i] = rng.normal(0, 0.2, 7)
        drawn = sorted(LAMPS)[int(rng.integers(2))]
        self.lamps[i] = options.get("task") or self.task or drawn

    def step_slot(self, i: int, action: np.ndarray) -> None:
        self.joints[i] = np.clip(self.joints[i] + 0.3 * action, -3, 3)

    def spot(self, i: int) -> np.ndarray:
        return np.tanh(self.joints[i] @ MIX)

    def status_slot(self, i: int) -> Status:
        spot = self.spot(i)
        off = float(np.linalg.norm(spot - LAMPS[self.lamps[i]]))
        state = np.concatenate([self.joints[i], spot]).astype(np.float32)
        return Status(off < NEAR, max(0.0, 1 - off / 2), state, f"light the {self.lamps[i]}", self.lamps[i])

    def draw_slot(self, i: int, camera: Camera) -> np.ndarray:
        picture = np.full((camera.height, camera.width, 3), 40, np.uint8)
        for (u, v), colour in [
            *((place, (250, 250, 120)) for place in LAMPS.values()),
            (self.spot(i), (255, 0, 0)),
        ]:
            row = round((v if camera.name == "table" else -v) * 0.45 * camera.height + camera.height / 2)
            column = round(u * 0.45 * camera.width + camera.width / 2)
            picture[max(0, row - 2) : row + 2, max(0, column - 2) : column + 2] = colour
        return picture


class ForeignArm:
    """The suite, as `worldgym.suite.Suite` asks for."""

    name = "foreign_arm"
    tasks = default_tasks = tuple(sorted(LAMPS))
    splits = ("seen",)
    domains = ("real",)
    gap_knobs: tuple[str, ...] = ()
    horizon = 20
    specs = Specs(ObservationSpec(CAMERAS, STATE), ACTIONS)
    state_bounds = ((-4.0,) * 9, (4.0,) * 9)
    behaviours = ("expert", "random")
    mix = {"expert": 0.6, "random": 0.4}

    def specs_for(self, cameras: Sequence[str] | None = None, image_size: Any = None) -> Specs:
        observation = self.specs.observation
        return Specs(observation if cameras is None else observation.select(cameras), ACTIONS)

    def manifest(self) -> SplitManifest:
        return SplitManifest(name=self.name, rules={})

    def make(self, num_envs: int = 1, **settings: Any) -> ArmEnv:
        return ArmEnv(num_envs, **settings)

    def make_single(self, **settings: Any) -> Any:
        return BatchOfOne(ArmEnv(1, autoreset_mode="Disabled", **settings))

    def demonstrate(
        self, env: Any, behaviour: str, *, seed: int, task: str, rng: np.random.Generator, split: str = "seen",
        act: Callable[[dict[str, Any], int], Any] | None = None,
    ) -> Episode:  # fmt: skip
        batch = env.unwrapped.batch
        observation, _ = env.reset(seed=seed, options={"task": task, "split": split})
        frames: list[dict[str, Any]] = [observation]
        actions, truth = [], [batch.status_slot(0)]
        for step in range(batch.horizon):
            if act is not None:
                action = np.asarray(act(observation, step), np.float32)
            elif behaviour == "expert":
                towards = np.array(LAMPS[task]) - batch.spot(0)
                action = np.clip(3 * MIX @ towards + rng.normal(0, 0.1, 7), -1, 1).astype(np.float32)
            else:
                action = rng.uniform(-1, 1, 7).astype(np.float32)
            observation, *_ = env.step(action)
            frames.append(observation)
            actions.append(action)
            truth.append(batch.status_slot(0))
            if truth[-1].success:
                break
        keys = batch.specs.observation.camera_keys
        main, *others = keys
        return Episode(
            frames=np.stack([f[keys[main]] for f in frames]), actions=np.stack(actions),
            state=np.stack([now.state for now in truth]), instruction=truth[0].instruction,
            success=np.array([now.success for now in truth]),
            progress=np.array([now.progress for now in truth], np.float32),
            domain="real", split=split, task=task, provenance={"behaviour": behaviour, "seed": seed},
            views={name: np.stack([f[keys[name]] for f in frames]) for name in others},
        )  # fmt: skip
