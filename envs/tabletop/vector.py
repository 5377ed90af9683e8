"""The tabletop as a Gymnasium vector environment. The single environment `TabletopEnv` wraps it with a batch of one.

Task Description
    A two-finger hand on Cartesian axes, a cube, a cylinder and a ball of different colours, a tray, two zones,
    a drawer and a button. An English instruction describes the task: reach, push, pick and place, stack, open or
    close the drawer, press the button. `domain="real"` stands in for the robot; `domain="soft", gap=g` is the
    misspecified software simulator of a lab (g = 0 is identical to Real).
Randomizations
    Colours, positions, tray, hand, paraphrase; fully determined by (seed, task, split).
Success Conditions
    See `envs.tabletop.tasks.judge_truth`. All of them are visible in a 64 px frame of the front camera.

Example::

    import gymnasium as gym, worldgym
    envs = gym.make_vec("worldgym/Tabletop-v0", num_envs=4)
    obs, info = envs.reset(seed=0)
    obs, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from envs.sizes import ImageSize, height_width
from envs.tabletop.grammar import TASKS
from envs.tabletop.scene import Physics
from envs.tabletop.simulation import Simulation
from envs.tabletop.specs import CAMERAS, STATE_HIGH, STATE_LOW, tabletop_specs
from envs.tabletop.tasks import SPLITS, Scene, draw_scene
from worldgym.imagination import observations
from worldgym.imagination.observations import InstructionMode
from worldgym.imagination.slot_env import SlotVectorEnv, Status
from worldgym.specs import Camera

MAGIC = b"WGTT1"
VARIANTS = 64  # number of different physics in domain randomisation


def observation_space(
    image_size: ImageSize = CAMERAS["front"],
    instruction: InstructionMode = "text",
    cameras: Sequence[str] = ("front",),
) -> spaces.Dict:
    """Observation space of one slot.

    Images (H,W,3) u8, the instruction as text or as a sentence embedding (384,) f32, and the state (4,) f32: hand x, y,
    z and finger opening, in metres.
    """
    spec = tabletop_specs(cameras, image_size).observation
    return observations.observation_space(spec, instruction, STATE_LOW, STATE_HIGH)


class TabletopVectorEnv(SlotVectorEnv):
    """N tabletops in one process, rendered by one renderer.

    Args:
        num_envs: number of slots, i.e. parallel environments.
        domain: `"real"` or `"soft"`.
        gap: misspecification of the dynamics of `"soft"`, in [0, 1].
        looks: misspecification of the camera, light and colours of `"soft"`, in [0, 1]; None for the value of `gap`.
        randomise: width of domain randomisation in `"soft"`, in [0, 1]. Each episode draws dynamics and appearance
            around those of `gap` and `looks`, from 64 variants, because each variant has to be compiled.
        task: one of the seven tasks, or None for a random one per episode.
        split: split of start states and instructions.
        cameras: `"front"`, `"wrist"` or both; observations of the first one have the key `image`, of a second one
            `image_<name>`.
        image_size: size of the front camera in pixels, 16..256, one number or (height, width).
        wrist_size: size of the wrist camera.
        **settings: horizon (steps of 0.2 s), max_episode_steps, chunk, flat_actions, terminate_on_success, render_mode,
            autoreset_mode, instruction as in `SlotVectorEnv`.

    Raises:
        ConfigError: an unknown camera, or an invalid size.
        ValueError: another invalid setting.
    """

    option_names = ("task", "split", "instruction", "state", "scene")

    def __init__(
        self,
        num_envs: int = 1,
        *,
        domain: Literal["real", "soft"] = "real",
        gap: float = 0.0,
        looks: float | None = None,
        randomise: float = 0.0,
        task: str | None = None,
        split: str = "seen",
        cameras: Sequence[str] = ("front",),
        image_size: ImageSize = CAMERAS["front"],
        wrist_size: ImageSize = CAMERAS["wrist"],
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **settings: Any,
    ) -> None:
        if domain not in ("real", "soft"):
            raise ValueError(f"unknown domain {domain!r}; expected 'real' or 'soft'")
        if domain == "real" and (gap != 0.0 or looks is not None or randomise != 0.0):
            raise ValueError(
                f"gap={gap}, looks={looks}, randomise={randomise} need domain='soft'; domain='real' has no gap"
            )
        if task is not None and task not in TASKS:
            raise ValueError(f"unknown task {task!r}; known tasks: {', '.join(TASKS)}")
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; known splits: {', '.join(SPLITS)}")
        super().__init__(
            tabletop_specs(cameras, image_size, wrist_size),
            num_envs,
            domain=domain,
            autoreset_mode=autoreset_mode,
            state_low=STATE_LOW,
            state_high=STATE_HIGH,
            **settings,
        )
        self.gap, self.looks, self.randomise, self.task, self.split = gap, looks, randomise, task, split
        self.image_size = height_width(image_size)
        self._physics = Physics().softened(gap, looks)
        self._physics.randomised(randomise, np.random.default_rng(0))  # raises a ValueError for an invalid width
        self._sims = [Simulation(self._physics) for _ in range(num_envs)]
        self._variant = np.zeros(num_envs, np.int64)

    # -- one slot ----------------------------------------------------------------------------------------------------
    def start_slot(self, i: int, seed: int | None, options: dict[str, Any]) -> None:
        """Start an episode from a new scene, or from the scene or state in `options`.

        Args:
            i: index of the slot.
            seed: determines the scene, together with task and split; None draws it from the slot's generator.
            options: `task`, `split`, `instruction` (text), `state` (bytes from `save_state`), `scene` (a `Scene`, or
                the data that `scene()` of the single environment returns).
        """
        rng = self.np_random[i]
        if options.get("state") is not None:
            self._restore_slot(i, options["state"])
        else:
            scene = options.get("scene")
            if scene is None:
                task = options.get("task") or self.task
                scene_seed = int(rng.integers(2**31)) if seed is None else int(seed)
                if task is None:
                    task = TASKS[int(rng.integers(len(TASKS)))]
                scene = draw_scene(scene_seed, task, options.get("split") or self.split)
            if self.randomise:
                self._vary(i, int(rng.integers(VARIANTS)))
            self._sims[i].load(scene if isinstance(scene, Scene) else Scene.from_json(scene))
        if options.get("instruction") is not None:
            self._sims[i].instruction = str(options["instruction"])

    def step_slot(self, i: int, action: NDArray[np.float32]) -> None:
        """Advance slot `i` by 0.2 s with `action (4,)`."""
        self._sims[i].step(action)

    def status_slot(self, i: int) -> Status:
        """Success, progress, state (4,), instruction and task of slot `i`."""
        sim = self._sims[i]
        return Status(*sim.truth(), sim.state(), sim.instruction, sim.scene.task)

    def draw_slot(self, i: int, camera: Camera) -> NDArray[np.uint8]:
        """Render `camera` of slot `i`, `(height, width, 3)` uint8."""
        return self._sims[i].draw(camera.size, camera.name)

    def _vary(self, i: int, variant: int) -> None:
        """Set the physics of slot `i` to one of the variants of domain randomisation."""
        self._variant[i] = variant
        self._sims[i] = Simulation(self._physics.randomised(self.randomise, np.random.default_rng(variant)))

    # -- reading -----------------------------------------------------------------------------------------------------
    def scene(self, i: int = 0) -> Scene:
        """The start state of slot `i`."""
        return self._sims[i].scene

    def simulation(self, i: int = 0) -> Simulation:
        """The simulation of slot `i`; it gives access to the true state, for experts and audits only."""
        return self._sims[i]

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:  # type: ignore[override]
        """Render one `(256, 256, 3)` uint8 frame of the front camera per slot; None without a `render_mode`."""
        return None if self.render_mode is None else tuple(s.draw(256) for s in self._sims)

    # -- saving ------------------------------------------------------------------------------------------------------
    def save_state(self, i: int = 0) -> bytes:
        """The complete state of slot `i` as bytes, which any process can restore bit-exactly."""
        sim = self._sims[i]
        head = json.dumps(
            {
                "scene": sim.scene.to_json(), "instruction": sim.instruction, "steps": int(self._steps[i]),
                "return": float(self._returns[i]), "success_once": bool(self._success_once[i]), "lamp": sim.lamp,
                "rng": self.np_random[i].bit_generator.state, "domain": self.domain, "gap": self.gap,
                "variant": int(self._variant[i]),
            }
        ).encode()  # fmt: skip
        return MAGIC + struct.pack("<I", len(head)) + head + sim.physics_state().tobytes()

    def restore_state(self, state: bytes, i: int = 0) -> None:
        """Restore slot `i`; the following steps are bit-identical to those after `save_state`."""
        self._restore_slot(i, state)
        self._over[i], self._stale[i], self._started = False, True, True

    def _restore_slot(self, i: int, state: bytes) -> None:
        if not isinstance(state, bytes) or state[: len(MAGIC)] != MAGIC:
            raise ValueError("state is not a saved tabletop state; pass the bytes that save_state() returned")
        (n,) = struct.unpack_from("<I", state, len(MAGIC))
        start = len(MAGIC) + 4
        head = json.loads(state[start : start + n])
        if self.randomise:
            self._vary(i, head.get("variant", 0))
        sim = self._sims[i]
        sim.load(Scene.from_json(head["scene"]))
        sim.set_physics_state(np.frombuffer(state[start + n :], np.float64))
        sim.instruction, sim.lamp = head["instruction"], head["lamp"]
        self._steps[i], self._returns[i], self._success_once[i] = (
            head["steps"],
            head["return"],
            head["success_once"],
        )
        self.np_random[i].bit_generator.state = head["rng"]
