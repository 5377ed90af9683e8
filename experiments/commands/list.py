"""`worldgym list`: the types of world models, judges, policies and other parts that this installation knows.

Each is shown with the module that it comes from. Nothing of it is imported, so a broken package cannot break the list.

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
    """Registered types and where they come from.

    Args:
        kinds: of parts, such as `judges`; all when empty.
    """

    kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Validate."""
        known = [words(registry) for registry in REGISTRIES]
        if unknown := [kind for kind in self.kinds if kind not in known]:
            raise ConfigError(f"unknown kind {unknown[0]!r}; the kinds are {', '.join(known)}")


def run(config: ListConfig) -> int:
    """Print the table."""
    chosen = [registry for registry in REGISTRIES if not config.kinds or words(registry) in config.kinds]
    sys.stdout.write("\n\n".join(table(registry) for registry in chosen) + "\n")
    return 0


def words(registry: Registry) -> str:
    """What a kind is called on the command line, such as `world-models`."""
    return registry.group.rpartition(".")[2].replace("_", "-")


def table(registry: Registry) -> str:
    """One kind: its name and group, then name and source of every type."""
    rows = registry.sources()
    width = max((len(name) for name in rows), default=0)
    lines = [f"  {name:<{width}}  {source}" for name, source in rows.items()]
    return "\n".join([f"{words(registry)}  (entry points: {registry.group})", *(lines or ["  none"])])
