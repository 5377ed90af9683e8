"""The same picture from any thread, pool, event loop and forked child, or an error; never a black one."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from envs.tabletop import TabletopEnv

STILL = np.zeros(4, np.float32)


def picture(env: TabletopEnv | None = None) -> np.ndarray:
    return (env or TabletopEnv(task="reach")).reset(seed=0)[0]["image"]


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return picture()


def in_thread(work):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def test_an_environment_moves_between_threads(expected):
    env = TabletopEnv(task="reach")
    assert np.array_equal(in_thread(lambda: picture(env)), expected)
    there = in_thread(lambda: env.step(STILL)[0]["image"])
    assert np.array_equal(picture(env), expected)
    assert np.array_equal(env.step(STILL)[0]["image"], there)


def test_environments_of_many_threads_draw_at_once(expected):
    def work(number: int) -> list[bool]:
        env = TabletopEnv(task=("reach", "push")[number % 2])
        return [np.array_equal(picture(env), expected) for _ in range(5)]

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(work, range(12)))
    assert all(all(found) == (number % 2 == 0) for number, found in enumerate(results))


def test_an_event_loop_draws_in_its_pool(expected):
    async def main() -> list[np.ndarray]:
        return await asyncio.gather(*(asyncio.to_thread(picture) for _ in range(4)))

    assert all(np.array_equal(image, expected) for image in asyncio.run(main()))


def test_an_environment_outlives_the_thread_that_made_it(expected):
    made: list[TabletopEnv] = []
    thread = threading.Thread(target=lambda: made.append(TabletopEnv(task="reach")))
    thread.start()
    thread.join()
    assert np.array_equal(picture(made[0]), expected)
    in_thread(made.clear)
    gc.collect()
    assert np.array_equal(picture(), expected)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_draws_the_same_picture(expected):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if np.array_equal(picture(), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert np.array_equal(picture(), expected)


@pytest.mark.parametrize("first", ["mujoco", "gymnasium.envs.mujoco", "worldgym"])
@pytest.mark.parametrize("backend", [None, "egl", "glfw", "osmesa", "off", "nonsense"])
def test_every_setting_draws_or_says_what_to_type(first, backend):
    if first != "worldgym" and backend in ("osmesa", "nonsense"):
        pytest.skip("mujoco itself refuses this setting when it is imported")
    draw = "print(gym.make('worldgym/Tabletop-v0').reset(seed=0)[0]['image'].std())"
    code = f"import {first}; import gymnasium as gym, worldgym; {draw}"
    environment = {
        k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "DISPLAY")
    }
    environment |= {} if backend is None else {"MUJOCO_GL": backend}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120
    )
    if backend in (None, "egl"):
        assert done.returncode == 0, done.stderr
        assert float(done.stdout) > 10
    else:
        assert done.returncode == 1
        assert "RenderingError" in done.stderr.splitlines()[-1] and "export MUJOCO_GL=egl" in done.stderr
