"""Finds out whether MuJoCo can draw here, and says which system package is missing when it can't.

MuJoCo chooses its OpenGL backend from `MUJOCO_GL` the first time it is imported, and fails with an error about a
NoneType when libEGL is absent. So the backend is chosen, and looked for, before that import.

Example::

    from worldgym.utils.gl import require_gl
    require_gl()      # sets MUJOCO_GL=egl on a machine without a display, or raises with the package's name
    import mujoco
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from dataclasses import dataclass

from worldgym.errors import RenderingError

DEBIAN_PACKAGES = "libegl1 libegl-mesa0 libgl1-mesa-dri"
EGL_MESSAGE = (
    "MuJoCo can't draw: libEGL.so.1, which off-screen rendering needs, is not on this machine. "
    f"On Debian or Ubuntu type: apt-get install -y {DEBIAN_PACKAGES} (elsewhere: Mesa's EGL), then run again "
    "with MUJOCO_GL=egl."
)
_LIBRARIES = {"egl": "libEGL.so.1", "osmesa": "libOSMesa.so"}
# One context, one clear, one read: importing alone doesn't show that a driver works.
_PROBE = "import mujoco; c = mujoco.GLContext(32, 32); c.make_current(); c.free()"


@dataclass(frozen=True)
class GlReport:
    """What MuJoCo would draw with: `backend` name, whether it `works`, and in `detail` why not."""

    backend: str
    works: bool
    detail: str = ""


def choose_backend() -> str:
    """Return the backend MuJoCo will use; without a display and without `MUJOCO_GL` that variable is set to egl."""
    if not os.environ.get("MUJOCO_GL") and sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        os.environ["MUJOCO_GL"] = "egl"
    return os.environ.get("MUJOCO_GL", "").lower() or "glfw"


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


def require_gl() -> str:
    """Choose the backend and check its library; milliseconds, no context is made.

    Raises:
        RenderingError: the library is missing; the message names the Debian packages.
    """
    backend = choose_backend()
    if not library_found(backend):
        raise RenderingError(
            EGL_MESSAGE if backend == "egl" else f"{_LIBRARIES[backend]} not found. {EGL_MESSAGE}"
        )
    return backend


def gl_report(timeout: float = 60.0) -> GlReport:
    """Make one context in a child process (a second one here could spoil the renderer's) and report how it went."""
    backend = choose_backend()
    if not library_found(backend):
        return GlReport(backend, False, EGL_MESSAGE)
    try:
        run = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return GlReport(backend, False, f"making a context took more than {timeout:.0f} s")
    lines = run.stderr.strip().splitlines()
    if run.returncode == 0:
        return GlReport(backend, True)
    return GlReport(backend, False, f"{lines[-1] if lines else 'no message'}. {EGL_MESSAGE}")
