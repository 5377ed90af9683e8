"""Chooses the OpenGL backend of MuJoCo, and explains what is missing if rendering is impossible.

MuJoCo reads `MUJOCO_GL` only at its first import. If another package (TorchRL, Gymnasium's MuJoCo environments, a
notebook) has imported it before, it may have no working backend. The context is therefore opened here, by the current
value of the variable: the same in the command line, in `gym.make` and in worker processes.

Example::

    from worldgym.utils.gl import open_context, prepare
    prepare()            # before `import mujoco`; on Linux an unset MUJOCO_GL becomes egl
    context = open_context(64)  # or a RenderingError with the cause and the remedy
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
# Renders a frame as in normal use. The parent process reads the last line of the output.
_PROBE = """
import json, sys
from worldgym.errors import WorldgymError
try:
    from worldgym.suite import load_suite
    suite = load_suite()
    frame = suite.make_single().reset(seed=0)[0]["image"]
    result = {"mean": float(frame.mean()), "driver": getattr(suite, "driver", str)()}
except WorldgymError as error:
    result = {"error": str(error)}
except BaseException as error:
    result = {"error": f"{type(error).__name__}: {error}"}
print(json.dumps(result))
"""


class Context(Protocol):
    """An OpenGL context, which one thread at a time binds for rendering."""

    driver: str
    survives_fork: bool

    def bind(self) -> None:
        """Make the context current in this thread."""

    def bound(self) -> bool:
        """Whether the context is current in this thread."""

    def restore(self) -> None:
        """Restore the context that was current before `bind`."""

    def close(self) -> None:
        """Free the context."""


@dataclass(frozen=True)
class GlReport:
    """Result of a rendering test: the `backend`, whether it `works`, the `driver`, and else the error in `detail`."""

    backend: str
    works: bool
    detail: str = ""
    driver: str = ""


def choose_backend() -> str:
    """Return the name of the backend: `egl`, `glfw`, `osmesa`, `off`, or any other value of `MUJOCO_GL`.

    On Linux an unset `MUJOCO_GL` is set to egl, with or without a display, because no windows are shown. It stays unset
    if there is a display and no EGL.
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
    """Check that the requirements of `backend` are met; takes milliseconds, and opens no context.

    Raises:
        RenderingError: `backend` is unknown or cannot work on this machine; the message says what to type.
    """
    given = os.environ.get("MUJOCO_GL", "")
    if backend == "off":
        raise RenderingError(f"MUJOCO_GL={given} switches rendering off, but simulators need it. {USE_EGL}.")
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
                f"MUJOCO_GL={given} needs a window, and there is no display (DISPLAY is not set). {USE_EGL}."
            )
    elif backend != "cgl" or _LINUX:
        raise RenderingError(
            f"MUJOCO_GL is {given!r}, which MuJoCo does not support; expected egl, glfw or osmesa. {USE_EGL}."
        )


def require_gl() -> str:
    """Choose the backend, check it, and return its name.

    Raises:
        RenderingError: see `check_backend`.
    """
    backend = choose_backend()
    check_backend(backend)
    return backend


def prepare() -> None:
    """Import MuJoCo with a backend that can be imported; call this before the first `import mujoco`.

    Raises:
        RenderingError: MuJoCo cannot be imported with the current `MUJOCO_GL`; the message says what to type.
    """
    # The driver reads this at its start. At 64 px, llvmpipe is twice as fast without worker threads, and a process
    # without them can be forked.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    backend = choose_backend()
    if "mujoco" in sys.modules:
        return
    if backend not in (
        "glfw",
        "off",
    ):  # these two can be imported without further libraries
        check_backend(backend)
    try:
        importlib.import_module("mujoco")
    except ModuleNotFoundError:
        raise  # a package is missing, which is not a rendering problem
    except Exception as error:  # the OpenGL packages raise various exceptions
        raise RenderingError(
            f"MuJoCo can't be imported with MUJOCO_GL={backend} ({type(error).__name__}: {error}). {_advice()}"
        ) from error


def imported_without_backend() -> bool:
    """Whether MuJoCo was imported with the window backend although there is no display, so that its contexts fail.

    After a failed attempt to open such a context (e.g. by a Gymnasium environment that renders), MuJoCo's OpenGL loader
    is broken in this process, and a second attempt ends the process.
    """
    chosen = getattr(sys.modules.get("mujoco"), "GLContext", None)
    works = getattr(sys.modules.get("mujoco.egl"), "EGL_DISPLAY", None) is not None
    return _LINUX and not works and not _display() and getattr(chosen, "__module__", "") == "mujoco.glfw"


def open_context(size: int) -> Context:
    """Open a context for images of up to `size` x `size` pixels, with the backend of the current `MUJOCO_GL`.

    Raises:
        RenderingError: no context can be opened; the message names the cause and the remedy.
    """
    backend = require_gl()
    return egl.EglContext() if backend == "egl" else MujocoContext(backend, size)


class MujocoContext:
    """MuJoCo's own context for `backend` (glfw, osmesa, cgl), on machines with a display or OSMesa."""

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
        except Exception as error:  # the OpenGL packages raise various exceptions
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
        except Exception as error:  # the OpenGL packages raise various exceptions
            raise RenderingError(
                f"the {self._backend} context can't be bound to this thread: {error}. {USE_EGL}."
            ) from error
        if not self.bound():
            raise RenderingError(f"the {self._backend} context can't be bound to this thread. {USE_EGL}.")

    def bound(self) -> bool:
        """Whether the context is current in this thread; always True except with GLFW, where it can be queried."""
        if self._glfw is None:
            return True
        current = self._glfw.get_current_context()
        return bool(current) and _address(current) == _address(self._context._context)

    def restore(self) -> None:
        """Restore the context that was current before `bind`, so that no thread keeps this one."""
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
    """Render a frame of the default suite in a child process and report the result.

    Args:
        timeout: seconds after which the child process is stopped and a failure is reported.
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
        return GlReport(backend, False, f"rendering a frame took more than {timeout:.0f} s")
    result = _last_report(run.stdout)
    if result is None:
        lines = run.stderr.strip().splitlines()
        return GlReport(
            backend,
            False,
            f"rendering ended with exit code {run.returncode}: {lines[-1] if lines else ''}",
        )
    if "error" in result:
        return GlReport(backend, False, result["error"])
    return GlReport(backend, True, driver=result["driver"])


def _last_report(text: str) -> dict[str, Any] | None:
    try:
        result = json.loads(text.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return None
    return result if isinstance(result, dict) else None


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
