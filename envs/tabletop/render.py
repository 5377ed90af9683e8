"""One off-screen renderer per process, shared by every tabletop and every thread in it.

Why one: a second GL context in the same process has produced garbage frames with software GL, and the
scene has no textures or meshes, so one context draws every variant of it. Why a lock: a context is current in one
thread; drawn from another one, pictures are black without a word. So each drawing makes the context current and gives
it back, at a cost within the noise of the drawing. A forked child gets a renderer of its own.

Frames are drawn at twice the asked size and averaged: 2x2 supersampling costs a third of what 4x MSAA costs in
software and keeps sub-pixel positions readable at 64 px.

Example::

    from envs.tabletop.render import drawing, shared_renderer
    with drawing():                                            # no other thread draws or colours the model meanwhile
        frame = shared_renderer().draw(model, data, size=64)   # (64, 64, 3) uint8
"""

from __future__ import annotations

import os
import threading
from functools import lru_cache
from typing import TYPE_CHECKING

import mujoco
import numpy as np

from worldgym.errors import RenderingError
from worldgym.utils.gl import REMEDY, open_context

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_SIZE = 256
_lock = threading.RLock()


class OffscreenRenderer:
    """Draws the `front` camera of a tabletop model.

    Raises:
        RenderingError: when no GL context can be made; the message names the cause and what to type.
    """

    def __init__(self) -> None:
        self._gl = open_context(2 * MAX_SIZE, 2 * MAX_SIZE)
        self._context: mujoco.MjrContext | None = None
        self._scene: mujoco.MjvScene | None = None
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = 0
        self._perturb = mujoco.MjvPerturb()

    def draw(self, model: mujoco.MjModel, data: mujoco.MjData, size: int = 64) -> NDArray[np.uint8]:
        """Return `(size, size, 3)` uint8; `size` in 16..256 pixels. Any thread may call.

        Raises:
            ValueError: another size.
            RenderingError: the driver fails.
        """
        if not 16 <= size <= MAX_SIZE:
            raise ValueError(f"image_size must be in 16..{MAX_SIZE} pixels, got {size}")
        with _lock, self._gl:
            try:
                return self._draw(model, data, size)
            except mujoco.FatalError as error:
                raise RenderingError(f"MuJoCo can't draw: {error}. {REMEDY}") from error

    def _draw(self, model: mujoco.MjModel, data: mujoco.MjData, size: int) -> NDArray[np.uint8]:
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


def drawing() -> threading.RLock:
    """The lock of everything that is drawn in this process; hold it while a shared model is coloured and drawn."""
    return _lock  # type: ignore[return-value]


@lru_cache(maxsize=1)
def shared_renderer() -> OffscreenRenderer:
    """The process's only renderer."""
    return OffscreenRenderer()


def _after_fork() -> None:
    """A child has none of the parent's drawing threads: it starts with a lock and a context of its own."""
    global _lock
    _lock = threading.RLock()
    shared_renderer.cache_clear()


os.register_at_fork(after_in_child=_after_fork)
