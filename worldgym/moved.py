"""Modules of earlier versions under their earlier names, for one version, with a warning that says the new name.

One table and one finder, in place of a file left behind for every module that moved.

Example::

    import worldgym
    from agents.grpo import GRPO            # DeprecationWarning: import agents.algorithms.grpo
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED: dict[str, str] = {}
"""Earlier name of a module -> its name now."""
NAMES: dict[str, str] = {}
"""Earlier "module:name" -> "module:name" now; packages add theirs in their `registered` module."""


class _Alias(Loader):
    """Gives the module of the new name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module itself, whose own spec is kept."""
        module = importlib.import_module(self.name)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It is loaded already; importlib has put the alias's spec on it, which is taken off again."""
        module.__spec__ = self.spec


class MovedModules(MetaPathFinder):
    """Finds modules that moved; asked after every other finder."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec for an earlier name, else None."""
        new = MOVED.get(fullname)
        if new is None:
            return None
        warnings.warn(f"{fullname} is now {new}; import that", DeprecationWarning, stacklevel=2)
        return ModuleSpec(fullname, _Alias(new))


def install() -> None:
    """Make earlier names importable; once a process."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())


def earlier(module: str, name: str) -> Any:
    """An object that `module` had in an earlier version, for its `__getattr__`.

    Raises:
        AttributeError: it never had one of that name.
    """
    from worldgym.registry import discover

    discover()  # packages register their earlier names
    new = NAMES.get(f"{module}:{name}")
    if new is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    place, _, attribute = new.partition(":")
    warnings.warn(f"{module}.{name} is now {place}.{attribute}; use that", DeprecationWarning, stacklevel=3)
    return getattr(importlib.import_module(place), attribute)
