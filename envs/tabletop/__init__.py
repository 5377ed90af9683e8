"""The tabletop suite: language-conditioned manipulation of geometric primitives, in two domains (real, soft).

MuJoCo is imported when an environment class is first accessed, so that names, specs and bounds need no simulator.

Example::

    from envs.tabletop import TASKS, TabletopEnv
    env = TabletopEnv(domain="soft", gap=0.5, task=TASKS[0])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envs.tabletop.env import TabletopEnv
    from envs.tabletop.grammar import TASKS
    from envs.tabletop.specs import TABLETOP_ACTION_SPEC
    from envs.tabletop.tasks import SPLITS
    from envs.tabletop.vector import TabletopVectorEnv

# attribute -> module that defines it (PEP 562: resolved on first use)
_LAZY = {
    "SPLITS": "tasks",
    "TABLETOP_ACTION_SPEC": "specs",
    "TASKS": "grammar",
    "TabletopEnv": "env",
    "TabletopVectorEnv": "vector",
}

__all__ = ["SPLITS", "TABLETOP_ACTION_SPEC", "TASKS", "TabletopEnv", "TabletopVectorEnv"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(import_module(f"envs.tabletop.{_LAZY[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'envs.tabletop' has no attribute {name!r}; it has {', '.join(__all__)}")
