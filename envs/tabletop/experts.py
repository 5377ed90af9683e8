"""Scripted experts: reactive controllers on the true state, one per task.

An expert computes its action from the current state at every step, so it recovers after noise. The same expert
therefore makes demonstrations, noisy episodes and near misses. `Offsets` displaces the positions of grasping, placing
or stopping. With an offset of 4-7 cm an expert makes the near misses that a world model and a judge must distinguish
from successes.

Example::

    action = expert_action(simulation.scene, simulation.privileged())  # (4,) float32 in [-1, 1]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.tabletop.scene import (
    BUTTON_X,
    BUTTON_Y,
    DRAWER_X,
    DRAWER_Y,
    MAX_DELTA,
    TRAY_HALF,
    WORKSPACE_HIGH,
)
from envs.tabletop.tasks import RELEASED, Scene, Truth

HOVER = 0.115  # hand height at which the fingers and a carried object are above all obstacles
GRASP_Z = 0.020
OPEN, CLOSE = 1.0, -1.0


@dataclass(frozen=True)
class Offsets:
    """Errors of an expert in metres: offset of the grasp or touch, offset of the release, and stopping short."""

    grasp: tuple[float, float] = (0.0, 0.0)
    place: tuple[float, float] = (0.0, 0.0)
    short: float = 0.0  # distance from the goal at which a push, pull or press ends


def _go(hand: NDArray, goal: NDArray, grip: float) -> NDArray[np.float32]:
    a = np.empty(4, np.float32)
    a[:3] = np.clip((goal - hand) / MAX_DELTA, -1, 1)
    a[3] = grip
    return a


def _over(
    s: Truth, xy: NDArray, z: float, grip: float, near: float = 0.02, hover: float = HOVER
) -> NDArray[np.float32]:
    """Move at hover height to `xy`, then descend to `z`."""
    away = float(np.linalg.norm(s.hand[:2] - xy))
    if away > near:
        # Rise before moving sideways, unless the hand is already high or close.
        if s.hand[2] < hover - 0.03 and away > 0.03:
            return _go(s.hand, np.array([*s.hand[:2], hover]), grip)
        return _go(
            s.hand, np.array([*xy, max(hover, min(s.hand[2], 0.15)) if away > 0.03 else s.hand[2]]), grip
        )
    return _go(s.hand, np.array([*xy, z]), grip)


def _holding(s: Truth, slot: int) -> bool:
    obj = s.objects[slot]
    return (
        s.opening < RELEASED - 0.015
        and s.opening > 0.04
        and bool(np.linalg.norm(s.hand[:2] - obj[:2]) < 0.035)
        and s.hand[2] < obj[2] + 0.02
    )


def _reach(scene: Scene, s: Truth, o: Offsets) -> NDArray[np.float32]:
    goal = s.objects[scene.target][:2] + np.array(o.grasp)
    return _over(s, goal, 0.055, OPEN, near=0.025)


def _push(scene: Scene, s: Truth, o: Offsets) -> NDArray[np.float32]:
    # The open hand descends over the object and moves sideways: the rear finger pushes, both fingers cage the object.
    sign = 1.0 if scene.side == "right" else -1.0
    obj = s.objects[scene.target]
    goal_x = sign * (0.165 - o.short)
    if sign * obj[0] > sign * goal_x - 0.002:
        return _go(s.hand, np.array([s.hand[0], s.hand[1], HOVER]), OPEN)
    grasp = obj[:2] + np.array(o.grasp)
    caged = abs(s.hand[1] - grasp[1]) < 0.025 and -0.05 < sign * (s.hand[0] - grasp[0]) < 0.055
    if s.hand[2] < 0.04 and caged:
        return _go(s.hand, np.array([sign * WORKSPACE_HIGH[0], s.hand[1], 0.022]), OPEN)
    return _over(s, grasp, 0.022, OPEN, near=0.02)


def _carry(scene: Scene, s: Truth, o: Offsets, goal: NDArray, z: float) -> NDArray[np.float32]:
    obj = s.objects[scene.target]
    goal = goal + np.array(o.place)
    if _holding(s, scene.target):
        offset = s.hand[:2] - obj[:2]
        if np.linalg.norm(obj[:2] - goal) < 0.016:
            if s.hand[2] > z + 0.012:
                return _go(s.hand, np.array([*(goal + offset), z]), CLOSE)
            return _go(s.hand, s.hand, OPEN)
        clear = max(HOVER, z + 0.03)
        if s.hand[2] < clear - 0.045:
            return _go(s.hand, np.array([*s.hand[:2], clear + 0.02]), CLOSE)
        return _go(s.hand, np.array([*(goal + offset), clear]), CLOSE)
    if np.linalg.norm(obj[:2] - goal) < 0.03:  # released at the goal: move straight up
        return _go(s.hand, np.array([*s.hand[:2], max(HOVER, z + 0.08)]), OPEN)
    grasp = obj[:2] + np.array(o.grasp)
    if s.hand[2] < GRASP_Z + 0.014 and np.linalg.norm(s.hand[:2] - grasp) < 0.02:
        return _go(s.hand, s.hand, CLOSE)
    return _over(s, grasp, GRASP_Z, OPEN, near=0.014)


def _pick_place(scene: Scene, s: Truth, o: Offsets) -> NDArray[np.float32]:
    tray = np.array(scene.tray)
    obj = s.objects[scene.target]
    inside = np.all(np.abs(obj[:2] - tray) < TRAY_HALF - 0.015) and obj[2] < 0.06
    if inside and s.opening > RELEASED:
        return _go(s.hand, np.array([*s.hand[:2], HOVER]), OPEN)
    return _carry(scene, s, o, tray, 0.045)


def _stack(scene: Scene, s: Truth, o: Offsets) -> NDArray[np.float32]:
    return _carry(scene, s, o, s.objects[scene.base][:2], 0.020 + 0.068)


def _handle_y(s: Truth) -> float:
    return DRAWER_Y - 0.035 - 0.02 - s.drawer


def _open_drawer(scene: Scene, s: Truth, o: Offsets) -> NDArray[np.float32]:
    grasp = np.array([DRAWER_X + o.grasp[0], _handle_y(s)])
    if s.drawer > 0.072 - o.short:
        return _go(s.hand, np.array([*s.hand[:2], HOVER]), OPEN)
    closed = s.opening < RELEASED
    at = np.linalg.norm(s.hand[:2] - grasp) < 0.025 and s.hand[2] < 0.075
    if at and closed:
        return _go(s.hand, np.array([s.hand[0], s.hand[1] - 0.05, 0.055]), CLOSE)
    if at:
        return _go(s.hand, s.hand, CLOSE)
    return _over(s, grasp, 0.055, OPEN, near=0.016)


def _close_drawer(scene: Scene, s: Truth, o: Offsets) -> NDArray[np.float32]:
    if s.drawer < 0.006 + o.short:
        return _go(s.hand, np.array([*s.hand[:2], HOVER]), CLOSE)
    front = np.array([DRAWER_X + o.grasp[0], _handle_y(s) - 0.05])
    if s.hand[2] < 0.06 and abs(s.hand[0] - front[0]) < 0.03 and s.hand[1] < _handle_y(s):
        return _go(s.hand, np.array([front[0], s.hand[1] + 0.05, 0.045]), CLOSE)
    return _over(s, front, 0.045, CLOSE, near=0.016)


def _press_button(scene: Scene, s: Truth, o: Offsets) -> NDArray[np.float32]:
    if s.lamp:
        return _go(s.hand, np.array([*s.hand[:2], HOVER]), CLOSE)
    return _over(
        s,
        np.array([BUTTON_X + o.grasp[0], min(BUTTON_Y, 0.19) + o.grasp[1]]),
        0.01 + o.short,
        CLOSE,
        near=0.016,
    )


_EXPERTS = {
    "reach": _reach,
    "push": _push,
    "pick_place": _pick_place,
    "stack": _stack,
    "open_drawer": _open_drawer,
    "close_drawer": _close_drawer,
    "press_button": _press_button,
}


def expert_action(scene: Scene, truth: Truth, offsets: Offsets | None = None) -> NDArray[np.float32]:
    """The expert's action (4,) float32 in [-1, 1] for the task of `scene`, with the errors `offsets`."""
    return _EXPERTS[scene.task](scene, truth, offsets or Offsets())
