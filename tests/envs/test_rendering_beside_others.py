"""Pictures beside other users of OpenGL in the process, after forks, and when OpenGL fails: right, or an error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from envs import render
from envs.tabletop import TabletopEnv
from tests.campaign import rendering
from worldgym.errors import RenderingError
from worldgym.utils.egl import EglContext


def picture() -> np.ndarray:
    return TabletopEnv(task="reach").reset(seed=0)[0]["image"]


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return picture()


@pytest.mark.parametrize(
    ("case", "outcome"),
    [
        (
            "egl/gymnasium/beside",
            "same picture",
        ),  # neither changes what the other draws
        (
            "egl/gymnasium/fork",
            "same picture",
        ),  # Gymnasium's driver threads are gone in the child, ours has none
        ("unset+threads/worldgym/fork", "clear error"),
        ("unset/pyopengl/main", "same picture"),
        ("egl+driverless/worldgym/main", "clear error"),
        ("egl+word/worldgym/main", "clear error"),
        ("unset+pyopengl/worldgym/main", "clear error"),
    ],
)
def test_what_else_uses_opengl_spoils_no_picture(case, outcome):
    row = rendering.case(case)
    assert row["outcome"] == outcome, row


def test_a_failed_drawing_of_somebody_else_ends_in_an_error_not_in_the_end_of_the_process():
    code = (
        "import mujoco\n"
        "try:\n    mujoco.MjrContext(mujoco.MjModel.from_xml_string('<mujoco/>'), 150)\n"
        "except mujoco.FatalError:\n    pass\n"
        "from envs import render\n"
        "from envs.tabletop import TabletopEnv\n"
        "from worldgym.errors import RenderingError\n"
        "render.LOADER_SECONDS = 2\n"
        "for _ in range(2):\n"
        "    try:\n        TabletopEnv().reset(seed=0)\n"
        "    except RenderingError as error:\n        print(error)\n"
    )
    environment = {
        k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY")
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Type: export MUJOCO_GL=egl, and start Python again") == 2


def test_a_context_gives_the_thread_back_as_it_found_it():
    theirs, ours = EglContext(), EglContext()
    theirs.bind()
    ours.bind()
    assert ours.bound() and not theirs.bound()
    ours.restore()
    assert theirs.bound()
    theirs.restore()
    assert not theirs.bound() and not ours.bound()
    for context in (theirs, ours):
        context.close()
        context.close()


def test_a_context_bound_in_another_thread_is_refused():
    context = EglContext()
    context.bind()
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(RenderingError, match="EGL_BAD_ACCESS"):
            pool.submit(context.bind).result()
    context.close()


def test_many_threads_share_one_context(expected, monkeypatch):
    monkeypatch.setattr(render, "open_context", lambda size: pytest.fail("a second context"))
    for _ in range(20):
        shown: list[np.ndarray] = []
        thread = threading.Thread(target=lambda shown=shown: shown.append(picture()))
        thread.start()
        thread.join()
        assert np.array_equal(shown[0], expected)


@pytest.mark.parametrize("failure", ["unbound", "error", "unread"])
def test_a_driver_that_fails_raises_and_the_next_picture_is_right(expected, monkeypatch, failure):
    with monkeypatch.context() as patch:
        if failure == "unbound":
            patch.setattr(EglContext, "bound", lambda self: False)
        elif failure == "error":
            patch.setattr(render.mujoco, "mjr_getError", lambda: 0x506)
        else:
            patch.setattr(render.mujoco, "mjr_readPixels", lambda *arguments: None)
        with pytest.raises(RenderingError, match="drew no picture"):
            picture()
    assert np.array_equal(picture(), expected)


def test_a_signal_handler_that_draws_amid_a_drawing_is_refused(expected, monkeypatch):
    refused: list[str] = []

    def handler(*_: object) -> None:
        try:
            picture()
        except RenderingError as error:
            refused.append(str(error))

    real = render.mujoco.mjr_render

    def interrupted(*arguments: object) -> None:
        real(*arguments)
        signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(render.mujoco, "mjr_render", interrupted)
            assert np.array_equal(picture(), expected)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(refused) == 1 and "signal handler" in refused[0]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_waits_for_the_drawing_of_another_thread(expected):
    with render._lock:  # as if this thread drew
        pid = os.fork()
        if pid == 0:
            free = ThreadPoolExecutor(1).submit(picture).result(timeout=20)  # the child's lock is free
            os._exit(0 if np.array_equal(free, expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
