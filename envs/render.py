"""The off-screen renderer of the process for all MuJoCo suites, which any thread may use.

One OpenGL context is enough for all models, and threads that end leave no contexts behind. Within it, models with the
same meshes and textures share a set of uploaded assets, which the caller names; models without any share one set.
The OpenGL context is bound to one thread at a time, and environments may share a model whose colours are set before
each frame. Therefore a lock covers setting colours, rendering and reading pixels; while it is held, the context is
bound to the calling thread and released afterwards. This costs microseconds, and rendering a frame takes about a
millisecond. A forked child opens its own context. Frames are rendered at twice the requested size and averaged: 2x2
supersampling costs a third of 4x MSAA in software and preserves sub-pixel positions at 64 px.

Example::

    from envs.render import draw
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
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from envs.engine import mujoco
from envs.sizes import MAX_SIZE, ImageSize, height_width
from worldgym.errors import RenderingError
from worldgym.utils.gl import imported_without_backend, open_context

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_ASSETS = 32  # sets of meshes and textures that are kept in OpenGL
LOADER_SECONDS = 10  # time limit of the check in a child process; setting up a renderer takes 0.1 s
BROKEN = (
    "MuJoCo was imported without a rendering backend, other code tried to render with it and failed, and MuJoCo can't "
    "render in this process any more. Type: export MUJOCO_GL=egl, and start Python again."
)

_lock = threading.RLock()
_renderer: OffscreenRenderer | None = None
_drawing = False
_ended = False
_broken = False  # whether MuJoCo's OpenGL loader has failed, which is permanent in this process
# Referenced but never used again: renderers inherited by a fork, and renderers that OpenGL failed to free.
_inherited: list[OffscreenRenderer] = []
_unfreed: list[OffscreenRenderer] = []


class View(NamedTuple):
    """What to render.

    Args:
        height: pixels.
        width: pixels.
        camera: index of a camera in the model, or a free camera.
        assets: name of the model's meshes and textures.
    """

    height: int
    width: int
    camera: int | mujoco.MjvCamera
    assets: str


class _Assets(NamedTuple):
    context: mujoco.MjrContext
    scene: mujoco.MjvScene


class OffscreenRenderer:
    """Renders the cameras of models. It is not thread-safe; use `draw`, which locks it.

    Args:
        model: a model; its meshes and textures are uploaded under the name `assets`.
        assets: name of the assets of `model`.

    Raises:
        RenderingError: no OpenGL context can be created; the message gives the cause and the remedy.
    """

    def __init__(self, model: mujoco.MjModel, assets: str = "") -> None:
        self.gl = open_context(2 * MAX_SIZE)
        self._assets: dict[str, _Assets] = {}
        try:
            self._upload(model, assets)
        except RenderingError:
            self.gl.close()
            raise
        self._option = mujoco.MjvOption()
        self._fixed = mujoco.MjvCamera()
        self._fixed.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._perturb = mujoco.MjvPerturb()

    def _upload(self, model: mujoco.MjModel, assets: str) -> _Assets:
        try:
            self.gl.bind()
            try:
                while len(self._assets) >= MAX_ASSETS:  # the oldest; it is uploaded again when it is drawn again
                    self._assets.pop(next(iter(self._assets))).context.free()
                context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
                mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
            finally:
                self.gl.restore()
        except RenderingError:
            raise
        except Exception as error:  # MuJoCo's FatalError, or any exception of its OpenGL loader
            raise RenderingError(
                f"MuJoCo can't set up its renderer on {self.gl.driver}: {error}. "
                "Type: export MUJOCO_GL=egl, and start Python again."
            ) from error
        scene = mujoco.MjvScene(model, maxgeom=max(128, 2 * model.ngeom + model.nsite))
        for flag in ("SHADOW", "REFLECTION", "SKYBOX", "HAZE", "FOG"):
            scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0
        self._assets[assets] = _Assets(context, scene)
        return self._assets[assets]

    def read(self, model: mujoco.MjModel, data: mujoco.MjData, view: View) -> NDArray[np.uint8]:
        """Render `(height, width, 3)` uint8 in OpenGL's row order, bottom row first."""
        height, width, camera, assets = view
        context, scene = self._assets.get(assets) or self._upload(model, assets)
        if isinstance(camera, int):
            self._fixed.fixedcamid = camera
            camera = self._fixed
        mujoco.mjv_updateScene(
            model, data, self._option, self._perturb, camera, mujoco.mjtCatBit.mjCAT_ALL.value, scene
        )
        pixels = np.zeros((height, width, 3), np.uint8)  # zeros, so that pixels that were not read are recognised below
        rectangle = mujoco.MjrRect(0, 0, width, height)
        self.gl.bind()
        try:
            if len(self._assets) > 1:  # another model's framebuffer may be the current one
                mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
            mujoco.mjr_render(rectangle, scene, context)
            mujoco.mjr_readPixels(pixels, None, rectangle, context)
            failure, bound = mujoco.mjr_getError(), self.gl.bound()
        except mujoco.FatalError as error:
            raise RenderingError(
                f"MuJoCo can't render on {self.gl.driver}: {error}. Type: worldgym info"
            ) from error
        finally:
            self.gl.restore()
        # Every frame shows a table, so a row of zeros means that nothing was rendered.
        if failure or not bound or not pixels[height // 2].any():
            raise RenderingError(
                f"{self.gl.driver} drew no picture (OpenGL error {failure:#x}). Render again; if that fails too, "
                "type: worldgym info"
            )
        return pixels

    def close(self) -> None:
        """Free the renderer's OpenGL resources."""
        self.gl.bind()
        try:
            for assets in self._assets.values():
                assets.context.free()
        finally:
            self.gl.close()


def draw(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    size: ImageSize = 64,
    colours: Mapping[int, Sequence[float]] | None = None,
    camera: int | mujoco.MjvCamera = 0,
    assets: str = "",
) -> NDArray[np.uint8]:
    """Render the state `data` of `model`; the pixels are the same in every thread.

    Args:
        model: the model.
        data: its state; it may belong to a model with the same bodies and other visual properties.
        size: pixels along one side, or (height, width), in 16..256.
        colours: geom index to RGB or RGBA in [0, 1]; set before rendering in `model`, which several scenes share.
        camera: index of a camera in the model, or a free camera.
        assets: name of the meshes and textures of `model`, which are uploaded once under this name; "" for models
            without any.

    Returns:
        `(height, width, 3)` uint8.

    Raises:
        ConfigError: `size` is out of range.
        RenderingError: rendering is not possible here, or has failed; a black or old frame is never returned.
    """
    height, width = height_width(size)
    with _lock:
        pixels = _read(model, data, View(2 * height, 2 * width, camera, assets), colours or {})
    total = pixels[0::2, 0::2].astype(np.uint16)
    total += pixels[1::2, 0::2]
    total += pixels[0::2, 1::2]
    total += pixels[1::2, 1::2]
    return np.ascontiguousarray(((total + 2) >> 2).astype(np.uint8)[::-1])  # OpenGL's first row is the bottom row


def driver() -> str:
    """Name of the OpenGL driver, "" before the first frame is rendered."""
    return _renderer.gl.driver if _renderer is not None else ""


def _read(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    view: View,
    colours: Mapping[int, Sequence[float]],
) -> NDArray[np.uint8]:
    global _renderer, _drawing
    if _ended:
        raise RenderingError(
            "Python is shutting down, so nothing can be rendered any more. Join threads that render before the exit."
        )
    if _drawing:
        raise RenderingError(
            "rendering was interrupted by another call in the same thread; don't render in a signal handler"
        )
    _drawing = True
    try:
        if _renderer is None:
            _check_fork()
            if imported_without_backend():
                _check_loader(model)
            _renderer = OffscreenRenderer(model, view.assets)
        for geom, colour in colours.items():
            model.geom_rgba[geom, : len(colour)] = colour
        return _renderer.read(model, data, view)
    except RenderingError:
        _discard()  # the next call creates a new renderer
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
            f"this process was forked from one that renders with {_inherited[-1].gl.driver}, which can't be used after "
            'a fork. Start workers with the method "spawn": multiprocessing.get_context("spawn"), or '
            'gym.make_vec(..., vectorization_mode="async", vector_kwargs={"context": "spawn"})'
            + (". Or type: unset LP_NUM_THREADS" if os.environ.get("LP_NUM_THREADS", "0") != "0" else "")
        )


def _check_loader(model: mujoco.MjModel) -> None:
    """Test in a forked child whether a renderer can be set up, and raise a RenderingError if not.

    MuJoCo aborts the process (or hangs) if its OpenGL loader has failed before, and offers no way to query this.
    """
    global _broken
    if _broken:
        raise RenderingError(BROKEN)
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is safe here: the child only renders
        pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(LOADER_SECONDS)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            try:
                OffscreenRenderer(model)
            except RenderingError:
                pass  # the parent will get the same error and report it
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
    """Set the parent's renderer aside after a fork: its OpenGL objects, and its driver's threads, are the parent's."""
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


# The lock is held during a fork, so that no child is created in the middle of rendering.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_acquire, after_in_parent=_release, after_in_child=_in_child)
atexit.register(_end)
