"""What the arms of a claim share: checkpoint, start states, evaluation in Real, in Soft and in imagination.

Everything here is made once for all arms of a run: the SFT policy that they all start from, the world model, the
judge, and the worker processes.

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
from experiments.claims.presets import SPLITS, ClaimPreset
from experiments.claims.records import pack
from experiments.claims.streams import own_streams
from experiments.compute import ON_CPU, Placing
from experiments.suites import chosen_suite, evaluation_pool, real_env
from worldgym.errors import ConfigError
from worldgym.evaluation import EvaluationPool, PolicyRef, Start, make_starts
from worldgym.evaluation.outcomes import EVALUATION_SEED0
from worldgym.suite import extra, load_suite
from worldgym.utils.files import read_sealed, write_sealed
from worldgym.utils.typed import changes

logger = logging.getLogger(__name__)
MARKER = "arm.json"
LOOKED_SEED0 = 14_000_000
"""Starts from which evaluators are compared (C20): other than those of success in Real."""
WAY_SEED0 = 14_500_000
"""Starts of the measurements on the way: other than those of the result."""


def frozen_gap() -> float:
    """The gap at which C2 is decided: fixed by what it does to experts, before any policy was trained."""
    return float(extra(load_suite(), "frozen_gap", "gap")())


class ClaimContext:
    """Shared parts of a set of runs.

    Args:
        preset: sizes.
        work: folder of what need not be kept for ever: policies, logs.
        workers: processes of evaluation and of simulators; 0 is this one.
        placing: where the checkpoint's parts and policies are computed.
    """

    def __init__(
        self, preset: ClaimPreset, work: Path, workers: int = 2, placing: Placing = ON_CPU
    ) -> None:
        self.preset, self.work, self.workers = preset, work, workers
        self.bundle = Bundle.find(preset.bundle, placing)
        self.suite = chosen_suite(None, preset.bundle)
        self.tasks = self.bundle.tasks
        self.sft = self.ref(self.bundle.policy_folder)
        self._stack = ExitStack()
        self._pools: dict[str, EvaluationPool] = {}
        self._made: dict[str, Any] = {}

    def __enter__(self) -> ClaimContext:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Stop the workers."""
        self._stack.close()

    # What is made once for all arms has streams of its own: whichever arm needs it first goes on as the others do.
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
        """Working folder of an arm, or of what arms share; what an interrupted run of other code left is removed.

        Raises:
            ConfigError: it holds files that no run of a claim has put there.
        """
        folder = self.work / f"{name}-{seed}"
        facts = {"name": name, "seed": seed, "code": code, "hashes": self.hashes, "preset": repr(self.preset)}
        before = self.marker(folder)
        if before is None and folder.exists() and any(folder.iterdir()):
            raise ConfigError(
                f"{folder} holds files that no run of a claim left there; give another --work, or move them away"
            )
        if before is not None and (told := changes(before, facts)):
            logger.info("%s is of another run (%s) and is made anew", folder, told)
            shutil.rmtree(folder)
        write_sealed(folder / MARKER, facts)
        return folder

    def marker(self, folder: Path) -> dict[str, Any] | None:
        """What says that a folder is a run's own; None without."""
        file = folder / MARKER
        return dict(read_sealed(file, f"Remove {folder}")) if file.is_file() else None

    def forget(self, name: str, seed: int) -> None:
        """Throw away a working folder, its policy included; never one without a marker."""
        folder = self.work / f"{name}-{seed}"
        if self.marker(folder) is not None:
            shutil.rmtree(folder, ignore_errors=True)

    @cached_property
    def hashes(self) -> dict[str, str]:
        """Of the checkpoint's parts."""
        parts = ("world_model", "judge", "policy_sft")
        return {name: folder_hash(self.bundle.folder / name) for name in parts} | {
            "split_manifest": str(self.bundle.card.get("split_manifest", ""))[:16]
        }

    def policy(self, folder: Path | None = None) -> Any:
        """A fresh copy of a policy; of the SFT policy by default."""
        return self.bundle.policy() if folder is None else self.ref(folder).load()

    def ref(self, folder: Path) -> PolicyRef:
        """The policy in a folder, to be loaded where this lab computes."""
        return PolicyRef(str(folder), device=self.bundle.placing.name)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What several arms share, made by the first that needs it."""
        if name not in self._made:
            with own_streams("shared", name):
                self._made[name] = make()
        return self._made[name]

    def pool(self, **domain: Any) -> EvaluationPool:
        """Evaluation in a domain; its workers stay alive for the next policy."""
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
        """Those of every result: the same for all arms, seeds and claims."""
        return make_starts(
            self.tasks, max(1, round(self.preset.episodes / len(self.tasks))), EVALUATION_SEED0, split
        )

    def looked(self, seed0: int = LOOKED_SEED0) -> list[Start]:
        """Starts of the evaluators."""
        return make_starts(self.tasks, max(1, round(self.preset.looked / len(self.tasks))), seed0)

    def evaluate(
        self, policy: PolicyRef | Any, splits: tuple[str, ...] = SPLITS, evaluators: bool = True
    ) -> dict[str, Any]:
        """Success of a policy: in Real on every split, and on other starts in Real, Soft and imagination.

        Args:
            policy: whose.
            splits: of the measurement in Real, greedily; `seen` is sampled as well.
            evaluators: whether the other starts are measured.

        Returns:
            name -> `{"success": "01...", "progress": [...], "steps": n}`.
        """
        with own_streams("evaluate"):
            return self._evaluate(policy, splits, evaluators)

    def _evaluate(self, policy: PolicyRef | Any, splits: tuple[str, ...], evaluators: bool) -> dict[str, Any]:
        real, found = self.pool(domain="real"), {}
        for split in splits:
            starts = self.starts(split)
            found[f"{split}/greedy"] = _facts(real.evaluate(policy, starts))
            if split == "seen":
                found[f"{split}/sampled"] = _facts(real.evaluate(policy, starts, temperature=1.0))
        if evaluators:
            looked, soft = self.looked(), self.pool(domain="soft", gap=frozen_gap())
            found["looked/real"] = _facts(real.evaluate(policy, looked))
            found["looked/soft"] = _facts(soft.evaluate(policy, looked))
            found["looked/imagined"] = self.imagine(policy, looked)
        return found

    def imagine(self, policy: PolicyRef | Any, starts: list[Start]) -> dict[str, Any]:
        """Success as the world model and the judge have it, greedily, from the first frame of each start."""
        import torch

        from worldgym.imagination.rollout import run_policy

        with own_streams("imagine"):
            loaded = policy.load() if isinstance(policy, PolicyRef) else policy
            imagined = run_policy(
                loaded, self.world_model, self.judge, self._first_frames(starts), horizon=self.preset.measured,
                temperature=0.0, generator=torch.Generator().manual_seed(0),
            )  # fmt: skip
        return {"success": pack(imagined.success), "steps": int(imagined.steps)}

    def _first_frames(self, starts: list[Start]) -> dict[str, Any]:
        from worldgym.evaluation.rollouts import first_observations

        env = real_env(self.suite)
        seen = first_observations(env, starts)
        env.close()
        return seen


def _facts(result: Any) -> dict[str, Any]:
    progress = [round(float(x), 2) for x in np.asarray(result.progress)]
    return {"success": pack(result.success), "progress": progress, "steps": int(result.steps.sum())}


def rate(evaluations: Mapping[str, Any], what: str) -> float:
    """Share of successes in one of the evaluations."""
    text = evaluations[what]["success"]
    return text.count("1") / len(text)
