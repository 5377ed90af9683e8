"""Rollouts in a simulator with its true reward, in worker processes.

There are two uses: debugging an improver with a correct reward before using a world model, and the simulator baseline
of a comparison. The environment is given as the name of a suite, since `agents` does not import a simulator. The
policy runs in this process, on the whole batch.

Example::

    with SimulatorCollector(env_kwargs={"domain": "soft", "gap": 0.5}) as simulator:
        rollouts = simulator.collect(policy, seeds=range(5_000_000, 5_000_016), tasks=["reach"] * 16)
"""

from __future__ import annotations

import importlib
import multiprocessing
import time
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from agents.rollouts.exploration import GoalExploration
from agents.rollouts.trajectories import Rollouts
from worldgym.errors import ConfigError
from worldgym.imagination.observations import state_of
from worldgym.imagination.policy_output import check_output
from worldgym.protocols import Observation, Policy, RewardModel, Temperature, reads_of, settled, threshold_of
from worldgym.suite import BATCH, default_suite, load_suite


class SimulatorCollector:
    """A pool of simulator processes that roll out grouped starts in lockstep.

    Args:
        env: name of a suite; None uses the default suite. Or an entry point `module:VectorEnv`, called as `(num_envs=1,
            chunk=K, horizon=H, terminate_on_success=B, **env_kwargs)`, whose `info` has the entries `path`,
            `path_success` and `path_progress` for each step of a chunk (see `worldgym.suite.Suite.make`).
        env_kwargs: keyword arguments of the environment, e.g. `{"domain": "soft", "gap": 0.5}`.
        processes: number of worker processes; 0 runs the environment in this process.
    """

    def __init__(
        self, env: str | None = None, env_kwargs: Mapping[str, Any] | None = None, *, processes: int = 2
    ) -> None:
        self._kwargs, self._action_dim, self._others = dict(env_kwargs or {}), None, None
        if env is None or ":" not in env:
            self._kwargs["suite"], env = default_suite() if env is None else env, BATCH
            action = load_suite(self._kwargs["suite"]).specs.action  # raises for an unknown suite here
            self._action_dim = None if action is None else action.dim
            self._others = getattr(load_suite(self._kwargs["suite"]), "other_instructions", None)
        self._env = env
        self._processes = processes
        self._workers: list[tuple[Any, Connection]] = []
        self._local: dict[str, Any] = {}
        self._views: dict[str, torch.Tensor] = {}
        context = multiprocessing.get_context("spawn")  # OpenGL contexts do not survive a fork
        for _ in range(processes):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_serve, args=(theirs, env, self._kwargs), daemon=True)
            worker.start()
            theirs.close()
            self._workers.append((worker, ours))

    def __enter__(self) -> SimulatorCollector:
        """Return the collector."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Stop the workers."""
        self.close()

    def close(self) -> None:
        """Stop the workers; safe to call twice."""
        for worker, pipe in self._workers:
            try:
                pipe.send(("close", {}))
            except OSError:
                pass
            worker.join(5)
            if worker.is_alive():
                worker.terminate()
        self._workers = []

    def _ask(self, name: str, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if not self._workers:
            return [_answer(self._local, self._env, self._kwargs, name, parts[0])]
        for (_, pipe), part in zip(self._workers, parts, strict=True):
            pipe.send((name, part))
        answers = []
        for _, pipe in self._workers:
            status, answer = pipe.recv()
            if status == "error":
                raise RuntimeError(f"the simulator process failed:\n{answer}")
            answers.append(answer)
        return answers

    def first_frames(
        self, seeds: Sequence[int], tasks: Sequence[str], *, split: str = "seen", chunk: int = 5, horizon: int = 40,
        goes_on: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor, list[str]]:  # fmt: skip
        """Reset one environment per start.

        Args:
            seeds: N start seeds.
            tasks: N tasks.
            split: split of starts and instructions.
            chunk: actions per step of the environment.
            horizon: environment steps.
            goes_on: True continues the episode after a true success.

        Returns:
            images of the main camera `(N,H,W,3)` uint8, proprioception `(N,S)` float32, instructions.

        Raises:
            ValueError: the numbers of seeds and tasks differ.
        """
        if len(seeds) != len(tasks):
            raise ValueError(f"give one task for each seed; got {len(seeds)} seeds, {len(tasks)} tasks")
        parts = [
            {
                "seeds": [int(seeds[i]) for i in share],
                "tasks": [str(tasks[i]) for i in share],
                "split": split,
                "made": {"chunk": chunk, "horizon": horizon, "terminate_on_success": not goes_on},
            }
            for share in np.array_split(np.arange(len(seeds)), max(1, len(self._workers)))
        ]
        answers = self._ask("reset", parts)
        image, state, self._views = _seen(answers)
        return image, state, [text for x in answers for text in x["instruction"]]

    @torch.no_grad()
    def collect(
        self,
        policy: Policy,
        seeds: Sequence[int],
        tasks: Sequence[str],
        *,
        split: str = "seen",
        group_size: int = 8,
        horizon: int = 40,
        temperature: Temperature = 1.0,
        generator: torch.Generator | None = None,
        partial: bool = False,
        judge: RewardModel | None = None,
        distinct_goals: bool = False,
    ) -> Rollouts:
        """Roll out `len(seeds) * group_size` episodes; same meaning and order as `agents.collect`.

        Args:
            policy: the policy.
            seeds: M start seeds.
            tasks: M tasks.
            split: split of starts and instructions.
            group_size: episodes per start.
            horizon: environment steps.
            temperature: sampling temperature of the policy, or of each of its components.
            generator: source of the policy's randomness.
            partial: True sets the reward to the task progress averaged over the horizon, with progress 1 after success,
                as in World-Gymnast's simulator baseline. False sets it to 1 for success, else 0.
            judge: judges success from the simulator's frame after each chunk, in place of the true success. The
                rollouts then have the judge's errors but not the world model's.
            distinct_goals: attempts of a group try different goals (`agents.rollouts.exploration`).

        Raises:
            ConfigError: the judge reads more than one frame, or the policy's output has a wrong shape or is NaN or
                infinite.
        """
        if judge is not None and reads_of(judge).depth != 1:
            raise ConfigError(
                f"judge {judge.name} reads frames={reads_of(judge).frames!r}, but the simulator provides only the "
                "frame at the end of each chunk; use a judge of single frames, or a world model (agents.collect)"
            )
        k = policy.chunk
        chunks = -(-horizon // k)
        total = len(seeds) * group_size
        shares = np.array_split(np.arange(total), max(1, len(self._workers)))
        began = time.perf_counter()
        clock = {"imagine": 0.0, "policy": 0.0, "judge": 0.0}
        image, state, texts = self.first_frames(
            [seed for seed in seeds for _ in range(group_size)],
            [task for task in tasks for _ in range(group_size)],
            split=split,
            chunk=k,
            horizon=chunks * k,
            goes_on=judge is not None,
        )
        clock["imagine"] += time.perf_counter() - began
        earned = torch.zeros(total)
        explore = GoalExploration(policy, group_size, temperature, generator) if distinct_goals else None
        out: Rollouts | None = None
        running = torch.ones(total, dtype=torch.bool)
        for c in range(chunks):
            rows = running.nonzero().squeeze(1)
            if len(rows) == 0:
                break
            began = time.perf_counter()
            words = [texts[i] for i in rows.tolist()]
            observation = Observation(image=image[rows], state=state[rows], instruction=words)
            views = {key: view[rows] for key, view in self._views.items()}
            observation.update(views)  # type: ignore[typeddict-item]
            if explore is None:
                output = policy.act(observation, temperature=temperature, generator=generator)
            else:
                output = explore(observation, rows.numpy())
            output = check_output(
                output, policy, observation, action_dim=self._action_dim, chunk=k, stored=True
            )
            clock["policy"] += time.perf_counter() - began
            if out is None:
                out = Rollouts.empty(image, state, texts, group_size, (chunks, k, output.actions.shape[2]))
            whole = torch.ones(len(rows), dtype=torch.bool)
            out.record(rows, c, observation, output, whole)
            began = time.perf_counter()
            parts = [
                {"actions": out.actions[share, c].numpy(), "running": running[share].numpy()}
                for share in shares
            ]
            answers = self._ask("step", parts)
            clock["imagine"] += time.perf_counter() - began
            image, state, self._views = _seen(answers)
            path = torch.from_numpy(np.concatenate([x["path"] for x in answers])).float()
            assert out.path is not None
            out.path[rows, c * k : (c + 1) * k] = path[rows]
            success = torch.from_numpy(np.concatenate([x["success"] for x in answers]))[rows]
            if judge is not None:
                began = time.perf_counter()
                verdict = settled(judge, image[rows][:, None], words, state[rows])
                success = verdict.p_success.cpu() >= threshold_of(judge)
                out.valid[rows[~verdict.valid.cpu()]] = False
                running[rows[~verdict.valid.cpu()]] = False
                success &= verdict.valid.cpu()
                clock["judge"] += time.perf_counter() - began
            out.frames_used += sum(int(x["steps"]) for x in answers)
            out.p_success[rows, c] = success.float()
            out.final_images[rows] = image[rows]
            out.reward[rows[success]] = 1.0
            progress = torch.from_numpy(np.concatenate([x["progress"] for x in answers])).float()
            earned[rows] += progress[rows]
            earned[rows[success]] += (chunks - c - 1) * k  # progress stays 1 after success
            running[rows[success]] = False
        assert out is not None
        if partial:
            out.reward = earned / (chunks * k)
        out.seconds = clock
        out.weights = None if explore is None else explore.weights
        if self._others is not None:
            out.other_instructions = [
                texts
                for seed, task in zip(seeds, tasks, strict=True)
                for texts in [tuple(self._others(task=str(task), seed=int(seed), split=split))] * group_size
            ]
        return out


def collect_simulated(
    policy: Policy,
    seeds: Sequence[int],
    tasks: Sequence[str],
    *,
    env: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    processes: int = 2,
    **kwargs: Any,
) -> Rollouts:
    """Run one collection with its own processes; use `SimulatorCollector` for repeated collections."""
    with SimulatorCollector(env, env_kwargs, processes=processes) as simulator:
        return simulator.collect(policy, seeds, tasks, **kwargs)


def _seen(answers: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Main frames `(N,H,W,3)`, states `(N,S)`, and frames of further cameras by their key in an observation."""
    pictures = {
        key: torch.from_numpy(np.concatenate([x[key] for x in answers]))
        for key in answers[0]
        if key == "image" or key.startswith("image_")
    }
    state = torch.from_numpy(np.concatenate([x["state"] for x in answers])).float()
    return pictures.pop("image"), state, pictures


def _serve(pipe: Connection, env: str, kwargs: Mapping[str, Any]) -> None:
    memory: dict[str, Any] = {}
    while True:
        try:
            name, part = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        if name == "close":
            return
        try:
            pipe.send(("ok", _answer(memory, env, kwargs, name, part)))
        except Exception:
            pipe.send(("error", traceback.format_exc()))


def _answer(
    memory: dict[str, Any], env: str, kwargs: Mapping[str, Any], name: str, part: dict[str, Any]
) -> dict[str, Any]:
    """Handle one request in a worker; `memory` keeps one single-slot environment per row and its last observation."""
    if name == "reset":
        count, made = len(part["seeds"]), part["made"]
        module, _, attribute = env.partition(":")
        factory = getattr(importlib.import_module(module), attribute)
        slots = memory.setdefault("kept", {}).setdefault(tuple(made.values()), [])
        while len(slots) < count:
            slots.append(factory(num_envs=1, **{**kwargs, **made}))
        memory["slots"], memory["goes_on"] = slots, not made["terminate_on_success"]
        memory["observations"] = [
            slot.reset(seed=[seed], options={"task": task, "split": part["split"]})[0]
            for slot, seed, task in zip(slots, part["seeds"], part["tasks"], strict=False)
        ]
        memory["success"] = np.zeros(count, bool)
        memory["path"] = np.zeros((count, made["chunk"], state_of(memory["observations"][0]).shape[1]))
    earned, steps = np.zeros(len(memory["success"]), np.float32), 0
    if name == "step":
        for i in np.flatnonzero(part["running"]):
            memory["observations"][i], _, _, _, info = memory["slots"][i].step(part["actions"][i][None])
            won = np.logical_or.accumulate(info["path_success"][0])
            first = int(won.argmax()) + 1 if won.any() else len(won)
            steps += len(won) if memory["goes_on"] else first
            memory["success"][i] |= won[-1]
            earned[i] = np.where(won, 1.0, info["path_progress"][0]).sum()
            memory["path"][i] = info["path"][0]
    seen = memory["observations"]
    pictures = [key for key in seen[0] if key == "image" or key.startswith("image_")]
    return {
        **{key: np.stack([o[key][0] for o in seen]) for key in pictures},
        "state": np.stack([state_of(o)[0] for o in seen]),
        "instruction": [str(o["instruction"][0]) for o in seen],
        "success": memory["success"].copy(),
        "path": memory["path"].copy(),
        "progress": earned,
        "steps": steps,
    }
