"""Paired evaluation of policies in an environment that stands in for the real robot.

Two policies can only be compared on the *same* start states, and significant differences need a few hundred episodes. A
start state is determined by (seed, task, split), so any two results over the same list of starts are paired. Each
worker process steps about sixteen environments in turn and batches the policy calls over them. Physics is sequential,
because a process has one renderer.

The environment is given as an entry-point string (`worldgym.suite.SINGLE` with the keyword `suite`, or a class), since
`worldgym` does not import simulators. A policy is passed to a worker as a folder whose `config.json` holds its
registered type, not as pickled weights.

Determinism: starts are divided into fixed blocks of `block` starts. Each block samples from one generator seeded by
(seed, start seeds of the block). A result therefore depends on seed, starts and block size, but not on the number of
workers or the assignment of blocks to workers.

Example::

    starts = make_starts(["reach", "push"], per_task=100)
    with EvaluationPool("worldgym.suite:make_env", workers=2) as pool:
        before = pool.evaluate(PolicyRef("sft/"), starts)
        after = pool.evaluate(PolicyRef("rl/"), starts)
    paired_bootstrap(after.success, before.success)
"""

from __future__ import annotations

import importlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from worldgym.errors import CheckpointError, ConfigError
from worldgym.evaluation.latency import Delays, Latency
from worldgym.evaluation.outcomes import EvalResult, Start, make_starts, shuffle_instructions
from worldgym.imagination.observations import state_of
from worldgym.registry import POLICIES
from worldgym.serving.address import is_address
from worldgym.specs import check_fit
from worldgym.utils.devices import choose_device, place

__all__ = [
    "EvalResult",
    "EvaluationPool",
    "PolicyRef",
    "Start",
    "evaluate_policy",
    "make_starts",
    "resolve",
    "run_block",
    "shuffle_instructions",
]


@dataclass(frozen=True)
class PolicyRef:
    """Reference to a saved policy, which any process can load by its registered type.

    Args:
        path: folder written by `save_pretrained`, or, with a `loader`, the address of a server.
        loader: for a class that is not registered: entry point "module:Class" with a `from_pretrained(path)`, or
            "module:function" that takes a path.
        device: device of the loaded policy: `auto`, `cpu`, `cuda` or `cuda:N`.
    """

    path: str
    loader: str | None = None
    device: str = "cpu"

    def load(self) -> Any:
        """Load the policy in evaluation mode.

        Raises:
            CheckpointError: the folder holds no policy, or a damaged one.
            ConfigError: the type of the policy is not registered.
        """
        if self.loader is None:
            policy = POLICIES.load(self.path)
        else:
            target = resolve(self.loader)
            policy = getattr(target, "from_pretrained", target)(self.path)
        policy = place(policy, choose_device(self.device))
        if hasattr(policy, "eval"):
            policy.eval()
        return policy

    def stamp(self) -> tuple[str, str, str, int]:
        """Cache key of the policy, which changes when its files change."""
        path = Path(self.path)
        if is_address(self.path):
            return self.loader or "", self.path, self.device, 0
        if not path.exists():
            raise CheckpointError(f"no policy at {path}; give a folder written by save_pretrained")
        files = [path, *path.rglob("*")] if path.is_dir() else [path]
        return self.loader or "", str(path), self.device, max(file.stat().st_mtime_ns for file in files)


def resolve(entry_point: str) -> Any:
    """Import "module:attribute".

    Raises:
        ValueError: the text has no colon, or the module does not have the attribute.
    """
    module, _, attribute = entry_point.partition(":")
    if not attribute:
        raise ValueError(f"expected an entry point 'module:attribute', got {entry_point!r}")
    target: Any = importlib.import_module(module)
    try:
        for part in attribute.split("."):
            target = getattr(target, part)
    except AttributeError as error:
        raise ValueError(f"module {module!r} has no {attribute!r}, wanted for {entry_point!r}") from error
    return target


EnvFactory = str | Callable[..., Any]


def make_env(factory: EnvFactory, kwargs: Mapping[str, Any] | None = None) -> Any:
    """Build one environment from an entry-point string or a callable."""
    return (resolve(factory) if isinstance(factory, str) else factory)(**dict(kwargs or {}))


def reset_env(env: Any, start: Start) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reset an environment to a start state; the observation holds the instruction that the policy gets."""
    observation, info = env.reset(seed=start.seed, options={"task": start.task, "split": start.split})
    if start.instruction is not None:
        observation = {**observation, "instruction": start.instruction}
    return observation, info


def batch_observations(observations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stack single observations to the batch format of `Policy.act`, with the images of all cameras."""
    import torch

    pictures = [key for key in observations[0] if key == "image" or key.startswith("image_")]
    return {
        **{key: torch.from_numpy(np.stack([np.asarray(o[key]) for o in observations])) for key in pictures},
        "state": torch.from_numpy(np.stack([np.asarray(state_of(o), dtype=np.float32) for o in observations])),
        "instruction": [str(o["instruction"]) for o in observations],
    }


def first_observations(env: Any, starts: Sequence[Start]) -> dict[str, Any]:
    """Batch of the first observations of these starts, in the format of `Policy.act`; start of imagined episodes."""
    return batch_observations([reset_env(env, start)[0] for start in starts])


def run_block(
    policy: Any,
    envs: Sequence[Any],
    starts: Sequence[Start],
    *,
    temperature: float,
    seed: int,
    latency: Latency | None = None,
) -> list[tuple[bool, float, int, str]]:
    """Run one block of starts with batched policy calls; each chunk is executed open loop before the next observation.

    Args:
        policy: a `worldgym.protocols.Policy`.
        envs: at least `len(starts)` environments.
        starts: the block.
        temperature: sampling temperature; 0 is greedy.
        seed: sampling seed, combined with the seeds of the starts.
        latency: time of inference; None for none. It needs environments that take single actions.

    Returns:
        (success_once, best progress, steps, true instruction) of every start.

    Raises:
        ConfigError: the policy does not fit the environment, its actions have a wrong shape or are NaN or infinite, or
            the environments take chunks although a latency is given.
    """
    import torch

    from worldgym.imagination.policy_output import check_output

    check_fit(getattr(envs[0], "unwrapped", envs[0]), policy, "the environment", "the policy")
    words = np.random.SeedSequence([seed, *(start.seed for start in starts)]).generate_state(2)
    generator = torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
    observations: list[Any] = []
    outcomes: list[list[Any]] = []
    for env, start in zip(envs, starts, strict=False):  # a smaller block does not use all environments
        observation, info = reset_env(env, start)
        observations.append(observation)
        succeeded, progress = bool(info.get("success", False)), float(info.get("progress", 0.0))
        true_instruction = info.get("instruction_text", observation["instruction"])
        outcomes.append([succeeded, progress, 0, str(true_instruction)])
    size = (getattr(getattr(envs[0], "action_space", None), "shape", None) or (None,))[-1]
    delays = None if latency is None else Delays(latency, policy.chunk, getattr(envs[0], "unwrapped", envs[0]))
    if delays is not None and _takes_chunks(envs[0]):
        raise ConfigError("a latency counts single steps, and this environment takes chunks; leave out its chunk=")
    running = list(range(len(starts)))
    while running:
        with torch.inference_mode():
            batch = batch_observations([observations[i] for i in running])
            output = policy.act(batch, temperature=temperature, generator=generator)
            output = check_output(
                output, policy, batch, action_dim=size, chunk=getattr(policy, "chunk", None)
            )
        chunks = output.actions.cpu().numpy()
        unfinished = []
        for row, i in enumerate(running):
            instruction = observations[i]["instruction"]
            outcome, done = outcomes[i], False
            actions = chunks[row] if delays is None else delays.plan(i, chunks[row])
            for action in actions[None] if _takes_chunks(envs[i]) else actions:
                observation, _, terminated, truncated, info = envs[i].step(action)
                outcome[0] = outcome[0] or bool(info["success"])
                outcome[1] = max(outcome[1], float(info.get("progress", 0.0)))
                outcome[2] += len(action) if action.ndim == 2 else 1
                done = bool(terminated or truncated)
                if done:
                    outcome[2] = int(info.get("episode_len", outcome[2]))
                    break
            observations[i] = {**observation, "instruction": instruction}
            if not done:
                unfinished.append(i)
        running = unfinished
    return [tuple(outcome) for outcome in outcomes]  # type: ignore[misc]


def _takes_chunks(env: Any) -> bool:
    """Whether a step takes a chunk `(K, A)`; such an environment renders only the frames that the policy reads."""
    return len(getattr(getattr(env, "action_space", None), "shape", None) or ()) == 2


# Environments and policies that a process keeps between jobs; filled by `_run_job`.
@dataclass
class _Cache:
    envs: dict[str, list[Any]] = field(default_factory=dict)
    policies: dict[tuple[str, str, str, int], Any] = field(default_factory=dict)


_CACHE = _Cache()


def _init_worker() -> None:
    import signal

    import torch

    # Ctrl-C is sent to the whole process group; only the parent should handle it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Several processes with several threads each would compete for the cores.
    torch.set_num_threads(1)


def _run_job(
    factory: EnvFactory,
    env_kwargs: dict[str, Any],
    policy: PolicyRef | Any,
    starts: list[Start],
    temperature: float,
    seed: int,
    latency: Latency | None = None,
    cache: _Cache | None = None,
) -> list[tuple[bool, float, int, str]]:
    cache = _CACHE if cache is None else cache
    envs = cache.envs.setdefault(f"{factory}|{sorted(env_kwargs.items())}", [])
    while len(envs) < len(starts):
        envs.append(make_env(factory, env_kwargs))
    if isinstance(policy, PolicyRef):
        stamp = policy.stamp()
        if stamp not in cache.policies:
            cache.policies.clear()  # a process keeps one policy, and its files may have been overwritten
            cache.policies[stamp] = policy.load()
        policy = cache.policies[stamp]
    return run_block(policy, envs, starts, temperature=temperature, seed=seed, latency=latency)


class EvaluationPool:
    """Pool of worker processes, which keep their environments and imports between evaluations.

    Args:
        env: entry point "module:Class", or a callable (then `workers` must be 0).
        workers: number of worker processes; 0 runs in this process.
        env_kwargs: keyword arguments of the environment.
        block: starts per policy batch; changes the result, see the module docstring.

    Raises:
        ValueError: `env` is a callable and `workers` is not 0.
    """

    def __init__(
        self,
        env: EnvFactory,
        *,
        workers: int = 2,
        env_kwargs: Mapping[str, Any] | None = None,
        block: int = 16,
    ) -> None:
        if workers and not isinstance(env, str):
            raise ValueError(f"workers={workers} needs the environment as 'module:Class' text, got {env!r}")
        if block < 1 or workers < 0:
            raise ValueError(f"expected block >= 1 and workers >= 0, got block={block}, workers={workers}")
        self.env, self.workers, self.block = env, workers, block
        self.env_kwargs = dict(env_kwargs or {})
        self._executor: ProcessPoolExecutor | None = None
        self._cache = _Cache()

    def evaluate(
        self,
        policy: PolicyRef | Any,
        starts: Sequence[Start],
        *,
        temperature: float = 0.0,
        seed: int = 0,
        latency: Latency | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> EvalResult:
        """Run a policy once from every start.

        Args:
            policy: a `PolicyRef`, or a policy object (saved to a temporary folder for worker processes).
            starts: start states; the result has the same order.
            temperature: sampling temperature; 0 is greedy.
            seed: sampling seed.
            latency: time of inference; None for none. It needs a pool whose environments take single actions.
            progress: called with (episodes done, total episodes).

        Raises:
            ValueError: there are no starts.
            CheckpointError: the folder of a `PolicyRef` does not exist.
        """
        if not starts:
            raise ValueError("evaluate needs at least one start; make some with make_starts(tasks, per_task)")
        began = time.perf_counter()
        blocks = [list(starts[i : i + self.block]) for i in range(0, len(starts), self.block)]
        rows: list[list[tuple[bool, float, int, str]]] = [[] for _ in blocks]
        done = 0
        with _as_reference(policy, self.workers) as ready:
            for index, block_rows in self._run(ready, blocks, temperature, seed, latency):
                rows[index] = block_rows
                done += len(block_rows)
                if progress is not None:
                    progress(done, len(starts))
        flat = [row for block_rows in rows for row in block_rows]
        return EvalResult(
            starts=tuple(starts),
            success=np.array([row[0] for row in flat], dtype=bool),
            progress=np.array([row[1] for row in flat], dtype=np.float32),
            steps=np.array([row[2] for row in flat], dtype=np.int64),
            instructions=tuple(row[3] for row in flat),
            temperature=float(temperature),
            seed=int(seed),
            seconds=time.perf_counter() - began,
        )

    def _run(
        self, policy: Any, blocks: list[list[Start]], temperature: float, seed: int, latency: Latency | None
    ) -> Iterator[tuple[int, list[tuple[bool, float, int, str]]]]:
        if not self.workers:
            for index, block in enumerate(blocks):
                rows = _run_job(
                    self.env, self.env_kwargs, policy, block, temperature, seed, latency, self._cache
                )
                yield index, rows
            return
        if isinstance(policy, PolicyRef):
            policy.stamp()  # raises the error for a missing folder here instead of in a worker
        if self._executor is None:
            # spawn, because a forked child would inherit torch's threads and the GL context of the parent
            self._executor = ProcessPoolExecutor(self.workers, get_context("spawn"), initializer=_init_worker)
        job = (self.env, self.env_kwargs, policy)
        futures: dict[Future[Any], int] = {
            self._executor.submit(_run_job, *job, block, temperature, seed, latency): index
            for index, block in enumerate(blocks)
        }
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """Stop the workers and close the environments of this process."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None
        for envs in self._cache.envs.values():
            for env in envs:
                env.close()
        self._cache = _Cache()

    def __enter__(self) -> EvaluationPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@contextmanager
def _as_reference(policy: PolicyRef | Any, workers: int) -> Iterator[PolicyRef | Any]:
    """Save a policy object to a temporary folder for the workers, so that its weights are not pickled."""
    if isinstance(policy, PolicyRef) or not workers:
        yield policy
        return
    with tempfile.TemporaryDirectory(prefix="worldgym-policy-") as folder:
        POLICIES.save(policy, folder)
        kind = type(policy)
        loader = None if POLICIES.name_of(policy) else f"{kind.__module__}:{kind.__qualname__}"
        yield PolicyRef(folder, loader)


def evaluate_policy(
    policy: PolicyRef | Any,
    env: EnvFactory,
    starts: Sequence[Start],
    *,
    temperature: float = 0.0,
    seed: int = 0,
    workers: int = 2,
    env_kwargs: Mapping[str, Any] | None = None,
    block: int = 16,
    latency: Latency | None = None,
) -> EvalResult:
    """Evaluate a policy once; for several evaluations use `EvaluationPool`, because starting workers is slow."""
    with EvaluationPool(env, workers=workers, env_kwargs=env_kwargs, block=block) as pool:
        return pool.evaluate(policy, starts, temperature=temperature, seed=seed, latency=latency)
