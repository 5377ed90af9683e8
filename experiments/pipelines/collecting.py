"""Worker processes that record episodes, and the code that returns the episodes in order.

An episode must not depend on the number of workers. A `Job` therefore depends only on the settings and its index, and
finished episodes are returned in order, whichever worker recorded them.

Example::

    from experiments.pipelines.collecting import episodes_in_order
    for episode in episodes_in_order(config, start=0):      # a CollectConfig
        writer.append(episode)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import queue
import signal
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bundle import folder_hash
from experiments.compute import placing
from experiments.pipelines.collect_settings import CollectConfig
from experiments.suites import domain_settings
from worldgym.data import Episode
from worldgym.errors import CheckpointError, WorldgymError
from worldgym.suite import POLICY, default_suite
from worldgym.utils.files import file_sha256


@dataclass(frozen=True)
class Job:
    """One episode to record; determined by the config and its index.

    Args:
        index: number of the episode in its collection.
        seed: seed of the start.
        task: task of the start.
        behaviour: who acts.
        repeat: how often this start has been used before.
    """

    index: int
    seed: int
    task: str
    behaviour: str
    repeat: int = 0

    @property
    def acting(self) -> list[int]:
        """Seed of the randomness of who acts."""
        return [self.seed, 2, *([self.repeat] if self.repeat else [])]


Rollout = Callable[[Job], Episode]


def job(config: CollectConfig, index: int) -> Job:
    """Describe episode `index` of a collection."""
    weights = config.weights
    chances = np.array(list(weights.values())) / sum(weights.values())
    rng = np.random.default_rng([config.seed, index, 1])
    behaviour = list(weights)[int(rng.choice(len(chances), p=chances))]
    repeat, start = divmod(index, config.starts or config.episodes)
    return Job(index, config.seed + start, config.tasks[start % len(config.tasks)], behaviour, repeat)


def collection_key(config: CollectConfig) -> str:
    """Twelve hex digits that identify a collection: hash of all settings that change an episode."""
    settings: dict[str, Any] = {
        "mix": config.weights,
        "policy": _weights_hash(config.policy, "policy") if config.policy else None,
        "temperature": config.temperature if config.policy else None,
    }
    if config.world_model is not None:
        settings["world_model"] = _weights_hash(config.world_model, "world model")
    for name in ("tasks", "domain", "gap", "seed", "split", "horizon", "image_size"):
        settings[name] = getattr(config, name)
    if config.suite not in (
        None,
        default_suite(),
    ):  # collections of earlier versions keep their names
        settings["suite"] = config.suite
    if config.cameras:
        settings["cameras"] = config.cameras
    if config.starts is not None:
        settings["starts"] = config.starts
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _weights_hash(folder: Path, what: str) -> str:
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"no {what} at {folder}: config.json is missing; train one with `worldgym train "
            f"{what.replace(' ', '-')}`, or give the folder of another checkpoint"
        )
    weights = folder / "model.safetensors"
    return file_sha256(weights)[:12] if weights.is_file() else folder_hash(folder)[:12]


# ---- one worker process ----------------------------------------------------------------------------------------------


def make_rollout(config: CollectConfig) -> Rollout:
    """Create a simulator (and load the policy) once; the returned function records one episode per call."""
    suite = config.loaded_suite
    more: dict[str, Any] = {"cameras": config.cameras} if config.cameras else {}
    env = suite.make_single(
        **domain_settings(suite, config.domain, config.gap),
        **more,
        horizon=config.horizon,
        image_size=config.image_size,
        terminate_on_success=False,
    )
    act = _policy_actions(config) if config.policy else None
    key = collection_key(config)
    policy_facts = (
        {
            "policy": config.policy.name,
            "policy_sha256": _weights_hash(config.policy, "policy"),
            "temperature": config.temperature,
            "looked_at": "imagined" if config.world_model else "real",
        }
        if config.policy
        else {}
    )

    def make(what: Job) -> Episode:
        acting = what.behaviour == POLICY and act is not None
        episode = suite.demonstrate(
            env,
            what.behaviour,
            seed=what.seed,
            task=what.task,
            rng=np.random.default_rng(what.acting),
            split=config.split,
            act=act(what.acting) if acting and act else None,
        )
        facts = {"collection": key, "collection_index": what.index, **(policy_facts if acting else {})}
        return dataclasses.replace(episode, provenance={**episode.provenance, **facts})

    return make


def _policy_actions(config: CollectConfig) -> Callable[[list[int]], Callable[[dict[str, Any], int], np.ndarray]]:
    """Load the policy; `result(job.acting)` is an action source that executes whole chunks of the policy.

    With a world model the policy receives a real frame only at the start, then imagined frames. All its actions are
    therefore known at the start.
    """
    import torch

    from agents import load_policy
    from worldgym.evaluation.rollouts import batch_observations
    from worldgym.imagination.policy_output import check_output
    from worldgym.imagination.rollout import run_policy
    from worldgym.models import load_world_model

    torch.set_num_threads(1)  # several workers share the cores
    here = placing(config)
    policy = here(load_policy(config.policy))
    world_model = None if config.world_model is None else here(load_world_model(config.world_model))

    def start(acting: list[int]) -> Callable[[dict[str, Any], int], np.ndarray]:
        seed, _, *repeat = acting
        if repeat:
            seed = int(np.random.SeedSequence(acting).generate_state(1)[0])
        generator = torch.Generator().manual_seed(seed)
        chunk = np.zeros((0, 0), np.float32)

        @torch.inference_mode()
        def act(observation: dict[str, Any], step: int) -> np.ndarray:
            nonlocal chunk
            batch = batch_observations([observation])
            sampling = {"temperature": config.temperature, "generator": generator}
            if world_model is not None and step == 0:
                imagined = run_policy(policy, world_model, None, batch, horizon=config.horizon, **sampling)
                chunk = imagined.actions[0]
            elif world_model is None and step % policy.chunk == 0:
                output = check_output(policy.act(batch, **sampling), policy, batch, chunk=policy.chunk)  # type: ignore[arg-type]
                chunk = np.clip(output.actions[0].float().cpu().numpy(), -1.0, 1.0)
            return chunk[step % len(chunk)]

        return act

    return start


def _work(config: CollectConfig, jobs: Any, results: Any) -> None:
    """Worker process: receives jobs and sends episodes until it receives None or its parent has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C: it saves, then stops the workers
    parent = multiprocessing.parent_process()
    index = -1
    try:
        make = make_rollout(config)
        while True:
            try:
                what = jobs.get(timeout=5.0)
            except queue.Empty:
                if parent is not None and not parent.is_alive():
                    return
                continue
            if what is None:
                return
            index = what.index
            results.put((index, make(what), None))
    except WorldgymError as error:
        results.put((index, None, str(error)))
    except Exception:  # noqa: BLE001, the parent receives the traceback and reports it
        results.put((index, None, traceback.format_exc()))


# ---- all workers -----------------------------------------------------------------------------------------------------


def episodes_in_order(config: CollectConfig, start: int) -> Generator[Episode, None, None]:
    """Yield episodes `start..config.episodes-1` in order, recorded by the workers.

    Raises:
        WorldgymError: a worker failed or died.
    """
    if config.workers == 0:
        make = make_rollout(config)
        for index in range(start, config.episodes):
            yield make(job(config, index))
        return
    with _workers(config) as (processes, jobs, results):
        window = 4 * config.workers  # limits the number of episodes in memory if one worker is slow
        sent = start
        ready: dict[int, Episode] = {}
        for index in range(start, config.episodes):
            while sent < min(config.episodes, index + window):
                jobs.put(job(config, sent))
                sent += 1
            while index not in ready:
                number, episode, failure = _receive(processes, results)
                if episode is None:
                    raise WorldgymError(f"a worker failed at episode {number}:\n{failure}")
                ready[number] = episode
            yield ready.pop(index)


def _receive(processes: list[Any], results: Any) -> tuple[int, Episode | None, str | None]:
    while True:
        try:
            return results.get(timeout=1.0)
        except queue.Empty:
            for process in processes:
                if not process.is_alive():
                    raise WorldgymError(
                        f"worker {process.pid} died with exit code {process.exitcode} (-9 or 137: out of memory?); "
                        "run the same command again, with fewer --workers if it recurs"
                    ) from None


@contextmanager
def _workers(config: CollectConfig) -> Iterator[tuple[list[Any], Any, Any]]:
    context = multiprocessing.get_context("spawn")  # OpenGL contexts do not survive a fork
    jobs: Any = context.Queue()
    results: Any = context.Queue()
    processes = [
        context.Process(target=_work, args=(config, jobs, results), name=f"collect-{number}", daemon=True)
        for number in range(min(config.workers, config.episodes))
    ]
    for process in processes:
        process.start()
    try:
        yield processes, jobs, results
        for _ in processes:
            jobs.put(None)
        for process in processes:
            process.join(timeout=5.0)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
        for process in processes:  # all have been asked to stop before the first join
            process.join(timeout=2.0)
            if process.is_alive():
                process.kill()
        jobs.cancel_join_thread()
        results.cancel_join_thread()
