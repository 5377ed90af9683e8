"""A suite of numpy alone: seven joints that are to reach angles, seen by two cameras that are not square.

And a world model of it that knows its physics, so that what is imagined can be compared with what is so.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldgym.data import Episode, SplitManifest
from worldgym.imagination import ArrayStarts
from worldgym.imagination.batch_of_one import BatchOfOne
from worldgym.imagination.slot_env import SlotVectorEnv, Status
from worldgym.protocols import Imagined, Judgement
from worldgym.specs import ActionSpec, Camera, ObservationSpec, Specs, StateField

JOINTS, STEP = 7, 0.2
TASKS = ("fold", "stretch")
SPECS = Specs(
    ObservationSpec(
        (Camera("front", 20, 32), Camera("wrist", 12, 16, static=False)),
        tuple(StateField(f"q{i}", "joint", "rad") for i in range(JOINTS)),
    ),
    ActionSpec(
        tuple(f"dq{i}" for i in range(JOINTS)), ("rad",) * JOINTS, 10.0, (-STEP,) * JOINTS, (STEP,) * JOINTS
    ),
)


def picture(q: np.ndarray, camera: Camera) -> np.ndarray:
    """A bar for each joint; the wrist camera sees them mirrored and tinted."""
    frame = np.full((*camera.size, 3), 40 if camera.name == "front" else 90, np.uint8)
    width = camera.width // JOINTS
    order = range(JOINTS) if camera.name == "front" else range(JOINTS)[::-1]
    for place, joint in enumerate(order):
        top = int(round((1 - (q[joint] + 2) / 4) * (camera.height - 1)))
        frame[top:, place * width : (place + 1) * width] = 30 * joint + 20
    return frame


def goal(task: str) -> float:
    return -1.0 if task == "fold" else 1.0


class JointsVectorEnv(SlotVectorEnv):
    def __init__(
        self, num_envs: int = 1, *, task: str | None = None, split: str = "seen", **settings: Any
    ) -> None:
        super().__init__(SPECS, num_envs, state_low=-2.0, state_high=2.0, **settings)
        self.fixed, self.split = task, split
        self.q, self.tasks = np.zeros((num_envs, JOINTS), np.float32), [TASKS[0]] * num_envs

    def start_slot(self, i, seed, options):  # noqa: ANN001, ANN201
        rng = self.np_random[i]
        self.q[i] = rng.uniform(-0.5, 0.5, JOINTS)
        self.tasks[i] = options.get("task") or self.fixed or TASKS[int(rng.integers(2))]

    def step_slot(self, i, action):  # noqa: ANN001, ANN201
        self.q[i] = np.clip(self.q[i] + STEP * action, -2, 2)

    def status_slot(self, i):  # noqa: ANN001, ANN201
        left = float(abs(self.q[i] - goal(self.tasks[i])).mean())
        return Status(
            left < 0.3,
            float(np.clip(1 - left, 0, 1)),
            self.q[i].copy(),
            f"{self.tasks[i]} the arm",
            self.tasks[i],
        )

    def draw_slot(self, i, camera):  # noqa: ANN001, ANN201
        return picture(self.q[i], camera)


class JointsEnv(BatchOfOne):
    def __init__(self, **settings: Any) -> None:
        super().__init__(JointsVectorEnv(1, autoreset_mode="Disabled", **settings))


class JointsSuite:
    name, tasks, default_tasks, splits, domains, gap_knobs = "joints", TASKS, TASKS, ("seen",), ("real",), ()
    horizon, specs, state_bounds = 30, SPECS, ((-2.0,) * JOINTS, (2.0,) * JOINTS)
    behaviours, mix = ("eager", "lazy"), {"eager": 0.5, "lazy": 0.5}

    def specs_for(self, cameras=None, image_size=None):  # noqa: ANN001, ANN201
        return SPECS if cameras is None else Specs(SPECS.observation.select(cameras), SPECS.action)

    def manifest(self):  # noqa: ANN201
        return SplitManifest(name="joints", rules={"seen": "everything"})

    def make(self, num_envs=1, *, domain="real", **settings):  # noqa: ANN001, ANN201
        return JointsVectorEnv(num_envs, domain=domain, **settings)

    def make_single(self, *, domain="real", **settings):  # noqa: ANN001, ANN201
        return JointsEnv(domain=domain, **settings)

    def demonstrate(self, env, behaviour, *, seed, task, rng, split="seen", act=None):  # noqa: ANN001, ANN201
        seen, info = env.reset(seed=seed, options={"task": task})
        shown, told, actions = [seen], [info], []
        for step in range(6):
            push = {"eager": 1.0, "lazy": 0.2}.get(behaviour, 0.0)
            action = act(seen, step) if act else np.full(JOINTS, push * goal(task), np.float32)
            seen, _, _, _, info = env.step(action)
            shown.append(seen)
            told.append(info)
            actions.append(np.asarray(action, np.float32))
        return Episode(
            frames=np.stack([s["image"] for s in shown]), actions=np.stack(actions),
            state=np.stack([s["state"] for s in shown]), instruction=seen["instruction"],
            success=np.array([i["success"] for i in told]),
            progress=np.array([i["progress"] for i in told], np.float32),
            domain="real", split=split, task=task,
            provenance={"behaviour": behaviour, "seed": seed},
        )  # fmt: skip


class JointsState(NamedTuple):
    states: Tensor
    keys: Tensor

    @property
    def batch_size(self) -> int:
        return len(self.states)


class JointsWorldModel:
    """The suite's own physics and pictures; it must be given the wrist's frames, and remembers that it was."""

    specs, action_dim, state_dim, image_size = SPECS, JOINTS, JOINTS, 20

    def __init__(self) -> None:
        self.given: list[dict[str, tuple[int, ...]]] = []

    def begin(self, frames, actions, generator=None, *, states=None, views):  # noqa: ANN001, ANN201
        self.given.append({name: tuple(view.shape) for name, view in views.items()})
        return JointsState(states[:, -1].float(), torch.randint(2**62, (len(frames),), generator=generator))

    def step(self, state, actions, *, decode="all"):  # noqa: ANN001, ANN201
        path = []
        q = state.states
        for k in range(actions.shape[1]):
            q = (q + STEP * actions[:, k]).clamp(-2, 2)
            path.append(q)
        every = torch.stack(path, 1)
        shown = every if decode == "all" else every[:, -1:]
        films = {
            camera.name: torch.from_numpy(
                np.stack([[picture(q.numpy(), camera) for q in row] for row in shown])
            )
            for camera in SPECS.observation.cameras
        }
        main = films.pop("front")
        latents, zero = every[..., None, None], torch.zeros(len(q))
        return state._replace(states=q), Imagined(main, latents, every, zero, views=films)

    def fork(self, state, index):  # noqa: ANN001, ANN201
        return JointsState(state.states[index], state.keys[index])

    def merge(self, state, rows, other):  # noqa: ANN001, ANN201
        return JointsState(*(a.index_copy(0, rows, b) for a, b in zip(state, other, strict=True)))

    def observe(self, state, frames, views):  # noqa: ANN001, ANN201
        return state


class NoJudge:
    """Sees main frames only; nothing is a success."""

    name = "no"

    def score(self, frames, instructions):  # noqa: ANN001, ANN201
        assert frames.shape[-3:] == (20, 32, 3)
        return Judgement(torch.zeros(len(frames)), None, torch.ones(len(frames), dtype=torch.bool))


def starts(count: int = 5) -> ArrayStarts:
    rng = np.random.default_rng(0)
    q = rng.uniform(-0.5, 0.5, (count, JOINTS)).astype(np.float32)
    front, wrist = (np.stack([picture(row, camera) for row in q]) for camera in SPECS.observation.cameras)
    tasks = [TASKS[i % 2] for i in range(count)]
    return ArrayStarts(front, [f"{task} the arm" for task in tasks], q, tasks, views={"wrist": wrist})
