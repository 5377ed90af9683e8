"""One off-screen renderer per process, shared by every tabletop in it.

Why one: a second GL context in the same process has produced garbage frames with software GL, and the
scene has no textures or meshes, so one context draws every variant of it. Frames are drawn at twice the
asked size and averaged: 2x2 supersampling costs a third of what 4x MSAA costs in software and keeps
sub-pixel positions readable at 64 px.

Example::

    from envs.tabletop.render import shared_renderer
    frame = shared_renderer().draw(model, data, size=64)  # (64, 64, 3) uint8
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING

import mujoco
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_SIZE = 256


class OffscreenRenderer:
    """Draws the `front` camera of a tabletop model.

    Raises:
        RuntimeError: when no GL context can be made; the message names the Debian packages.
    """

    def __init__(self) -> None:
        try:
            self._gl = mujoco.GLContext(2 * MAX_SIZE, 2 * MAX_SIZE)
            self._gl.make_current()
        except Exception as error:  # mujoco raises whatever its GL loader raised
            raise RuntimeError(
                f"no off-screen GL context with MUJOCO_GL={os.environ.get('MUJOCO_GL')!r} ({error}). On Debian or "
                "Ubuntu: apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri, then run again with MUJOCO_GL=egl"
            ) from error
        self._context: mujoco.MjrContext | None = None
        self._scene: mujoco.MjvScene | None = None
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = 0
        self._perturb = mujoco.MjvPerturb()

    def draw(self, model: mujoco.MjModel, data: mujoco.MjData, size: int = 64) -> NDArray[np.uint8]:
        """Return `(size, size, 3)` uint8; `size` in 16..256 pixels."""
        if not 16 <= size <= MAX_SIZE:
            raise ValueError(f"image_size must be in 16..{MAX_SIZE} pixels, got {size}")
        if self._context is None or self._scene is None:
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
            self._scene = mujoco.MjvScene(model, maxgeom=128)
            for flag in ("SHADOW", "REFLECTION", "SKYBOX", "HAZE", "FOG"):
                self._scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0
        mujoco.mjv_updateScene(
            model,
            data,
            self._option,
            self._perturb,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL.value,
            self._scene,
        )
        full = 2 * size
        pixels = np.empty((full, full, 3), np.uint8)
        view = mujoco.MjrRect(0, 0, full, full)
        mujoco.mjr_render(view, self._scene, self._context)
        mujoco.mjr_readPixels(pixels, None, view, self._context)
        total = pixels[0::2, 0::2].astype(np.uint16)
        total += pixels[1::2, 0::2]
        total += pixels[0::2, 1::2]
        total += pixels[1::2, 1::2]
        return np.ascontiguousarray(((total + 2) >> 2).astype(np.uint8)[::-1])  # GL's origin is at the bottom


@lru_cache(maxsize=1)
def shared_renderer() -> OffscreenRenderer:
    """The process's only renderer."""
    return OffscreenRenderer()
