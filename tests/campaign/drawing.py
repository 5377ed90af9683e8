"""Draw the tabletop by one start method after one order of imports; one JSON line says what came out.

`python -m tests.campaign.drawing METHOD FIRST`; `tests.campaign.rendering` runs it, once a case, with a time limit.
A drawing is a picture (its hash, whether it is black) or an error (its class, the classes above it, its text).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

Drawing = dict[str, Any]
FIRST = ("worldgym", "mujoco", "gymnasium", "pyopengl")
_neighbour: Any = None
_refused = False  # MuJoCo ends the process at a second attempt after one that failed, so there is none


def prepare(first: str) -> None:
    """Import, and draw with, what a program has before ours; what fails there is not ours, and is passed over."""
    with contextlib.suppress(Exception):
        if first == "mujoco":
            import mujoco  # noqa: F401
        elif first == "pyopengl":
            import OpenGL.GL  # noqa: F401
        elif first == "gymnasium":
            _meet_neighbour()
    import gymnasium  # noqa: F401

    import worldgym  # noqa: F401


def _meet_neighbour() -> None:
    global _neighbour, _refused
    try:
        made = make_neighbour()
        made.render()
    except Exception:
        _refused = True
        raise
    _neighbour = made


def make_neighbour() -> Any:
    """An environment of Gymnasium's that draws with MuJoCo, in the same process."""
    import gymnasium

    env = gymnasium.make("InvertedPendulum-v5", render_mode="rgb_array", width=64, height=64)
    env.reset(seed=0)
    return env


def make(task: str = "reach") -> Any:
    """The environment under test."""
    import gymnasium

    return gymnasium.make("worldgym/Tabletop-v0", task=task, disable_env_checker=True)


def frames(env: Any = None) -> list[np.ndarray]:
    """A start and two steps."""
    env = env or make()
    still = np.zeros(4, np.float32)
    return [env.reset(seed=0)[0]["image"], *[env.step(still)[0]["image"] for _ in range(2)]]


def attempt(work: Callable[[], list[np.ndarray]] = frames) -> Drawing:
    """Draw, and describe what came out as JSON-able data."""
    try:
        shown = np.stack(work())
    except BaseException as error:  # the outcome of the case, whatever it is
        return {
            "error": type(error).__name__,
            "kinds": [kind.__name__ for kind in type(error).__mro__],
            "text": str(error)[:600],
            "trace": traceback.format_exc()[-1500:],
        }
    black = any(float(frame.std()) < 1.0 for frame in shown)
    return {"hash": hashlib.sha256(shown.tobytes()).hexdigest(), "black": black}


# --- start methods ----------------------------------------------------------------------------------------------------


def in_main() -> Iterator[Drawing]:
    """The main thread, twice."""
    yield attempt()
    yield attempt()


def in_thread() -> Iterator[Drawing]:
    """Main draws; an environment of main's is stepped, and one made, in new threads; main draws again."""
    kept: list[Any] = []
    yield attempt(lambda: frames(_kept(kept)))
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(attempt, lambda: frames(_kept(kept))).result()
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(attempt).result()
    yield attempt(lambda: frames(_kept(kept)))


def _kept(environments: list[Any]) -> Any:
    """The first one, made when there is none."""
    if not environments:
        environments.append(make())
    return environments[0]


def thread_first() -> Iterator[Drawing]:
    """A thread draws before the main thread does."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(attempt).result()
    yield attempt()


def in_pool() -> Iterator[Drawing]:
    """Eight threads at once; every other environment has another task, scene and colours on the shared model."""

    def work(number: int) -> Drawing:
        if number % 2:
            return attempt()
        return attempt(lambda: [make("push").reset(seed=number)[0]["image"] for _ in range(2)])

    with ThreadPoolExecutor(8) as pool:
        for number, drawing in enumerate(list(pool.map(work, range(24)))):
            if number % 2 or "error" in drawing or drawing["black"]:
                yield drawing


def in_asyncio() -> Iterator[Drawing]:
    """`asyncio.to_thread`, six at once."""

    async def work() -> list[Drawing]:
        return await asyncio.gather(*(asyncio.to_thread(attempt) for _ in range(6)))

    yield from asyncio.run(work())


def dying_threads() -> Iterator[Drawing]:
    """Threads end while their environments live; these are collected in another thread."""
    kept: list[list[Any]] = [[] for _ in range(12)]
    for place in kept:
        thread = threading.Thread(target=lambda place=place: attempt(lambda: frames(_kept(place))))
        thread.start()
        thread.join()
    yield attempt(lambda: frames(_kept(kept[0])))
    thread = threading.Thread(target=lambda: (kept.clear(), gc.collect()))
    thread.start()
    thread.join()
    yield attempt()


def _child(first: str | None, connection: Any) -> None:
    if first is not None:
        prepare(first)
    connection.send(attempt())
    connection.close()


def _process(start: str) -> Drawing:
    context = multiprocessing.get_context(start)
    here, there = context.Pipe(duplex=False)
    # A forked child has imported already, and Gymnasium's drawing in it is not what is tried here.
    process = context.Process(target=_child, args=(None if start == "fork" else _first, there))  # type: ignore[attr-defined]
    process.start()
    there.close()
    try:
        said: Drawing = here.recv()
    except EOFError:
        process.join()
        return {
            "error": "crash",
            "kinds": [],
            "text": f"the child ended with {process.exitcode}",
            "trace": "",
        }
    process.join()
    return said


def forked() -> Iterator[Drawing]:
    """Main draws, forks children which draw, and draws again."""
    yield attempt()
    yield _process("fork")
    yield _process("fork")
    yield attempt()


def forked_fresh() -> Iterator[Drawing]:
    """A fork before anything of ours was drawn."""
    yield _process("fork")
    yield attempt()


def forked_twice() -> Iterator[Drawing]:
    """A child of a child, each of which draws."""
    yield attempt()
    pid_reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = [attempt(), _process("fork")]
        os.write(writes, json.dumps(said).encode())
        os._exit(0)
    os.close(writes)
    with os.fdopen(pid_reads) as stream:
        text = stream.read()
    os.waitpid(pid, 0)
    yield from json.loads(text or '[{"error": "crash", "kinds": [], "text": "no answer", "trace": ""}]')
    yield attempt()


def forked_while_drawing() -> Iterator[Drawing]:
    """Forks at any moment of other threads' drawings."""
    first = attempt()
    yield first
    if "error" in first:  # nothing can be drawn, so there is nothing to fork amid
        yield _process("fork")
        return
    over = threading.Event()

    def draw() -> None:
        while not over.is_set():
            attempt()

    threads = [threading.Thread(target=draw) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(6):
            yield _process("fork")
    finally:
        over.set()
        for thread in threads:
            thread.join()
    yield attempt()


def spawned() -> Iterator[Drawing]:
    """Main draws, then a spawned process does."""
    yield attempt()
    yield _process("spawn")


def in_subprocess() -> Iterator[Drawing]:
    """Main draws, then another Python does."""
    yield attempt()
    command = [sys.executable, "-m", __spec__.name, "main", _first]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    yield from json.loads(done.stdout.strip().splitlines()[-1])["drawings"]


def vector_workers() -> Iterator[Drawing]:
    """Gymnasium's asynchronous vector environment with its own choice of processes, after main drew."""
    yield attempt()
    import gymnasium

    def work() -> list[np.ndarray]:
        envs = gymnasium.make_vec(
            "worldgym/Tabletop-v0",
            num_envs=2,
            vectorization_mode="async",
            vector_kwargs={"shared_memory": False},  # text doesn't go through it
            task="reach",
        )
        try:
            still = np.zeros((2, 4), np.float32)
            shown = [envs.reset(seed=[0, 0])[0]["image"], *[envs.step(still)[0]["image"] for _ in range(2)]]
        finally:
            envs.close(terminate=True)
        return [frame[0].copy() for frame in shown] if all((f[0] == f[1]).all() for f in shown) else []

    yield attempt(work)


def beside_gymnasium() -> Iterator[Drawing]:
    """Gymnasium's MuJoCo environment and ours take turns in one thread; neither changes the other's pictures."""
    if _neighbour is None and not _refused:
        with contextlib.suppress(Exception):
            _meet_neighbour()
    if _neighbour is None:  # Gymnasium's can't draw under this setting
        yield attempt()
        return
    theirs = _neighbour
    before = theirs.render()
    yield attempt()
    yield attempt()
    after = theirs.render()
    if not np.array_equal(before, after):
        yield {"neighbour": f"Gymnasium's picture has mean {before.mean():.1f}, then {after.mean():.1f}"}
    again = make_neighbour()
    if not np.array_equal(before, again.render()):
        yield {"neighbour": "a second environment of Gymnasium's shows another picture"}
    yield attempt()
    if not np.array_equal(before, again.render()):
        yield {"neighbour": "a second environment of Gymnasium's shows another picture after ours"}


METHODS: dict[str, Callable[[], Iterator[Drawing]]] = {
    "main": in_main,
    "thread": in_thread,
    "thread_first": thread_first,
    "pool": in_pool,
    "asyncio": in_asyncio,
    "dying": dying_threads,
    "fork": forked,
    "fork_fresh": forked_fresh,
    "fork_twice": forked_twice,
    "fork_busy": forked_while_drawing,
    "spawn": spawned,
    "subprocess": in_subprocess,
    "vector": vector_workers,
    "beside": beside_gymnasium,
}
_first = "worldgym"


def main(method: str, first: str) -> None:
    """Draw by `method` and print what came out."""
    global _first
    _first = first
    prepare(first)
    print(json.dumps({"drawings": list(METHODS[method]())}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
