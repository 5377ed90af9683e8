"""Parts that all arms share: checkpoint, start states, and evaluation in Real, in Soft and in imagination.

The SFT policy from which all arms start, the world model, the judge and the worker processes are created once per run.

Example::

    with ClaimContext(PRESETS["tiny"], Path("runs/claims/tiny")) as lab:
        lab.evaluate(lab.sft)       # {"seen/greedy": {"success": "0110...", ...}, ..., "imagined": ..., "soft": ...}
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from experiments.bundle import Bundle, folder_hash
from experiments.claims.presets import ClaimPreset
from experiments.claims.records import pack
from experiments.claims.streams import own_streams
from experiments.compute import ON_CPU, Placing
from experiments.suites import evaluation_pool, real_env
from worldgym.errors import ConfigError
from worldgym.evaluation import EvaluationPool, PolicyRef, Start, make_starts
from worldgym.evaluation.outcomes import EVALUATION_SEED0
from worldgym.utils.files import read_sealed, write_sealed
from worldgym.utils.typed import changes

logger = logging.getLogger(__name__)
MARKER = "arm.json"
LOOKED_SEED0 = 14_000_000
"""First seed of the starts on which evaluators are compared (C20); disjoint from the starts of the results."""
WAY_SEED0 = 14_500_000
"""First seed of the starts of evaluations during training; disjoint from the starts of the results."""


class ClaimContext:
    """Shared parts of a set of runs.

    Args:
        preset: sizes of the runs.
        work: folder for temporary files: policies and logs.
        workers: number of processes for evaluation and simulators; 0 uses the current process.
        placing: device and precision of the checkpoint's parts and of the policies.
    """

    def __init__(
        self, preset: ClaimPreset, work: Path, workers: int = 2, placing: Placing = ON_CPU
    ) -> None:
        self.preset, self.work, self.workers = preset, work, workers
        self.bundle = Bundle.find(preset.bundle, placing)
        self.suite = preset.suite
        self.tasks = self.bundle.tasks
        self.sft = self.ref(self.bundle.policy_folder)
        self._stack = ExitStack()
        self._pools: dict[str, EvaluationPool] = {}
        self._made: dict[str, Any] = {}

    def __enter__(self) -> ClaimContext:
        """Return the context itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Stop the worker processes."""
        self._stack.close()

    # Shared parts use random streams of their own, so that creating them does not change the stream of the arm that
    # needs them first.
    @cached_property
    def world_model(self) -> Any:
        """The bundled world model."""
        with own_streams("world model"):
            return self.bundle.world_model()

    @cached_property
    def judge(self) -> Any:
        """The bundled judge."""
        with own_streams("judge"):
            return self.bundle.judge()

    def folder(self, name: str, seed: int, code: str = "") -> Path:
        """Return the working folder of an arm or of a shared part. Leftovers of a run with other code are removed.

        Raises:
            ConfigError: the folder contains files that no run of a claim has written.
        """
        folder = self.work / f"{name}-{seed}"
        facts = {"name": name, "seed": seed, "code": code, "hashes": self.hashes, "preset": repr(self.preset)}
        before = self.marker(folder)
        if before is None and folder.exists() and any(folder.iterdir()):
            raise ConfigError(
                f"{folder} contains files that no run of a claim has written; give another --work, or move them away"
            )
        if before is not None and (differences := changes(before, facts)):
            logger.info("%s belongs to another run (%s) and is created again", folder, differences)
            shutil.rmtree(folder)
        write_sealed(folder / MARKER, facts)
        return folder

    def marker(self, folder: Path) -> dict[str, Any] | None:
        """Read the file that marks a folder as written by a run of a claim; None if there is no such file."""
        file = folder / MARKER
        return dict(read_sealed(file, f"Remove {folder}")) if file.is_file() else None

    def forget(self, name: str, seed: int) -> None:
        """Delete a working folder with its policy. A folder without a marker file is not deleted."""
        folder = self.work / f"{name}-{seed}"
        if self.marker(folder) is not None:
            shutil.rmtree(folder, ignore_errors=True)

    @cached_property
    def hashes(self) -> dict[str, str]:
        """Hashes of the checkpoint's parts and of the split manifest."""
        parts = ("world_model", "judge", "policy_sft")
        return {name: folder_hash(self.bundle.folder / name) for name in parts} | {
            "split_manifest": str(self.bundle.card.get("split_manifest", ""))[:16]
        }

    def policy(self, folder: Path | None = None) -> Any:
        """Load a new copy of the policy in `folder`, by default of the SFT policy."""
        return self.bundle.policy() if folder is None else self.ref(folder).load()

    def ref(self, folder: Path) -> PolicyRef:
        """Reference to the policy in a folder; it is loaded on the device of this context."""
        return PolicyRef(str(folder), device=self.bundle.placing.name)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a part that several arms share; the first arm that needs it creates it."""
        if name not in self._made:
            with own_streams("shared", name):
                self._made[name] = make()
        return self._made[name]

    def pool(self, **domain: Any) -> EvaluationPool:
        """Return the evaluation pool of a domain. Its workers are reused for the next policy."""
        key = json.dumps(domain, sort_keys=True)
        if key not in self._pools:
            with own_streams("pool"):
                chunk = self.bundle.policy().chunk
            self._pools[key] = evaluation_pool(
                self.suite, workers=self.workers, **domain, horizon=self.preset.measured, chunk=chunk
            )
            self._stack.callback(self._pools[key].close)
        return self._pools[key]

    def starts(self, split: str = "seen") -> list[Start]:
        """Starts on which results are measured: the same for all arms, seeds and claims."""
        return make_starts(
            self.tasks, max(1, round(self.preset.episodes / len(self.tasks))), EVALUATION_SEED0, split
        )

    def looked(self, seed0: int = LOOKED_SEED0) -> list[Start]:
        """Starts on which evaluators are compared; with `WAY_SEED0`, starts of evaluations during training."""
        return make_starts(self.tasks, max(1, round(self.preset.looked / len(self.tasks))), seed0)

    def evaluate(
        self, policy: PolicyRef | Any, splits: tuple[str, ...] = (), evaluators: bool = True
    ) -> dict[str, Any]:
        """Measure the success of a policy in Real on every split, and on other starts in Real, Soft and imagination.

        Args:
            policy: the policy to measure.
            splits: splits measured in Real with greedy actions, those of the preset if empty; `seen` is also measured
                with sampled actions.
            evaluators: whether to measure on the starts on which evaluators are compared (`looked/...`).

        Returns:
            name -> `{"success": "01...", "progress": [...], "steps": n}`.
        """
        with own_streams("evaluate"):
            return self._evaluate(policy, splits or self.preset.splits, evaluators)

    def _evaluate(self, policy: PolicyRef | Any, splits: tuple[str, ...], evaluators: bool) -> dict[str, Any]:
        real, found = self.pool(domain="real"), {}
        for split in splits:
            starts = self.starts(split)
            found[f"{split}/greedy"] = _facts(real.evaluate(policy, starts))
            if split == "seen":
                found[f"{split}/sampled"] = _facts(real.evaluate(policy, starts, temperature=1.0))
        if evaluators:
            looked, soft = self.looked(), self.pool(domain="soft", gap=self.preset.frozen_gap)
            found["looked/real"] = _facts(real.evaluate(policy, looked))
            found["looked/soft"] = _facts(soft.evaluate(policy, looked))
            found["looked/imagined"] = self.imagine(policy, looked)
        return found

    def imagine(self, policy: PolicyRef | Any, starts: list[Start]) -> dict[str, Any]:
        """Measure imagined success, scored by the judge, with greedy actions from the first frame of each start."""
        import torch

        from worldgym.imagination.rollout import run_policy

        with own_streams("imagine"):
            loaded = policy.load() if isinstance(policy, PolicyRef) else policy
            imagined = run_policy(
                loaded, self.world_model, self.judge, self.first_frames(starts), horizon=self.preset.measured,
                temperature=0.0, generator=torch.Generator().manual_seed(0),
            )  # fmt: skip
        return {"success": pack(imagined.success), "steps": int(imagined.steps)}

    def first_frames(self, starts: list[Start]) -> dict[str, Any]:
        """First observations of the starts, from Real."""
        from worldgym.evaluation.rollouts import first_observations

        env = real_env(self.suite)
        seen = first_observations(env, starts)
        env.close()
        return seen


def _facts(result: Any) -> dict[str, Any]:
    progress = [round(float(x), 2) for x in np.asarray(result.progress)]
    return {"success": pack(result.success), "progress": progress, "steps": int(result.steps.sum())}


def rate(evaluations: Mapping[str, Any], what: str) -> float:
    """Success rate of one of the evaluations."""
    text = evaluations[what]["success"]
    return text.count("1") / len(text)
