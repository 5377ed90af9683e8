"""`worldgym list`: the registered types of world models, judges, policies and other parts.

Each type is listed with its module. The modules are not imported, so a broken package does not break the list.

Example::

    worldgym list
    worldgym list --kinds judges policies
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from worldgym.errors import ConfigError
from worldgym.registry import REGISTRIES, Registry


@dataclass(frozen=True)
class ListConfig:
    """List registered types and their modules.

    Args:
        kinds: kinds of parts to list, such as `judges`; all if empty.
    """

    kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Validate the settings."""
        known = [words(registry) for registry in REGISTRIES]
        if unknown := [kind for kind in self.kinds if kind not in known]:
            raise ConfigError(f"unknown kind {unknown[0]!r}; the kinds are {', '.join(known)}")


def run(config: ListConfig) -> int:
    """Print the tables."""
    chosen = [registry for registry in REGISTRIES if not config.kinds or words(registry) in config.kinds]
    sys.stdout.write("\n\n".join(table(registry) for registry in chosen) + "\n")
    return 0


def words(registry: Registry) -> str:
    """Name of a kind on the command line, such as `world-models`."""
    return registry.group.rpartition(".")[2].replace("_", "-")


def table(registry: Registry) -> str:
    """Return the table of one kind: its name and entry-point group, then name and source of every type."""
    rows = registry.sources()
    width = max((len(name) for name in rows), default=0)
    lines = [f"  {name:<{width}}  {source}" for name, source in rows.items()]
    return "\n".join([f"{words(registry)}  (entry points: {registry.group})", *(lines or ["  none"])])
