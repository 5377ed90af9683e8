"""Imagined rollouts on Ray actors. Each actor holds the world model and the judge; the policy is sent once per round.

Work is cut into pieces of a few starts. The result of a piece depends only on policy, starts, seed and piece number.
It is therefore the same for any number of workers, and also if a worker is killed: another worker then repeats the
piece. World model and judge are put into the object store once, and every worker reads them from there.

Example::

    with RolloutPool(world_model, judge, workers=2) as pool:
        rollouts = pool.collect(policy, bank.sample(48, rng), seed=0, group_size=6, horizon=25)
    same = collect_in_pieces(world_model, judge, policy, starts, seed=0, group_size=6, horizon=25)   # without Ray
"""

from __future__ import annotations

import copy
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typing_extensions import Self

from agents.loading import PackedPolicy, pack_policy
from agents.rollouts.imagined import Starts, collect
from agents.rollouts.ray_watch import watch
from agents.rollouts.trajectories import Rollouts
from worldgym.errors import ConfigError, WorldgymError
from worldgym.registry import POLICIES
from worldgym.utils.devices import choose_device, place
from worldgym.utils.memory import resident_mb
from worldgym.utils.optional import require

logger = logging.getLogger(__name__)
_watchers: list[Any] = []
PIECE = 8
"""Default number of starts per piece."""


def piece_generator(seed: int, number: int) -> torch.Generator:
    """Random generator of piece `number` of a collection."""
    state = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def pieces_of(starts: Starts, piece: int) -> list[Starts]:
    """Split into consecutive pieces of `piece` starts; the last piece may be smaller."""
    if piece < 1:
        raise ConfigError(f"piece is {piece}, expected at least 1 start")
    return [starts.select(np.arange(i, min(i + piece, len(starts)))) for i in range(0, len(starts), piece)]


def collect_in_pieces(
    world_model: Any,
    judge: Any,
    policy: Any,
    starts: Starts,
    *,
    seed: int,
    piece: int = PIECE,
    **settings: Any,
) -> Rollouts:
    """Compute the result of `RolloutPool.collect` in this process, without Ray.

    Args:
        world_model: as in `collect`.
        judge: as in `collect`.
        policy: as in `collect`.
        starts: as in `collect`.
        seed: seed of all randomness, at least 0.
        piece: starts per piece.
        **settings: of `collect`, except the generator.
    """
    return Rollouts.concatenate(
        [
            collect(world_model, judge, policy, part, generator=piece_generator(seed, number), **settings)
            for number, part in enumerate(pieces_of(starts, piece))
        ]
    )


class RolloutPool:
    """Pool of Ray actors that collect imagined rollouts.

    Args:
        world_model: any `WorldModel` that can be pickled.
        judge: any `RewardModel` that can be pickled.
        workers: number of actors.
        threads: torch threads and CPUs per actor.
        gpus: fraction of a GPU per actor; above 0, world model, judge and policy run there, else on the CPU.
        dtype: precision of the world model, `float32` or `bfloat16`; `auto` leaves it unchanged.
        address: address of a running cluster (`auto`, `ray://host:10001`). None uses the cluster that this process is
            connected to, or starts one on this machine.
        retries: how many times a piece is repeated on another worker after a worker died.

    Raises:
        DependencyError: Ray is not installed.
        ConfigError: the cluster has too few resources, or does not respond.
    """

    def __init__(
        self,
        world_model: Any,
        judge: Any,
        workers: int = 2,
        *,
        threads: int = 1,
        gpus: float = 0.0,
        address: str | None = None,
        retries: int = 2,
        dtype: str = "auto",
    ) -> None:
        if workers < 1 or threads < 1 or gpus < 0 or retries < 0:
            raise ConfigError(
                f"workers={workers}, threads={threads}, gpus={gpus}, retries={retries}; expected at least 1, 1, 0, 0"
            )
        self._ray = ray = require("ray", extra="rllib")
        self._started = connect(ray, address, workers * threads)
        check_resources(ray, {"CPU": workers * threads, "GPU": workers * gpus})
        self.threads, self.retries = threads, retries
        self._remote = ray.remote(num_cpus=threads, num_gpus=gpus)(_Imaginer)
        self._parts = (ray.put(on_cpu(world_model)), ray.put(on_cpu(judge)))
        self._device, self._dtype = "cuda" if gpus else "cpu", dtype
        self.workers = [self._worker() for _ in range(workers)]
        self.replaced = 0
        try:
            self.memory_mb()  # fails here if a worker cannot be created, instead of at its first piece
        except ray.exceptions.RayError as error:
            self.close()
            missing = re.search(r"No module named '([^']+)'", str(error))
            what = f"has no package {missing[1]!r}" if missing else f"could not be created: {error}"
            raise ConfigError(
                f"a Ray worker {what}. Every node needs this version of worldgym with its extra `rllib`, and the "
                "packages of world model and judge; experiments/cluster/Dockerfile builds a suitable image"
            ) from error

    def _worker(self) -> Any:
        return self._remote.remote(*self._parts, self.threads, self._device, self._dtype)

    def collect(
        self, policy: Any, starts: Starts, *, seed: int, piece: int = PIECE, **settings: Any
    ) -> Rollouts:
        """Imagine `len(starts) * group_size` trajectories, in the order of the starts; see `agents.collect`.

        Args:
            policy: sent to the workers once. A policy of a registered type is sent as files, and its package must be
                installed on the workers' machines.
            starts: start states.
            seed: seed of all randomness, at least 0; the result depends on it and on `piece`.
            piece: starts that are imagined together on one worker.
            **settings: of `collect`, except the generator.

        Raises:
            RuntimeError: a piece killed more workers than `retries` allows.
            WorldgymError: `collect` raised it on a worker.
        """
        ray = self._ray
        # A policy of an unregistered type is sent as a pickled object.
        packed = pack_policy(policy) if POLICIES.name_of(policy) else on_cpu(policy)
        parts, sent = pieces_of(starts, piece), ray.put(packed)
        waiting = list(range(len(parts)))[::-1]
        tries, done = [0] * len(parts), dict[int, Rollouts]()
        idle, running = list(self.workers), dict[Any, tuple[int, Any]]()
        while waiting or running:
            while waiting and idle:
                number, worker = waiting.pop(), idle.pop()
                running[worker.imagine.remote(sent, parts[number], seed, number, settings)] = (number, worker)
            ready, _ = ray.wait(list(running), num_returns=1)
            for reference in ready:
                number, worker = running.pop(reference)
                try:
                    done[number] = ray.get(reference)
                except ray.exceptions.RayActorError as error:
                    tries[number] += 1
                    if tries[number] > self.retries:
                        raise RuntimeError(
                            f"piece {number} ended {tries[number]} workers in a row ({error}); check their logs, "
                            "first for lack of memory"
                        ) from error
                    logger.warning("a worker died at piece %d; another worker repeats it", number)
                    self.workers.remove(worker)
                    worker = self._worker()
                    self.workers.append(worker)
                    self.replaced += 1
                    waiting.append(number)
                except ray.exceptions.RayTaskError as error:
                    # Ray's own text holds the worker's whole traceback; an error with an explanation needs none.
                    raise (error.cause if isinstance(error.cause, WorldgymError) else error) from None
                idle.append(worker)
        return Rollouts.concatenate([done[number] for number in range(len(parts))])

    def memory_mb(self) -> list[float]:
        """Resident memory of each worker, in megabytes."""
        return list(self._ray.get([worker.memory_mb.remote() for worker in self.workers]))

    def close(self) -> None:
        """Stop the workers, and Ray if this pool started it; may be called twice."""
        for worker in self.workers:
            self._ray.kill(worker)
        self.workers = []
        if self._started:
            disconnect(self._ray)
            self._started = False

    def __enter__(self) -> Self:
        """Return the pool."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close."""
        self.close()


class _Imaginer:
    """Actor that imagines rollouts."""

    def __init__(
        self, world_model: Any, judge: Any, threads: int, device: str = "cpu", dtype: str = "auto"
    ) -> None:
        torch.set_num_threads(threads)
        # Ray shows a worker only the GPUs assigned to it, so `cuda` is one of them.
        self.device = choose_device(device)
        self.world_model, self.judge = place(world_model, self.device, dtype), place(judge, self.device)
        self.read: dict[str, Any] = {}  # the latest packed policy

    def imagine(
        self, policy: Any, starts: Starts, seed: int, number: int, settings: dict[str, Any]
    ) -> Rollouts:
        """Collect the rollouts of one piece."""
        if isinstance(policy, PackedPolicy):
            if policy.key not in self.read:
                self.read = {policy.key: place(policy.load(), self.device)}
            policy = self.read[policy.key]
        else:
            policy = place(policy, self.device)
        generator = piece_generator(seed, number)
        return collect(self.world_model, self.judge, policy, starts, generator=generator, **settings)

    def memory_mb(self) -> float:
        """Resident memory of this worker, in megabytes."""
        return resident_mb()


def on_cpu(part: Any) -> Any:
    """Return `part`, or a CPU copy if it is on another device, which a worker may lack."""
    where = getattr(part, "device", None)
    if where is None and isinstance(part, torch.nn.Module):
        where = next((p.device for p in part.parameters()), None)
    if where is None or torch.device(where).type == "cpu":
        return part
    return place(copy.deepcopy(part), torch.device("cpu"))


def connect(ray: Any, address: str | None, cpus: int | None) -> bool:
    """Connect to a cluster; returns True if a local one was started with `cpus` CPUs (None: all).

    Raises:
        ConfigError: no cluster responds at `address`, or Ray does not start on this machine.
    """
    if ray.is_initialized():
        return False
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.WARNING}
    if address is None or address == "local":
        _watchers.append(watch(Path(ray.__file__).parent))  # after a kill, Ray's agents would run for another minute
        # address="local" is explicit; otherwise Ray would use a stale address file of a killed cluster.
        try:
            ray.init(address="local", num_cpus=cpus, **quiet)
        except (
            Exception
        ) as error:  # a full /tmp, or a limit on processes or file sizes: Ray only reports a timeout
            disconnect(ray)
            raise ConfigError(
                f"Ray could not start on this machine ({type(error).__name__}: {str(error).splitlines()[0]}). Make "
                "sure that /tmp has a gigabyte of free space, check /tmp/ray/session_latest/logs, or do not set workers"
            ) from error
        return True
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except Exception as error:  # the type depends on the kind of address
        raise ConfigError(
            f"no Ray cluster answers at {address!r} ({type(error).__name__}: {str(error).splitlines()[0]}). Start one "
            "with `ray start --head`, or do not set the address, to use only this machine"
        ) from error
    return False


def disconnect(ray: Any) -> None:
    """Shut down a cluster that `connect` started."""
    ray.shutdown()
    for watcher in filter(None, _watchers):
        watcher.stdin.close()
    _watchers[:] = [watcher for watcher in filter(None, _watchers) if watcher.poll() is None]


def check_resources(ray: Any, asked: dict[str, float]) -> None:
    """Compare the requested resources with those of the cluster, instead of waiting for them forever.

    Raises:
        ConfigError: a resource is insufficient.
    """
    has = ray.cluster_resources()
    lines = [
        f"{name}: {amount:g} requested, {has.get(name, 0):g} available"
        for name, amount in asked.items()
        if amount
    ]
    logger.info("Ray resources: %s", "; ".join(lines))
    short = [name for name, amount in asked.items() if amount > has.get(name, 0)]
    if short:
        raise ConfigError(
            f"the Ray cluster is too small: {'; '.join(lines)}. Request fewer workers or threads, or add nodes"
        )
