"""Imports of renamed modules by their earlier names, for one version, with a warning that gives the new name.

One table and one import finder replace a stub file for every renamed module.

Example::

    import worldgym
    from agents.grpo import GRPO            # DeprecationWarning: import agents.algorithms.grpo
"""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar

C = TypeVar("C", bound=Callable[..., Any])

MOVED: dict[str, str] = {
    "agents.advantage": "agents.algorithms.advantage_conditioned",
    "agents.conditioned": "agents.policies.conditioned",
    "agents.demos": "agents.data.demonstrations",
    "agents.filtered_bc": "agents.algorithms.filtered_bc",
    "agents.grpo": "agents.algorithms.grpo",
    "agents.heads": "agents.policies.heads",
    "agents.imagination": "agents.rollouts.imagined",
    "agents.layers": "agents.policies.layers",
    "agents.learned": "agents.algorithms.parameters",
    "agents.lerobot": "agents.policies.lerobot",
    "agents.pointer": "agents.policies.goal_head",
    "agents.ray_watch": "agents.rollouts.ray_watch",
    "agents.rollout_pool": "agents.rollouts.ray_pool",
    "agents.self_imitation": "agents.algorithms.self_imitation",
    "agents.sft": "agents.algorithms.sft",
    "agents.simulated": "agents.rollouts.simulated",
    "agents.vla": "agents.policies.vla",
    "agents.vla_config": "agents.policies.vla_config",
    "agents.vla_learning": "agents.policies.vla_learning",
    "experiments.audit_report": "experiments.reports.audit",
    "experiments.charts": "experiments.reports.charts",
    "experiments.checks": "experiments.pipelines.checks",
    "experiments.clips": "experiments.reports.clips",
    "experiments.collecting": "experiments.pipelines.collecting",
    "experiments.demo": "experiments.pipelines.demo",
    "experiments.demo_results": "experiments.pipelines.demo_results",
    "experiments.demo_settings": "experiments.pipelines.settings",
    "experiments.fidelity_report": "experiments.reports.fidelity",
    "experiments.graded_policies": "experiments.pipelines.perturbed_policies",
    "experiments.guard": "experiments.pipelines.reward_hacking_monitor",
    "experiments.policies": "experiments.pipelines.policies",
    "experiments.ray_scaling": "experiments.pipelines.ray_scaling",
    "experiments.ray_training": "experiments.pipelines.ray_training",
    "experiments.report": "experiments.reports.html",
    "experiments.report_template": "experiments.reports.html_template",
    "experiments.run_folder": "experiments.pipelines.run_folder",
    "experiments.simple_policies": "experiments.pipelines.simple_policies",
    "experiments.speed": "experiments.pipelines.speed",
    "experiments.tables": "experiments.reports.tables",
    "experiments.tokenizers": "experiments.pipelines.tokenizers",
    "experiments.training_run": "experiments.pipelines.training_run",
    "experiments.true_logs": "experiments.pipelines.held_out_episodes",
    "experiments.videos": "experiments.reports.videos",
    "rewards.answers": "rewards.models.answers",
    "rewards.cache": "rewards.wrappers.cache",
    "rewards.calibrated": "rewards.wrappers.calibrated",
    "rewards.calibration": "rewards.training.calibration",
    "rewards.compose": "rewards.wrappers.composed",
    "rewards.dreams": "rewards.training.imagined_logs",
    "rewards.endpoint": "rewards.models.endpoint",
    "rewards.eyes": "rewards.judge_features",
    "rewards.http": "rewards.models.http",
    "rewards.latent": "rewards.models.latent",
    "rewards.latent_train": "rewards.training.latent",
    "rewards.learned": "rewards.models.learned",
    "rewards.mining": "rewards.training.mining",
    "rewards.negatives": "rewards.training.negatives",
    "rewards.open_clip": "rewards.models.open_clip",
    "rewards.open_clip_train": "rewards.training.open_clip",
    "rewards.oracle": "rewards.models.oracle",
    "rewards.reference": "rewards.models.reference",
    "rewards.train": "rewards.training.learned",
    "rewards.vlm": "rewards.models.vlm",
    "worldgym.data.bridge": "worldgym.data.formats.bridge",
    "worldgym.data.imports": "worldgym.data.formats.lerobot_import",
    "worldgym.data.png": "worldgym.data.codecs.png",
    "worldgym.data.video": "worldgym.data.codecs.video",
    "worldgym.evaluation.audit": "worldgym.evaluation.judge_audit",
    "worldgym.evaluation.probe": "worldgym.models.probe",
    "worldgym.imagination.features": "worldgym.imagination.adapters.features",
    "worldgym.imagination.held": "worldgym.imagination.adapters.action_repeat",
    "worldgym.imagination.recording": "worldgym.imagination.adapters.recording",
    "worldgym.imagination.rllib": "worldgym.imagination.adapters.rllib",
    "worldgym.imagination.sb3": "worldgym.imagination.adapters.sb3",
    "worldgym.imagination.torchrl": "worldgym.imagination.adapters.torchrl",
    "worldgym.utils.hub": "worldgym.hub",
}
"""Earlier name of a module -> its current name."""
_REPEAT = "worldgym.imagination.adapters.action_repeat"
NAMES: dict[str, str] = {f"{_REPEAT}:HeldActions": f"{_REPEAT}:ActionRepeat"}
"""Earlier "module:name" -> current "module:name"; packages add theirs in their `registered` module."""


class _Alias(Loader):
    """Loader that returns the module of the current name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Import the module by its current name and remember its spec."""
        module = importlib.import_module(self.name)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the spec, which importlib has replaced by the spec of the alias; the module is already loaded."""
        module.__spec__ = self.spec


class MovedModules(MetaPathFinder):
    """Finder of renamed modules, and of the modules in renamed packages.

    It comes first in `sys.meta_path`. Otherwise the path finder would load the modules of a renamed package a second
    time, under the earlier name.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Spec of an earlier name; None for any other name."""
        new = MOVED.get(fullname)
        if new is None:
            parent, _, name = fullname.rpartition(".")
            if parent not in MOVED:
                return None
            new = f"{MOVED[parent]}.{name}"
        warnings.warn(f"{fullname} is now {new}; import that", DeprecationWarning, stacklevel=2)
        return ModuleSpec(fullname, _Alias(new))


def install() -> None:
    """Make earlier names importable; a second call has no effect."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, MovedModules())


def earlier(module: str, name: str) -> Any:
    """Find an object by the name that it had in an earlier version; for the `__getattr__` of `module`.

    Raises:
        AttributeError: no earlier version of `module` had this name.
    """
    from worldgym.registry import discover

    discover()  # packages register their earlier names
    new = NAMES.get(f"{module}:{name}")
    if new is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    place, _, attribute = new.partition(":")
    warnings.warn(f"{module}.{name} is now {place}.{attribute}; use that", DeprecationWarning, stacklevel=3)
    return getattr(importlib.import_module(place), attribute)


def renamed_arguments(**names: str) -> Callable[[C], C]:
    """Decorator of a function or class whose keyword arguments were renamed: earlier names work, with a warning.

    Example::

        @renamed_arguments(dreams="imagined")
        def train_judge(arrays, *, imagined=None): ...
    """

    def decorate(item: C) -> C:
        function: Any = item.__init__ if isinstance(item, type) else item  # type: ignore[misc]

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for old, new in names.items():
                if old in kwargs:
                    what = getattr(item, "__name__", "this")
                    warnings.warn(f"{what}({old}=...) is now {what}({new}=...)", DeprecationWarning, stacklevel=2)
                    kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        if isinstance(item, type):
            item.__init__ = call  # type: ignore[misc]
            return item
        return call  # type: ignore[return-value]

    return decorate
