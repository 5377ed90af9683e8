"""Chooses MuJoCo's OpenGL backend before it is imported, opens contexts for any thread, and says what is missing.

MuJoCo chooses its backend from `MUJOCO_GL` when it is first imported, by whoever imports it, and fails with an error
about a NoneType when a library is absent. So the variable is checked and set before our own import; and where somebody
else imported MuJoCo first, the context class is taken from the module of the backend that is wanted now.

Example::

    from worldgym.utils.gl import open_context, prepare
    prepare()                       # MUJOCO_GL=egl unless it is set; RenderingError when it can't work
    import mujoco
    context = open_context(512, 512)
    with context:                   # current in this thread until the block ends, then free for another one
        ...
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from worldgym.errors import RenderingError

DEBIAN_PACKAGES = "libegl1 libegl-mesa0 libgl1-mesa-dri"
EGL_MESSAGE = (
    "MuJoCo can't draw: libEGL.so.1, which off-screen rendering needs, is not on this machine. "
    f"On Debian or Ubuntu type: apt-get install -y {DEBIAN_PACKAGES} (elsewhere: Mesa's EGL), then run again "
    "with MUJOCO_GL=egl."
)
REMEDY = "Type export MUJOCO_GL=egl, which needs no display"
_LIBRARIES = {"egl": "libEGL.so.1", "osmesa": "libOSMesa.so"}
_OFF = ("disable", "disabled", "off", "false", "0")
_WINDOW = ("enable", "enabled", "on", "true", "1", "glfw", "glx")
BACKENDS = ("egl", "osmesa", *_WINDOW, *_OFF)
# An environment's own way of drawing, and a look at the picture: a context alone doesn't show that a driver works.
_PROBE = """
from envs.tabletop import TabletopEnv
image = TabletopEnv().reset(seed=0)[0]["image"]
if image.std() < 5:
    raise SystemExit("the driver draws an empty picture")
"""


@dataclass(frozen=True)
class GlReport:
    """What MuJoCo would draw with: `backend` name, whether it `works`, and in `detail` why not."""

    backend: str
    works: bool
    detail: str = ""


def choose_backend() -> str:
    """The backend that is asked for; on Linux `MUJOCO_GL` is set to egl where it is not set and EGL can be had."""
    if not os.environ.get("MUJOCO_GL") and sys.platform.startswith("linux"):
        if library_found("egl") or not os.environ.get("DISPLAY"):
            os.environ["MUJOCO_GL"] = "egl"
    return os.environ.get("MUJOCO_GL", "").strip().lower() or "glfw"


def library_found(backend: str) -> bool:
    """Whether the shared library of `backend` can be loaded; True for backends that need none looked for."""
    library = _LIBRARIES.get(backend)
    if library is None:
        return True
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def prepare() -> str:
    """Choose the backend and check what importing MuJoCo with it needs; milliseconds, no context is made.

    Raises:
        RenderingError: `MUJOCO_GL` has a value that MuJoCo does not know, or the library of the backend is missing.
    """
    backend = choose_backend()
    if sys.platform.startswith("linux") and backend not in BACKENDS:
        raise RenderingError(
            f"MUJOCO_GL is {os.environ.get('MUJOCO_GL')!r}; MuJoCo knows egl, osmesa, glfw and off. {REMEDY}"
        )
    if not library_found(backend):
        if backend == "egl":
            raise RenderingError(EGL_MESSAGE)
        raise RenderingError(
            f"MUJOCO_GL is {backend}, and {_LIBRARIES[backend]} is not on this machine (Debian: libosmesa6). {REMEDY}"
        )
    return backend


def require_gl() -> str:
    """`prepare`, and refuse a setting that switches drawing off.

    Raises:
        RenderingError: drawing can't work; the message names the cause and what to type.
    """
    backend = prepare()
    if backend in _OFF:
        raise RenderingError(
            f"MUJOCO_GL is {os.environ['MUJOCO_GL']!r}, which switches drawing off. {REMEDY}"
        )
    return backend


class Context:
    """An off-screen OpenGL context that one thread at a time makes current, by a `with` block.

    Args:
        inner: MuJoCo's context of some backend.
        release: makes no context current in this thread.
    """

    def __init__(self, inner: Any, release: Any) -> None:
        self._inner, self._release = inner, release

    def __enter__(self) -> Context:
        try:
            self._inner.make_current()
        except Exception as error:  # whatever the backend's loader raises
            raise RenderingError(
                f"the OpenGL context can't be used in this thread ({type(error).__name__}: {error}). {REMEDY}"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()


def open_context(width: int, height: int) -> Context:
    """A context of the backend that `MUJOCO_GL` names now, whichever one MuJoCo was imported with.

    Raises:
        RenderingError: none can be made; the message names the cause and what to type.
    """
    backend = require_gl()
    try:
        if backend == "egl":
            import mujoco.egl
            from mujoco.egl import egl_ext as egl

            inner: Any = mujoco.egl.GLContext(width, height)
            return Context(
                inner,
                lambda: egl.eglMakeCurrent(
                    mujoco.egl.EGL_DISPLAY, *[egl.EGL_NO_SURFACE] * 2, egl.EGL_NO_CONTEXT
                ),
            )
        if backend == "osmesa":
            import mujoco.osmesa

            return Context(mujoco.osmesa.GLContext(width, height), lambda: None)
        import glfw
        import mujoco.glfw

        inner = mujoco.glfw.GLContext(width, height)
        if not getattr(inner, "_context", True):
            raise RuntimeError("no window can be opened: is there a display?")
        return Context(inner, lambda: glfw.make_context_current(None))
    except Exception as error:  # MuJoCo raises whatever its loader of OpenGL raised
        shown = os.environ.get("DISPLAY") or "not set"
        raise RenderingError(
            f"no off-screen OpenGL context with MUJOCO_GL={backend} and DISPLAY {shown} ({type(error).__name__}: "
            f"{error}). "
            + (f"On Debian or Ubuntu: apt-get install {DEBIAN_PACKAGES}" if backend == "egl" else REMEDY)
        ) from error


def gl_report(timeout: float = 60.0) -> GlReport:
    """Draw a frame of the tabletop in a child process, as an environment does, and report how it went."""
    try:
        backend = require_gl()
    except RenderingError as error:
        return GlReport(os.environ.get("MUJOCO_GL", "").strip().lower() or "glfw", False, str(error))
    try:
        run = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return GlReport(backend, False, f"drawing a frame took more than {timeout:.0f} s")
    if run.returncode == 0:
        return GlReport(backend, True)
    lines = run.stderr.strip().splitlines()
    said = lines[-1].removeprefix("worldgym.errors.RenderingError: ") if lines else ""
    return GlReport(backend, False, said or f"the drawing process ended with code {run.returncode}")
