"""Imagined rollouts on Ray actors: each holds the world model and the judge, policy weights are sent once a round.

Work is cut into pieces of a few starts. What a piece gives is a function of policy, starts, seed and its number alone,
so the result is the same for any number of workers, and the same when a worker is killed half-way: another one does
the piece again. World model and judge enter the object store once, and every worker reads them from there.

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
from worldgym.errors import ConfigError
from worldgym.registry import POLICIES
from worldgym.utils.devices import choose_device, place
from worldgym.utils.memory import resident_mb
from worldgym.utils.optional import require

logger = logging.getLogger(__name__)
_watchers: list[Any] = []
PIECE = 8
"""Starts a piece, unless told otherwise."""


def piece_generator(seed: int, number: int) -> torch.Generator:
    """All randomness of piece `number` of a collection."""
    state = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def pieces_of(starts: Starts, piece: int) -> list[Starts]:
    """Consecutive starts, `piece` at a time; the last piece may be smaller."""
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
    """What a `RolloutPool` gives, in this process.

    Args:
        world_model: as in `collect`.
        judge: as in `collect`.
        policy: as in `collect`.
        starts: as in `collect`.
        seed: of all randomness, at least 0.
        piece: starts a piece.
        **settings: of `collect`, the generator excepted.
    """
    return Rollouts.concatenate(
        [
            collect(world_model, judge, policy, part, generator=piece_generator(seed, number), **settings)
            for number, part in enumerate(pieces_of(starts, piece))
        ]
    )


class RolloutPool:
    """Ray actors that imagine.

    Args:
        world_model: any `WorldModel` that can be pickled.
        judge: any `RewardModel` that can be pickled.
        workers: actors.
        threads: torch threads, and CPUs, of each.
        gpus: share of a GPU that each one asks for; with any, its parts are computed there, else on the CPU.
        dtype: precision of the world model, `float32` or `bfloat16`; `auto` leaves it as it is.
        address: of a running cluster (`auto`, `ray://host:10001`); None uses the one this process is connected to, or
            starts one on this machine.
        retries: how often a piece is tried again on another worker after one died.

    Raises:
        DependencyError: Ray is not installed.
        ConfigError: the cluster has less than what is asked for, or does not answer.
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
            self.memory_mb()  # a worker that cannot even be made would look like one that died at its first piece
        except ray.exceptions.RayError as error:
            self.close()
            missing = re.search(r"No module named '([^']+)'", str(error))
            what = f"has no package {missing[1]!r}" if missing else f"could not be made: {error}"
            raise ConfigError(
                f"a Ray worker {what}. Every node needs this version of worldgym with its extra `rllib`, and whatever "
                "else world model and judge are made of; experiments/cluster/Dockerfile is an image of that kind"
            ) from error

    def _worker(self) -> Any:
        return self._remote.remote(*self._parts, self.threads, self._device, self._dtype)

    def collect(
        self, policy: Any, starts: Starts, *, seed: int, piece: int = PIECE, **settings: Any
    ) -> Rollouts:
        """Imagine `len(starts) * group_size` trajectories, in the order of the starts; see `agents.collect`.

        Args:
            policy: sent to the workers once: as files where its type is registered, which the workers' machines must
                have installed as well.
            starts: where to begin.
            seed: of all randomness, at least 0; with `piece` it decides the result.
            piece: starts that are imagined together on one worker.
            **settings: of `collect`, the generator excepted.

        Raises:
            RuntimeError: a piece killed more workers than `retries` allows.
        """
        ray = self._ray
        # A type that no registry knows is sent as the object that it is.
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
                            f"piece {number} ended {tries[number]} workers in turn ({error}); look into their logs, "
                            "for lack of memory first"
                        ) from error
                    logger.warning("a worker died at piece %d; another one does it again", number)
                    self.workers.remove(worker)
                    worker = self._worker()
                    self.workers.append(worker)
                    self.replaced += 1
                    waiting.append(number)
                idle.append(worker)
        return Rollouts.concatenate([done[number] for number in range(len(parts))])

    def memory_mb(self) -> list[float]:
        """Resident megabytes of each worker."""
        return list(self._ray.get([worker.memory_mb.remote() for worker in self.workers]))

    def close(self) -> None:
        """End the workers, and Ray where this pool started it; twice is allowed."""
        for worker in self.workers:
            self._ray.kill(worker)
        self.workers = []
        if self._started:
            disconnect(self._ray)
            self._started = False

    def __enter__(self) -> Self:
        """The pool itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close."""
        self.close()


class _Imaginer:
    """One actor."""

    def __init__(
        self, world_model: Any, judge: Any, threads: int, device: str = "cpu", dtype: str = "auto"
    ) -> None:
        torch.set_num_threads(threads)
        # Ray shows a worker the GPUs that it was given and no others, so that `cuda` is one of them.
        self.device = choose_device(device)
        self.world_model, self.judge = place(world_model, self.device, dtype), place(judge, self.device)
        self.read: dict[str, Any] = {}  # the newest packed policy

    def imagine(
        self, policy: Any, starts: Starts, seed: int, number: int, settings: dict[str, Any]
    ) -> Rollouts:
        """One piece."""
        if isinstance(policy, PackedPolicy):
            if policy.key not in self.read:
                self.read = {policy.key: place(policy.load(), self.device)}
            policy = self.read[policy.key]
        else:
            policy = place(policy, self.device)
        generator = piece_generator(seed, number)
        return collect(self.world_model, self.judge, policy, starts, generator=generator, **settings)

    def memory_mb(self) -> float:
        """Resident megabytes of this worker."""
        return resident_mb()


def on_cpu(part: Any) -> Any:
    """`part`, or a copy of it on the CPU where it is elsewhere: a worker may lack the device that this process has."""
    where = getattr(part, "device", None)
    if where is None and isinstance(part, torch.nn.Module):
        where = next((p.device for p in part.parameters()), None)
    if where is None or torch.device(where).type == "cpu":
        return part
    return place(copy.deepcopy(part), torch.device("cpu"))


def connect(ray: Any, address: str | None, cpus: int | None) -> bool:
    """Be connected to a cluster; True if one of `cpus` (all there are when None) was started for it on this machine.

    Raises:
        ConfigError: nobody answers at `address`, or Ray does not start here.
    """
    if ray.is_initialized():
        return False
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.WARNING}
    if address is None or address == "local":
        _watchers.append(watch(Path(ray.__file__).parent))  # Ray's agents outlive a killed driver by a minute
        # Said outright: a stale address file of a killed cluster would otherwise be followed.
        try:
            ray.init(address="local", num_cpus=cpus, **quiet)
        except (
            Exception
        ) as error:  # a full /tmp, a limit of processes or file sizes: Ray only says that it timed out
            disconnect(ray)
            raise ConfigError(
                f"Ray could not start on this machine ({type(error).__name__}: {str(error).splitlines()[0]}). See that "
                "/tmp has a gigabyte of free space, look into /tmp/ray/session_latest/logs, or leave out the workers"
            ) from error
        return True
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except Exception as error:  # each kind of address fails in its own way
        raise ConfigError(
            f"no Ray cluster answers at {address!r} ({type(error).__name__}: {str(error).splitlines()[0]}). Start one "
            "with `ray start --head`, or leave out the address to use this machine alone"
        ) from error
    return False


def disconnect(ray: Any) -> None:
    """End a cluster that `connect` has started."""
    ray.shutdown()
    for watcher in filter(None, _watchers):
        watcher.stdin.close()
    _watchers[:] = [watcher for watcher in filter(None, _watchers) if watcher.poll() is None]


def check_resources(ray: Any, asked: dict[str, float]) -> None:
    """Compare what is asked for with what the cluster has, instead of waiting for it for ever.

    Raises:
        ConfigError: too little of something.
    """
    has = ray.cluster_resources()
    lines = [
        f"{name}: {amount:g} asked for, {has.get(name, 0):g} there"
        for name, amount in asked.items()
        if amount
    ]
    logger.info("Ray resources: %s", "; ".join(lines))
    short = [name for name, amount in asked.items() if amount > has.get(name, 0)]
    if short:
        raise ConfigError(
            f"the Ray cluster has too little: {'; '.join(lines)}. Ask for fewer workers or threads, or add nodes"
        )
