"""Off-screen OpenGL contexts through EGL, which any thread can bind for rendering and then release.

It replaces `mujoco.egl.GLContext`, which has three problems: it depends on the import order (PyOpenGL keeps the
platform of its first import); it leaves its context bound to the calling thread; and it shares its display, with the
worker threads of the driver, with all other renderers of the process. Here the previous context of the thread is
restored after rendering, and a software driver gets a separate display.

Example::

    from worldgym.utils.egl import EglContext
    context = EglContext()
    context.bind()        # in any thread, if no other thread has it bound
    ...                   # render
    context.restore()     # the previous context of this thread is bound again
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from worldgym.errors import RenderingError

LIBRARY = "libEGL.so.1"
DEBIAN_PACKAGES = "libegl1 libegl-mesa0 libgl1-mesa-dri"
INSTALL = f"On Debian or Ubuntu type: apt-get install -y {DEBIAN_PACKAGES}"
MISSING = (
    f"MuJoCo can't render: {LIBRARY}, which off-screen rendering needs, is not on this machine. "
    f"{INSTALL} (elsewhere: Mesa's EGL), then run again with MUJOCO_GL=egl."
)

_NONE, _EXTENSIONS, _VERSION, _OPENGL_API = 0x3038, 0x3055, 0x3054, 0x30A2
_PLATFORM_DEVICE, _PLATFORM_SURFACELESS = 0x313F, 0x31DD
_DRAW, _READ = 0x3059, 0x305A
_GL_RENDERER = 0x1F01
# 8 bits per colour, 24 for depth, 8 for stencil, pbuffer, desktop OpenGL: the configuration that MuJoCo requests
_CONFIG = (
    *(0x3024, 8, 0x3023, 8, 0x3022, 8, 0x3021, 8, 0x3025, 24, 0x3026, 8),
    *(0x303F, 0x308E, 0x3033, 0x0001, 0x3040, 0x0008, _NONE),
)
_ERRORS = {
    0x3001: "EGL_NOT_INITIALIZED",
    0x3002: "EGL_BAD_ACCESS",
    0x3003: "EGL_BAD_ALLOC",
    0x3004: "EGL_BAD_ATTRIBUTE",
    0x3005: "EGL_BAD_CONFIG",
    0x3006: "EGL_BAD_CONTEXT",
    0x3008: "EGL_BAD_DISPLAY",
    0x3009: "EGL_BAD_MATCH",
    0x300C: "EGL_BAD_PARAMETER",
    0x300E: "EGL_CONTEXT_LOST",
}
_P, _I = ctypes.c_void_p, ctypes.c_int32
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "eglGetError": (_I, []),
    "eglGetProcAddress": (_P, [ctypes.c_char_p]),
    "eglQueryString": (ctypes.c_char_p, [_P, _I]),
    "eglInitialize": (ctypes.c_uint, [_P, _P, _P]),
    "eglChooseConfig": (ctypes.c_uint, [_P, _P, _P, _I, _P]),
    "eglBindAPI": (ctypes.c_uint, [ctypes.c_uint]),
    "eglQueryAPI": (ctypes.c_uint, []),
    "eglCreateContext": (_P, [_P, _P, _P, _P]),
    "eglDestroyContext": (ctypes.c_uint, [_P, _P]),
    "eglMakeCurrent": (ctypes.c_uint, [_P, _P, _P, _P]),
    "eglGetCurrentContext": (_P, []),
    "eglGetCurrentDisplay": (_P, []),
    "eglGetCurrentSurface": (_P, [_I]),
}
_own_displays: set[int] = set()  # displays initialised by this module, which no other renderer's worker threads use


class EglContext:
    """An OpenGL context on the first EGL device that works, or on the device of `MUJOCO_EGL_DEVICE_ID`.

    Attributes:
        driver: OpenGL name of the renderer, e.g. `llvmpipe (LLVM 15.0.6, 256 bits)`.
        survives_fork: whether a forked child process can open a context on the same display.

    Raises:
        RenderingError: EGL, a driver or the device is missing; the message names the cause and the remedy.
    """

    def __init__(self) -> None:
        self._egl = egl = load()
        before = _worker_threads()
        self._display, software, fresh = _open_display(egl)
        self._saved: tuple[int, int | None, int | None, int | None, int | None] | None = None
        api = egl.eglQueryAPI()
        egl.eglBindAPI(_OPENGL_API)
        config, count = _P(), _I()
        wanted = (_I * len(_CONFIG))(*_CONFIG)
        if not egl.eglChooseConfig(self._display, wanted, ctypes.byref(config), 1, ctypes.byref(count)):
            raise RenderingError(f"EGL lists no frame buffers ({error_name(egl)}). {INSTALL}.")
        if count.value < 1:
            raise RenderingError(
                f"EGL's driver has no desktop OpenGL with 8-bit colour and 24-bit depth. {INSTALL}."
            )
        self._context = egl.eglCreateContext(self._display, config, None, None)
        failure = error_name(egl) if not self._context else ""
        egl.eglBindAPI(api)
        if failure:
            raise RenderingError(f"EGL can't create an OpenGL context ({failure}). {INSTALL}.")
        try:
            self.bind()
            self.driver = _driver_name(egl)
            self.restore()
        except BaseException:
            self.close()
            raise
        self.survives_fork = software and fresh and _worker_threads() <= before

    def bind(self) -> None:
        """Make the context current in this thread and save the context that was current."""
        egl = self._egl
        api = egl.eglQueryAPI()
        egl.eglBindAPI(_OPENGL_API)
        context = egl.eglGetCurrentContext()
        if context:
            saved = (
                api,
                context,
                egl.eglGetCurrentDisplay(),
                egl.eglGetCurrentSurface(_DRAW),
                egl.eglGetCurrentSurface(_READ),
            )
        else:
            saved = (api, None, None, None, None)
        if not egl.eglMakeCurrent(self._display, None, None, self._context):
            failure = error_name(egl)
            egl.eglBindAPI(api)
            raise RenderingError(
                f"the OpenGL context can't be bound to this thread ({failure}): another OpenGL library (GLX, GLFW) "
                "has bound its own context to it, or the display was closed. Make no other context current in this "
                "thread, or render in another thread."
            )
        self._saved = saved

    def bound(self) -> bool:
        """Whether the context is current in this thread."""
        return bool(self._egl.eglGetCurrentContext() == self._context)

    def restore(self) -> None:
        """Restore the context that `bind` saved, so that another thread can bind this one."""
        if self._saved is None:
            return
        egl, (api, context, display, draw, read) = self._egl, self._saved
        self._saved = None
        # If the saved context was destroyed in the meantime, it can't be bound; this one must still be released.
        if not (context and egl.eglMakeCurrent(display, draw, read, context)):
            egl.eglMakeCurrent(self._display, None, None, None)
        if api != _OPENGL_API:
            egl.eglBindAPI(api)

    def close(self) -> None:
        """Free the context; no effect if it is already freed."""
        self.restore()
        if self._context:
            self._egl.eglDestroyContext(self._display, self._context)
        self._context = None


def found() -> bool:
    """Whether the EGL library is on this machine."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


def load() -> ctypes.CDLL:
    """Load the EGL library and set the types of its functions; its symbols are global, as MuJoCo requires.

    Raises:
        RenderingError: the library is not on this machine; the message names the Debian packages.
    """
    try:
        ctypes.CDLL("libOpenGL.so.0", mode=ctypes.RTLD_GLOBAL)  # NVIDIA's driver needs it for rendering in threads
    except OSError:
        pass
    try:
        egl = ctypes.CDLL(LIBRARY, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise RenderingError(MISSING) from error
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(egl, name)
        function.restype, function.argtypes = result, arguments
    return egl


def error_name(egl: ctypes.CDLL) -> str:
    """Name of the last EGL error in this thread."""
    code = egl.eglGetError()
    return _ERRORS.get(code, hex(code))


def _open_display(egl: ctypes.CDLL) -> tuple[int, bool, bool]:
    """Open a display; returns it, whether its driver is a software driver, and whether this module initialised it."""
    devices = _devices(egl)
    platform = _function(egl, "eglGetPlatformDisplayEXT", _P, ctypes.c_uint, _P, _P)
    described = _function(egl, "eglQueryDeviceStringEXT", ctypes.c_char_p, _P, _I)
    failures = []
    for device in devices:
        software = b"EGL_MESA_device_software" in (described(device, _EXTENSIONS) or b"")
        # A software driver gets a surfaceless display, since MuJoCo and Gymnasium share the display of the device,
        # with its worker threads.
        places = [(_PLATFORM_SURFACELESS, None)] if software else []
        for name, native in [*places, (_PLATFORM_DEVICE, device)]:
            display = platform(name, native, None)
            if not display:
                failures.append(error_name(egl))
                continue
            initialised = egl.eglQueryString(display, _VERSION) is not None
            egl.eglGetError()
            if not egl.eglInitialize(display, None, None):
                failures.append(error_name(egl))
                continue
            if not initialised:
                _own_displays.add(display)
            return display, software, display in _own_displays
    raise RenderingError(
        f"EGL is installed, but none of its drivers works ({', '.join(failures) or 'no device'}). {INSTALL}, "
        "or for a GPU the EGL driver of its manufacturer."
    )


def _devices(egl: ctypes.CDLL) -> list[int]:
    query = _function(egl, "eglQueryDevicesEXT", ctypes.c_uint, _I, _P, _P)
    found, count = (_P * 64)(), _I()
    if not query(64, found, ctypes.byref(count)):
        raise RenderingError(f"EGL lists no devices ({error_name(egl)}). {INSTALL}.")
    devices = [int(found[i] or 0) for i in range(count.value)]
    if not devices:
        raise RenderingError(f"EGL is installed, but it has no driver: it lists no device. {INSTALL}.")
    chosen = os.environ.get("MUJOCO_EGL_DEVICE_ID")
    if chosen is None:
        return devices
    if not chosen.strip().isdecimal() or int(chosen) >= len(devices):
        raise RenderingError(
            f"MUJOCO_EGL_DEVICE_ID is {chosen!r}; expected a number from 0 to {len(devices) - 1}. "
            "Type: unset MUJOCO_EGL_DEVICE_ID (then the first device that works is used)"
        )
    return [devices[int(chosen)]]


def _function(egl: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    address = egl.eglGetProcAddress(name.encode())
    if not address:
        raise RenderingError(f"EGL has no {name}: it is too old for rendering without a display. {INSTALL}.")
    return ctypes.CFUNCTYPE(result, *arguments)(address)


def _driver_name(egl: ctypes.CDLL) -> str:
    text = _function(egl, "glGetString", ctypes.c_char_p, ctypes.c_uint)(_GL_RENDERER)
    if not text:
        raise RenderingError(f"OpenGL does not return the name of its renderer: the EGL driver is damaged. {INSTALL}.")
    return str(text.decode(errors="replace"))


def _worker_threads() -> int:
    """Number of threads of the software rasteriser in this process; a forked child does not have them."""
    count = 0
    for name in Path("/proc/self/task").glob("*/comm"):
        try:
            count += name.read_text().startswith("llvmpipe")
        except OSError:  # the thread has just ended
            continue
    return count
