"""The tabletop's MuJoCo model: geometric primitives, sized so that success is visible at 64 px.

A world model at 64 px blurs distances of one or two pixels, so the distances that determine success must be larger.
Objects are 6 cm (7.5 px) wide. The open gripper is 13 cm wide and its fingers are 6.4 cm deep, so that an object within
3.5 cm (more than 4 px) of the hand is caged and from then on moves with the hand, pushed or grasped. Zones and the tray
exceed an object by more than 4 px on each side. The front camera sees the whole workspace.

Frames: x to the right of the image, y away from the camera, z up; metres. The gripper's position is the
point between its finger tips.

Example::

    from envs.tabletop.scene import Physics, build_model
    model = build_model(Physics())
    model.nq, model.nu  # generalized coordinates and actuators
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from envs.engine import mujoco
from envs.gap import within

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.10, 0.10),
    "green": (0.10, 0.65, 0.15),
    "blue": (0.10, 0.25, 0.90),
    "yellow": (0.95, 0.85, 0.05),
    "purple": (0.60, 0.12, 0.70),
    "cyan": (0.05, 0.80, 0.85),
}
SHAPES = ("cube", "cylinder", "ball")
SLOT_SHAPES = ("cube", "cylinder", "ball", "cube")  # the fourth slot is a distractor of `unseen_scene`
HALF_HEIGHT = {"cube": 0.030, "cylinder": 0.030, "ball": 0.031}

WORKSPACE_LOW = np.array([-0.22, -0.17, 0.006])
WORKSPACE_HIGH = np.array([0.22, 0.19, 0.17])
MAX_DELTA = 0.06  # metres per step at action 1
FINGER_TRAVEL = 0.06  # travel of each finger, metres
OPEN_WIDTH = 2 * FINGER_TRAVEL + 0.01
ZONE_X = 0.135  # |x| beyond which an object counts as inside the left or right zone
TRAY_HALF = 0.070
TRAY_RIM = 0.004  # half the height of the tray's rim: visible, but too low for an object to tip over it
DRAWER_TRAVEL = 0.08
BUTTON_TRAVEL = 0.016
DRAWER_X, DRAWER_Y = -0.115, 0.245
BUTTON_X, BUTTON_Y = 0.14, 0.215
WRIST_CAMERA, WRIST_LOOK = (0.0, -0.10, 0.15), (0.0, 0.01, 0.0)  # position and target, relative to the point between the finger tips


@dataclass(frozen=True)
class Physics:
    """Parameters of dynamics and appearance. The defaults are those of Real; Soft has other values.

    Args:
        gain: metres moved per commanded metre.
        latency: fraction in [0, 1) of the previous command that is still executed.
        friction: sliding friction of objects; the fingers have three times this value.
        damping: damping of free objects, N s/m.
        mass: mass of an object, kg.
        bias: constant drift of the hand, metres per step, (3,).
        rotation: hand-eye rotation about z, degrees.
        camera_shift: shift of the front camera, metres, (3,).
        light: factor of the light intensity.
        tint: added to the table's colour, (3,).
    """

    gain: float = 1.0
    latency: float = 0.0
    friction: float = 0.9
    damping: float = 0.5
    mass: float = 0.12
    bias: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rotation: float = 0.0
    camera_shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    light: float = 1.0
    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def softened(self, gap: float, looks: float | None = None) -> Physics:
        """Physics of Soft, a misspecified software simulator such as a lab would have.

        Args:
            gap: misspecification of the dynamics, in [0, 1]; 0 is identical to Real.
            looks: misspecification of camera, light and colour, in [0, 1]; None for the value of `gap`.

        Raises:
            ValueError: `gap` or `looks` is outside [0, 1].
        """
        g, v = within("gap", gap), within("looks", gap if looks is None else looks)
        return replace(
            self,
            gain=1.0 - 0.35 * g,
            latency=0.35 * g,
            friction=self.friction * (1 - 0.6 * g),
            damping=self.damping * (1 + 6 * g),
            mass=self.mass * (1 + 2 * g),
            bias=(0.004 * g, -0.003 * g, 0.002 * g),
            rotation=18.0 * g,
            camera_shift=(0.05 * v, -0.03 * v, 0.05 * v),
            light=1.0 - 0.3 * v,
            tint=(0.10 * v, -0.05 * v, -0.12 * v),
        )

    def randomised(self, width: float, rng: np.random.Generator) -> Physics:
        """Draw physics around these values: domain randomisation (Tobin et al. 2017; Peng et al. 2018).

        Args:
            width: in [0, 1]; at 1 every parameter varies by as much as `softened(1)` changes it, in both directions.
            rng: random generator of the draw.

        Raises:
            ValueError: `width` is outside [0, 1].
        """
        within("randomise", width)

        def around(spread: float, size: int | None = None) -> Any:
            return width * spread * rng.uniform(-1, 1, size)

        def moved(value: tuple[float, ...], spread: float) -> tuple[float, float, float]:
            x, y, z = np.asarray(value) + around(spread, 3)
            return float(x), float(y), float(z)

        return replace(
            self,
            gain=float(self.gain * (1 + around(0.35))),
            latency=float(np.clip(self.latency + around(0.35), 0, 0.7)),
            friction=float(self.friction * (1 + around(0.6))),
            damping=float(self.damping * 7 ** around(1)),
            mass=float(self.mass * 3 ** around(1)),
            bias=moved(self.bias, 0.004),
            rotation=float(self.rotation + around(18)),
            camera_shift=moved(self.camera_shift, 0.05),
            light=float(self.light * (1 + around(0.3))),
            tint=moved(self.tint, 0.12),
        )


def _object_xml(i: int, shape: str, p: Physics) -> str:
    size = {"cube": "0.030 0.030 0.030", "cylinder": "0.031 0.030", "ball": "0.031"}[shape]
    kind = {"cube": "box", "cylinder": "cylinder", "ball": "sphere"}[shape]
    return f"""
    <body name="object{i}" pos="0 0 -1">
      <joint name="object{i}" type="free" />
      <geom name="object{i}" type="{kind}" size="{size}" mass="{p.mass}" friction="{p.friction} 0.02 0.01"
            condim="{6 if shape == "ball" else 4}" rgba="0.5 0.5 0.5 1"/>
    </body>"""


def table_rgba(p: Physics) -> np.ndarray:
    """Colour `(4,)` in [0, 1] of the table in scenes without a dark table."""
    return np.append(np.clip(np.array([0.78, 0.74, 0.68]) + p.tint, 0, 1), 1.0)


def _axes(camera: np.ndarray, look: np.ndarray) -> str:
    """MuJoCo's `xyaxes` of a camera at position `camera (3,)` that points at `look (3,)`."""
    back = camera - look
    back /= np.linalg.norm(back)
    right = np.cross([0, 0, 1.0], back)
    right /= np.linalg.norm(right)
    up = np.cross(back, right)
    return " ".join(f"{v:.6f}" for v in (*right, *up))


def _xml(p: Physics) -> str:
    cam = np.array([0.0, -0.40, 0.56]) + np.array(p.camera_shift)
    axes = _axes(cam, np.array([0.0, 0.035, 0.03]))
    table = table_rgba(p)
    objects = "".join(_object_xml(i, s, p) for i, s in enumerate(SLOT_SHAPES))
    lit = 0.42 * p.light
    tray_walls = "".join(
        f'<geom type="box" pos="{x} {y} {TRAY_RIM}" size="{sx} {sy} {TRAY_RIM}" rgba="0.25 0.16 0.10 1"/>'
        for x, y, sx, sy in (
            (TRAY_HALF, 0, 0.004, TRAY_HALF + 0.004),
            (-TRAY_HALF, 0, 0.004, TRAY_HALF + 0.004),
            (0, TRAY_HALF, TRAY_HALF, 0.004),
            (0, -TRAY_HALF, TRAY_HALF, 0.004),
        )
    )
    return f"""
<mujoco model="tabletop">
  <option timestep="0.00625" integrator="implicitfast" cone="elliptic" impratio="3" iterations="40"
          ls_iterations="10" gravity="0 0 -9.81"/>
  <size memory="2M"/>
  <visual>
    <headlight ambient="{lit} {lit} {lit}" diffuse="{lit} {lit} {lit}" specular="0 0 0"/>
    <quality shadowsize="0" offsamples="0" numslices="16" numstacks="12"/>
    <global offwidth="512" offheight="512"/>
    <map znear="0.02" zfar="10"/>
  </visual>
  <worldbody>
    <light pos="0.3 -0.3 1.2" dir="-0.25 0.25 -1" diffuse="{lit * 0.7} {lit * 0.7} {lit * 0.7}" specular="0 0 0" castshadow="false"/>
    <camera name="front" pos="{cam[0]} {cam[1]} {cam[2]}" xyaxes="{axes}" fovy="46"/>
    <geom name="table" type="plane" size="1 1 0.05" rgba="{table[0]} {table[1]} {table[2]} 1" friction="{p.friction} 0.02 0.01"/>
    <geom name="zone_left" type="box" pos="-0.195 -0.03 0.0002" size="0.06 0.145 0.0004" rgba="0.52 0.62 0.74 1" contype="0" conaffinity="0"/>
    <geom name="zone_right" type="box" pos="0.195 -0.03 0.0002" size="0.06 0.145 0.0004" rgba="0.66 0.54 0.66 1" contype="0" conaffinity="0"/>
    <body name="tray" mocap="true" pos="0 0 0">
      <geom type="box" pos="0 0 0.001" size="{TRAY_HALF} {TRAY_HALF} 0.001" rgba="0.97 0.97 0.97 1"/>
      {tray_walls}
    </body>
    <body name="cabinet" pos="{DRAWER_X} {DRAWER_Y} 0">
      <geom type="box" pos="0 0.02 0.03" size="0.07 0.05 0.03" rgba="0.45 0.32 0.20 1"/>
      <body name="drawer" pos="0 -0.035 0.025">
        <joint name="drawer" type="slide" axis="0 -1 0" range="0 {DRAWER_TRAVEL}" damping="6" frictionloss="0.8"/>
        <geom type="box" pos="0 0 0" size="0.06 0.012 0.022" mass="0.2" rgba="0.70 0.52 0.32 1"/>
        <geom name="handle" type="box" pos="0 -0.02 0.012" size="0.022 0.009 0.036" mass="0.02" rgba="0.10 0.10 0.10 1"/>
      </body>
    </body>
    <body name="button_base" pos="{BUTTON_X} {BUTTON_Y} 0">
      <geom type="cylinder" pos="0 0 0.012" size="0.042 0.012" rgba="0.30 0.30 0.33 1"/>
      <body name="button" pos="0 0 0.024">
        <joint name="button" type="slide" axis="0 0 -1" range="0 {BUTTON_TRAVEL}" stiffness="60" damping="2"/>
        <geom name="button" type="cylinder" pos="0 0 0.012" size="0.032 0.014" mass="0.03" rgba="0.95 0.45 0.05 1"/>
      </body>
    </body>
    <geom name="lamp" type="box" pos="{BUTTON_X - 0.085} {BUTTON_Y + 0.03} 0.02" size="0.02 0.02 0.02" rgba="0.15 0.15 0.15 1"/>
    <body name="hand" pos="0 0 0" gravcomp="1">
      <joint name="hand_x" type="slide" axis="1 0 0" range="-0.25 0.25" damping="2"/>
      <joint name="hand_y" type="slide" axis="0 1 0" range="-0.2 0.25" damping="2"/>
      <joint name="hand_z" type="slide" axis="0 0 1" range="0.002 0.25" damping="2"/>
      <camera name="wrist" pos="{WRIST_CAMERA[0]} {WRIST_CAMERA[1]} {WRIST_CAMERA[2]}" xyaxes="{_axes(np.array(WRIST_CAMERA), np.array(WRIST_LOOK))}" fovy="68"/>
      <geom name="palm" type="box" pos="0 0 0.082" size="0.084 0.014 0.008" mass="0.5" rgba="0.20 0.20 0.24 1"/>
      <geom name="wrist" type="cylinder" pos="0 0 0.105" size="0.016 0.016" mass="0.1" rgba="0.55 0.55 0.60 1"/>
      <body name="finger_left" pos="-0.005 0 0" gravcomp="1">
        <joint name="finger_left" type="slide" axis="-1 0 0" range="0 {FINGER_TRAVEL}" damping="3"/>
        <geom name="finger_left" type="box" pos="-0.008 0 0.036" size="0.008 0.032 0.036" mass="0.08" friction="{p.friction * 3} 0.1 0.01" condim="4" rgba="0.20 0.20 0.24 1"/>
      </body>
      <body name="finger_right" pos="0.005 0 0" gravcomp="1">
        <joint name="finger_right" type="slide" axis="1 0 0" range="0 {FINGER_TRAVEL}" damping="3"/>
        <geom name="finger_right" type="box" pos="0.008 0 0.036" size="0.008 0.032 0.036" mass="0.08" friction="{p.friction * 3} 0.1 0.01" condim="4" rgba="0.20 0.20 0.24 1"/>
      </body>
    </body>
    {objects}
  </worldbody>
  <actuator>
    <position joint="hand_x" kp="700" kv="44" forcerange="-35 35"/>
    <position joint="hand_y" kp="700" kv="44" forcerange="-35 35"/>
    <position joint="hand_z" kp="700" kv="44" forcerange="-35 35"/>
    <position joint="finger_left" kp="160" kv="8" forcerange="-4 4"/>
    <position joint="finger_right" kp="160" kv="8" forcerange="-4 4"/>
  </actuator>
  <contact>
    <exclude body1="finger_left" body2="finger_right"/>
    <exclude body1="cabinet" body2="drawer"/>
    <exclude body1="button_base" body2="button"/>
  </contact>
</mujoco>"""


@lru_cache(maxsize=128)  # more than the 64 variants of domain randomisation
def build_model(physics: Physics) -> mujoco.MjModel:
    """Compile the model; equal `Physics` share one model object, which is never resized, within a process."""
    model = mujoco.MjModel.from_xml_string(_xml(physics))
    for i in range(len(SLOT_SHAPES)):
        # With damping a released object stops within one step, so that a single frame shows the complete state.
        first = int(model.joint(f"object{i}").dofadr[0])
        model.dof_damping[first : first + 3] = physics.damping
        model.dof_damping[first + 3 : first + 6] = physics.damping * 0.004
    return model
