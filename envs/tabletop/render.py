"""The one off-screen renderer of the process, which any thread may draw with.

Why one: the scene has no textures or meshes, so one OpenGL context draws every variant of it, and nothing is left
behind by threads that end. A context belongs to one thread at a time, and the tabletops of one kind share a model whose
colours are set before each drawing; so a lock goes around colouring, drawing and reading, and within it the context is
bound to the calling thread and given back. That costs microseconds of a drawing's millisecond. A forked child opens a
context of its own. Frames are drawn at twice the asked size and averaged: 2x2 supersampling costs a third of what 4x
MSAA costs in software and keeps sub-pixel positions readable at 64 px.

Example::

    from envs.tabletop.render import draw
    frame = draw(model, data, size=64)  # (64, 64, 3) uint8
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from envs.tabletop.engine import mujoco
from envs.tabletop.specs import MAX_SIZE, ImageSize, height_width
from worldgym.errors import RenderingError
from worldgym.utils.gl import imported_without_backend, open_context

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOADER_SECONDS = 10  # setting a renderer up takes a tenth of one
BROKEN = (
    "MuJoCo was imported without a way to draw, something else tried to draw with it and failed, and MuJoCo can't draw "
    "in this process any more. Type: export MUJOCO_GL=egl, and start Python again."
)

_lock = threading.RLock()
_renderer: OffscreenRenderer | None = None
_drawing = False
_ended = False
_broken = False  # MuJoCo's loader of OpenGL is, for as long as the process lives
# Kept, and never touched again: what this process was forked with, and what OpenGL refuses to free.
_inherited: list[OffscreenRenderer] = []
_unfreed: list[OffscreenRenderer] = []


class OffscreenRenderer:
    """Draws the cameras of tabletop models; `draw` of this module sees to threads.

    Raises:
        RenderingError: no OpenGL context can be made; the message names the cause and the remedy.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        self.gl = open_context(2 * MAX_SIZE)
        try:
            self.gl.bind()
            try:
                self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
                mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
            finally:
                self.gl.restore()
        except RenderingError:
            self.gl.close()
            raise
        except Exception as error:  # MuJoCo raises its FatalError, or whatever its OpenGL loader met
            self.gl.close()
            raise RenderingError(
                f"MuJoCo can't set up its renderer on {self.gl.driver}: {error}. "
                "Type: export MUJOCO_GL=egl, and start Python again."
            ) from error
        self._scene = mujoco.MjvScene(model, maxgeom=128)
        for flag in ("SHADOW", "REFLECTION", "SKYBOX", "HAZE", "FOG"):
            self._scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = 0
        self._perturb = mujoco.MjvPerturb()

    def read(
        self, model: mujoco.MjModel, data: mujoco.MjData, height: int, width: int, camera: int = 0
    ) -> NDArray[np.uint8]:
        """Return `(height, width, 3)` uint8 as OpenGL has it, bottom row first."""
        self._camera.fixedcamid = camera
        mujoco.mjv_updateScene(
            model,
            data,
            self._option,
            self._perturb,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL.value,
            self._scene,
        )
        pixels = np.zeros((height, width, 3), np.uint8)  # what is not read must not pass for a picture
        view = mujoco.MjrRect(0, 0, width, height)
        self.gl.bind()
        try:
            mujoco.mjr_render(view, self._scene, self._context)
            mujoco.mjr_readPixels(pixels, None, view, self._context)
            failure, bound = mujoco.mjr_getError(), self.gl.bound()
        except mujoco.FatalError as error:
            raise RenderingError(f"MuJoCo can't draw on {self.gl.driver}: {error}") from error
        finally:
            self.gl.restore()
        # Every picture shows the table, so a row of zeros means that nothing was drawn.
        if failure or not bound or not pixels[height // 2].any():
            raise RenderingError(
                f"{self.gl.driver} drew no picture (OpenGL error {failure:#x}). Draw again; if that fails too, "
                "type: worldgym info"
            )
        return pixels

    def close(self) -> None:
        """Free what OpenGL holds for it."""
        self.gl.bind()
        try:
            self._context.free()
        finally:
            self.gl.close()


def draw(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    size: ImageSize = 64,
    colours: Mapping[int, Sequence[float]] | None = None,
    camera: int = 0,
) -> NDArray[np.uint8]:
    """Draw the state `data` of `model`; the same pixels from any thread.

    Args:
        model: a tabletop's.
        data: its state.
        size: pixels a side, or (height, width), in 16..256.
        colours: geom to RGB or RGBA in [0, 1]; set in `model`, which scenes share, for this drawing.
        camera: number of the camera in the model.

    Returns:
        `(height, width, 3)` uint8.

    Raises:
        ConfigError: `size` is out of range.
        RenderingError: nothing can be drawn here, or nothing was; there is never a black or an old picture instead.
    """
    height, width = height_width(size)
    with _lock:
        pixels = _read(model, data, (2 * height, 2 * width, camera), colours or {})
    total = pixels[0::2, 0::2].astype(np.uint16)
    total += pixels[1::2, 0::2]
    total += pixels[0::2, 1::2]
    total += pixels[1::2, 1::2]
    return np.ascontiguousarray(((total + 2) >> 2).astype(np.uint8)[::-1])  # GL's origin is at the bottom


def driver() -> str:
    """The name of the OpenGL driver that drew, "" before the first drawing."""
    return _renderer.gl.driver if _renderer is not None else ""


def _read(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    view: tuple[int, int, int],
    colours: Mapping[int, Sequence[float]],
) -> NDArray[np.uint8]:
    global _renderer, _drawing
    if _ended:
        raise RenderingError(
            "Python is shutting down: nothing can be drawn any more. Join threads that draw first."
        )
    if _drawing:
        raise RenderingError(
            "a drawing was interrupted by another one of the same thread (a signal handler that draws)"
        )
    _drawing = True
    try:
        if _renderer is None:
            _check_fork()
            if imported_without_backend():
                _check_loader(model)
            _renderer = OffscreenRenderer(model)
        for geom, colour in colours.items():
            model.geom_rgba[geom, : len(colour)] = colour
        return _renderer.read(model, data, *view)
    except RenderingError:
        _discard()  # the next drawing starts from nothing
        raise
    finally:
        _drawing = False


def _discard() -> None:
    global _renderer
    broken, _renderer = _renderer, None
    if broken is not None:
        try:
            broken.close()
        except RenderingError:
            _unfreed.append(broken)


def _check_fork() -> None:
    if _inherited and not all(renderer.gl.survives_fork for renderer in _inherited):
        raise RenderingError(
            f"this process was forked from one that draws with {_inherited[-1].gl.driver}, which can't be used after a "
            'fork. Start workers with the method "spawn": multiprocessing.get_context("spawn"), or '
            'gym.make_vec(..., vectorization_mode="async", vector_kwargs={"context": "spawn"})'
            + (". Or type: unset LP_NUM_THREADS" if os.environ.get("LP_NUM_THREADS", "0") != "0" else "")
        )


def _check_loader(model: mujoco.MjModel) -> None:
    """Set the renderer up in a forked child first, because MuJoCo ends the process (or waits for ever) if its loader of
    OpenGL has failed before, and there is no asking it.
    """
    global _broken
    if _broken:
        raise RenderingError(BROKEN)
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads: the child only draws
        pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(LOADER_SECONDS)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            try:
                OffscreenRenderer(model)
            except RenderingError:
                pass  # the parent will find the same, and say it
            os.write(writing, b"1")
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        survived = bool(stream.read())
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    if not survived:
        _broken = True
        raise RenderingError(BROKEN)


def _acquire() -> None:
    _lock.acquire()


def _release() -> None:
    _lock.release()


def _in_child() -> None:
    """Leave the parent's context alone: its objects are the parent's, and so may be the threads behind it."""
    global _lock, _renderer, _drawing
    _lock, _drawing = threading.RLock(), False
    if _renderer is not None:
        _inherited.append(_renderer)
        _renderer = None


def _end() -> None:
    global _ended
    with _lock:
        _ended = True
        _discard()


# No drawing is in progress while the process is copied, so that a child never inherits half of one.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_acquire, after_in_parent=_release, after_in_child=_in_child)
atexit.register(_end)
