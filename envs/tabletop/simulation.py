"""The physics of one tabletop: loads a scene, steps it, renders it and returns its true state and success.

It is separate from the environments, because experts, data collection and audits need the physics without Gymnasium.

Example::

    sim = Simulation(Physics())
    sim.load(draw_scene(seed=0, task="reach"))
    sim.step(np.array([0.5, 0, -1, 1], np.float32))
    success, progress = sim.truth()
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.engine import mujoco
from envs.render import draw
from envs.sizes import ImageSize
from envs.tabletop.scene import (
    BUTTON_TRAVEL,
    COLOURS,
    FINGER_TRAVEL,
    HALF_HEIGHT,
    MAX_DELTA,
    SLOT_SHAPES,
    WORKSPACE_HIGH,
    WORKSPACE_LOW,
    Physics,
    build_model,
    table_rgba,
)
from envs.tabletop.tasks import Scene, Truth, judge_truth

SUBSTEPS = 32  # physics steps of 6.25 ms per environment step: 5 Hz
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION


class Simulation:
    """Simulation of one scene.

    Args:
        physics: parameters of dynamics and appearance.
    """

    def __init__(self, physics: Physics) -> None:
        self.physics = physics
        self.model = build_model(physics)
        self.data = mujoco.MjData(self.model)
        self.instruction = ""
        self.lamp = False
        self.scene: Scene
        m = self.model
        self._hand = np.array([m.joint(f"hand_{axis}").qposadr[0] for axis in "xyz"])
        self._fingers = np.array([m.joint(f"finger_{side}").qposadr[0] for side in ("left", "right")])
        self._objects = [int(m.joint(f"object{i}").qposadr[0]) for i in range(len(SLOT_SHAPES))]
        self._geoms = [int(m.geom(f"object{i}").id) for i in range(len(SLOT_SHAPES))]
        self._drawer, self._button = (
            int(m.joint("drawer").qposadr[0]),
            int(m.joint("button").qposadr[0]),
        )
        self._lamp, self._table = int(m.geom("lamp").id), int(m.geom("table").id)
        # Not read from the model, which is shared: the scene rendered last may have set a dark table.
        self._table_rgba = table_rgba(physics)
        self._previous = np.zeros(4)
        angle = np.deg2rad(physics.rotation)
        self._rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    def load(self, scene: Scene) -> None:
        """Set the state to `scene` and simulate 0.2 s, so that objects settle."""
        self.scene, self.instruction, self.lamp = scene, scene.instruction, False
        d = self.data
        mujoco.mj_resetData(self.model, d)
        for slot, (address, pose) in enumerate(zip(self._objects, scene.positions, strict=True)):
            if pose is None:  # the object of an empty slot is placed far outside the camera's view
                d.qpos[address : address + 7] = (
                    0.6 + 0.2 * slot,
                    -0.9,
                    0.03,
                    1,
                    0,
                    0,
                    0,
                )
                continue
            x, y, yaw = pose
            height = HALF_HEIGHT[SLOT_SHAPES[slot]]
            d.qpos[address : address + 7] = (
                x,
                y,
                height,
                np.cos(yaw / 2),
                0,
                0,
                np.sin(yaw / 2),
            )
        d.mocap_pos[0] = (*scene.tray, 0.0)
        d.qpos[self._hand] = scene.hand
        d.qpos[self._fingers] = FINGER_TRAVEL
        d.qpos[self._drawer] = scene.drawer
        d.ctrl[:3], d.ctrl[3:] = scene.hand, FINGER_TRAVEL
        self._previous = np.zeros(4)
        mujoco.mj_step(self.model, d, SUBSTEPS)
        self._refresh()

    def _refresh(self) -> None:
        # Compute positions from qpos only, so that frames and success are bit-exact after a restore.
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    def step(self, action: NDArray[np.floating]) -> None:
        """Advance 0.2 s under `action` (4,) in [-1, 1]: dx, dy, dz and gripper (> 0 opens)."""
        p, d = self.physics, self.data
        command = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        moved = command.copy()
        moved[:3] = (1 - p.latency) * command[:3] + p.latency * self._previous[:3]
        self._previous = command
        delta = moved[:3] * MAX_DELTA * p.gain
        delta[:2] = self._rotation @ delta[:2]
        goal = np.clip(d.qpos[self._hand] + delta + np.array(p.bias), WORKSPACE_LOW, WORKSPACE_HIGH)
        d.ctrl[:3] = goal
        d.ctrl[3:] = FINGER_TRAVEL if moved[3] > 0 else 0.0
        mujoco.mj_step(self.model, d, SUBSTEPS)
        self._refresh()
        self.lamp = self.lamp or bool(d.qpos[self._button] > 0.7 * BUTTON_TRAVEL)

    def draw(self, size: ImageSize, camera: str = "front") -> NDArray[np.uint8]:
        """Render a camera, `(height, width, 3)` uint8; the pixels are the same in every thread."""
        # Colours belong to the scene but the model is shared, so all colours are set for every frame.
        colours: dict[int, Any] = {}
        for slot, geom in enumerate(self._geoms):
            colour = self.scene.colours[slot]
            colours[geom] = COLOURS[colour] if colour else (0.5, 0.5, 0.5)
        colours[self._lamp] = (0.15, 1.0, 0.25) if self.lamp else (0.15, 0.15, 0.15)
        colours[self._table] = (0.45, 0.52, 0.45, 1.0) if self.scene.dark_table else self._table_rgba
        return draw(self.model, self.data, size, colours, int(self.model.camera(camera).id))

    def state(self) -> NDArray[np.float32]:
        """Proprioception (4,) float32: hand x, y, z and finger opening, metres."""
        q = self.data.qpos
        return np.array([*q[self._hand], q[self._fingers].sum() + 0.01], np.float32)

    def privileged(self) -> Truth:
        """The true state, for experts and audits only."""
        q = self.data.qpos
        objects = np.stack([q[a : a + 3] for a in self._objects]).copy()
        return Truth(
            hand=q[self._hand].copy(),
            opening=float(q[self._fingers].sum() + 0.01),
            objects=objects,
            drawer=float(q[self._drawer]),
            button=float(q[self._button]),
            lamp=self.lamp,
        )

    def truth(self) -> tuple[bool, float]:
        """Current success, and progress in [0, 1], of the scene's task."""
        success, progress = judge_truth(self.scene, self.privileged())
        return bool(success), float(progress)

    def physics_state(self) -> NDArray[np.float64]:
        """MuJoCo's integration state and the last command."""
        out = np.empty(mujoco.mj_stateSize(self.model, _STATE), np.float64)
        mujoco.mj_getState(self.model, self.data, out, _STATE)
        return np.concatenate([out, self._previous])

    def set_physics_state(self, state: NDArray[np.float64]) -> None:
        """Inverse of `physics_state`."""
        n = mujoco.mj_stateSize(self.model, _STATE)
        if state.shape != (n + 4,):
            raise ValueError(
                f"the physics state has shape {state.shape}, expected {(n + 4,)}: it was saved by another version; "
                "start again with reset()"
            )
        mujoco.mj_setState(self.model, self.data, state[:n].copy(), _STATE)
        self._previous = state[n:].copy()
        self._refresh()
