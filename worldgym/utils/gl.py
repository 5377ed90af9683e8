"""Chooses what MuJoCo draws with, and says what is missing when nothing can be drawn.

MuJoCo reads `MUJOCO_GL` the first time it is imported and keeps what it found. Whoever imported it first (TorchRL,
Gymnasium's MuJoCo environments, a notebook) may have left it without a backend, so the context is opened here, by
what the variable says now: the same in the command line, in `gym.make` and in a worker.

Example::

    from worldgym.utils.gl import open_context, prepare
    prepare()            # before `import mujoco`; on Linux an unset MUJOCO_GL becomes egl
    context = open_context()    # or a RenderingError with the cause and the remedy
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Protocol

from worldgym.errors import RenderingError
from worldgym.utils import egl

USE_EGL = "Type: unset MUJOCO_GL (or: export MUJOCO_GL=egl), and start Python again"
_LINUX = sys.platform.startswith("linux")
_OFF = ("disable", "disabled", "off", "false", "0")
_WINDOWED = ("glfw", "glx", "enable", "enabled", "on", "true", "1")
_OSMESA = ("libOSMesa.so", "libOSMesa.so.8", "libOSMesa.so.6")
# A frame as a user gets it; its last line of output is read. Nothing of the parent's is inherited but the environment.
_PROBE = """
import json, sys
from worldgym.errors import WorldgymError
try:
    from worldgym.suite import load_suite
    suite = load_suite()
    frame = suite.make_single().reset(seed=0)[0]["image"]
    said = {"mean": float(frame.mean()), "driver": getattr(suite, "driver", str)()}
except WorldgymError as error:
    said = {"error": str(error)}
except BaseException as error:
    said = {"error": f"{type(error).__name__}: {error}"}
print(json.dumps(said))
"""


class Context(Protocol):
    """An OpenGL context that one thread at a time binds for a drawing."""

    driver: str
    survives_fork: bool

    def bind(self) -> None:
        """Make it current in this thread."""

    def bound(self) -> bool:
        """Whether it is current in this thread."""

    def restore(self) -> None:
        """Make current again what was before `bind`."""

    def close(self) -> None:
        """Free it."""


@dataclass(frozen=True)
class GlReport:
    """What frames are drawn with: `backend`, whether a frame came out (`works`), by which `driver`, else why not."""

    backend: str
    works: bool
    detail: str = ""
    driver: str = ""


def choose_backend() -> str:
    """Return the backend's name, `egl`, `glfw`, `osmesa`, `off`, or whatever else `MUJOCO_GL` says.

    On Linux an unset `MUJOCO_GL` becomes egl, with or without a display: nothing here is shown in a window. It stays
    unset where there is a display and no EGL.
    """
    if not os.environ.get("MUJOCO_GL", "").strip():
        if not _LINUX:
            return "cgl" if sys.platform == "darwin" else "glfw"
        if _display() and not egl.found():
            return "glfw"
        os.environ["MUJOCO_GL"] = "egl"
    name = os.environ["MUJOCO_GL"].lower().strip()
    if name in _OFF:
        return "off"
    return "glfw" if name in _WINDOWED else name


def check_backend(backend: str) -> None:
    """Look for what `backend` needs; milliseconds, no context is made.

    Raises:
        RenderingError: `backend` is unknown or can't work here; the message says what to type.
    """
    given = os.environ.get("MUJOCO_GL", "")
    if backend == "off":
        raise RenderingError(f"MUJOCO_GL={given} switches rendering off, and simulators draw. {USE_EGL}.")
    if backend == "egl":
        egl.load()
    elif backend == "osmesa":
        if not _osmesa_found():
            raise RenderingError(
                f"MUJOCO_GL=osmesa needs libOSMesa, which is not on this machine. {USE_EGL}."
            )
    elif backend == "glfw":
        if _LINUX and not _display():
            raise RenderingError(
                f"MUJOCO_GL={given} draws through a window, and there is no display (DISPLAY is not set). {USE_EGL}."
            )
    elif backend != "cgl" or _LINUX:
        raise RenderingError(
            f"MUJOCO_GL is {given!r}, which MuJoCo doesn't know; expected egl, glfw or osmesa. {USE_EGL}."
        )


def require_gl() -> str:
    """Choose the backend, check it, and return its name.

    Raises:
        RenderingError: as `check_backend`.
    """
    backend = choose_backend()
    check_backend(backend)
    return backend


def prepare() -> None:
    """Import MuJoCo with a backend that can be imported; call it before the first `import mujoco`.

    Raises:
        RenderingError: MuJoCo can't be imported under the present `MUJOCO_GL`; the message says what to type.
    """
    # Read when the driver starts. llvmpipe's worker threads cost more than they bring at 64 px:
    # rendering in the caller's thread is twice as fast, and it can be forked.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    backend = choose_backend()
    if "mujoco" in sys.modules:
        return
    if backend not in (
        "glfw",
        "off",
    ):  # these two are imported without a library of theirs
        check_backend(backend)
    try:
        importlib.import_module("mujoco")
    except ModuleNotFoundError:
        raise  # a package is missing, which has nothing to do with drawing
    except Exception as error:  # whatever the OpenGL packages below it raise
        raise RenderingError(
            f"MuJoCo can't be imported with MUJOCO_GL={backend} ({type(error).__name__}: {error}). {_advice()}"
        ) from error


def imported_without_backend() -> bool:
    """Whether MuJoCo was imported so that its own contexts fail: through a window, and there is no display.

    Whoever tried one (an environment of Gymnasium's that draws) has broken MuJoCo's loader of OpenGL for this process:
    it ends the process at the second attempt.
    """
    chosen = getattr(sys.modules.get("mujoco"), "GLContext", None)
    works = getattr(sys.modules.get("mujoco.egl"), "EGL_DISPLAY", None) is not None
    return _LINUX and not works and not _display() and getattr(chosen, "__module__", "") == "mujoco.glfw"


def open_context(size: int) -> Context:
    """Open a context for pictures of up to `size` x `size` pixels, by what `MUJOCO_GL` says now.

    Raises:
        RenderingError: it can't be opened; the message names the cause and the remedy.
    """
    backend = require_gl()
    return egl.EglContext() if backend == "egl" else MujocoContext(backend, size)


class MujocoContext:
    """MuJoCo's own context of `backend` (glfw, osmesa, cgl), for machines with a display or with OSMesa."""

    survives_fork = False

    def __init__(self, backend: str, size: int) -> None:
        self.driver, self._backend, self._saved = backend, backend, None
        try:
            module: Any = importlib.import_module(f"mujoco.{backend}")
            self._glfw: Any = importlib.import_module("glfw") if backend == "glfw" else None
            if self._glfw is not None and not self._glfw.init():
                raise RenderingError(
                    f"MUJOCO_GL=glfw: the display {os.environ.get('DISPLAY')!r} can't be opened. {USE_EGL}."
                )
            self._context = module.GLContext(size, size)
        except RenderingError:
            raise
        except Exception as error:  # whatever the OpenGL packages raise
            raise RenderingError(
                f"no OpenGL context with MUJOCO_GL={backend} ({type(error).__name__}: {error}). {_advice()}"
            ) from error
        if not getattr(self._context, "_context", True):
            raise RenderingError(
                f"no OpenGL context with MUJOCO_GL={backend}: the display refused a window. {USE_EGL}."
            )

    def bind(self) -> None:
        """Make the context current in this thread."""
        if self._glfw is not None:
            self._saved = self._glfw.get_current_context()
        try:
            self._context.make_current()
        except Exception as error:  # whatever the OpenGL packages raise
            raise RenderingError(
                f"the {self._backend} context can't be bound to this thread: {error}. {USE_EGL}."
            ) from error
        if not self.bound():
            raise RenderingError(f"the {self._backend} context can't be bound to this thread. {USE_EGL}.")

    def bound(self) -> bool:
        """Whether the context is current in this thread; only GLFW can tell."""
        if self._glfw is None:
            return True
        current = self._glfw.get_current_context()
        return bool(current) and _address(current) == _address(self._context._context)

    def restore(self) -> None:
        """Bind what was bound before; no thread keeps this context."""
        if self._glfw is not None:
            self._glfw.make_context_current(self._saved)
        elif self._backend == "osmesa":
            gl, osmesa = (
                importlib.import_module("OpenGL.GL"),
                importlib.import_module("OpenGL.osmesa"),
            )
            osmesa.OSMesaMakeCurrent(None, None, gl.GL_FLOAT, 0, 0)

    def close(self) -> None:
        """Free the context."""
        self._context.free()


def gl_report(timeout: float = 60.0) -> GlReport:
    """Draw a frame of the default suite in a child process, as its environment does it, and report how it went.

    Args:
        timeout: seconds after which the child is ended and the report says so.
    """
    backend = choose_backend()
    try:
        check_backend(backend)
    except RenderingError as error:
        return GlReport(backend, False, str(error))
    try:
        run = subprocess.run(
            [sys.executable, "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return GlReport(backend, False, f"drawing a frame took more than {timeout:.0f} s")
    said = _last_report(run.stdout)
    if said is None:
        lines = run.stderr.strip().splitlines()
        return GlReport(
            backend,
            False,
            f"drawing ended with code {run.returncode}: {lines[-1] if lines else ''}",
        )
    if "error" in said:
        return GlReport(backend, False, said["error"])
    return GlReport(backend, True, driver=said["driver"])


def _last_report(text: str) -> dict[str, Any] | None:
    try:
        said = json.loads(text.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return None
    return said if isinstance(said, dict) else None


def _display() -> str:
    return os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or ""


def _osmesa_found() -> bool:
    for name in (*_OSMESA, ctypes.util.find_library("OSMesa")):
        try:
            if name:
                ctypes.CDLL(name)
                return True
        except OSError:
            continue
    return False


def _advice() -> str:
    platform = os.environ.get("PYOPENGL_PLATFORM")
    if platform and platform.lower() != choose_backend():
        return f"PYOPENGL_PLATFORM is {platform!r}. Type: unset PYOPENGL_PLATFORM, and start Python again."
    return f"{USE_EGL}."


def _address(window: Any) -> int | None:
    return ctypes.cast(window, ctypes.c_void_p).value
