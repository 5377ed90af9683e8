"""Finds out whether `envs`, `agents`, `rewards` and `experiments` are this project's own.

These are common names: another distribution, or a folder beside the script that runs, may be imported in their
place, and the failure then surfaces far from its cause.

Example::

    from worldgym.utils.shadow import require_own_packages
    require_own_packages()   # raises and names the distribution or the folder that is in the way
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from worldgym.errors import ShadowedPackageError

PACKAGES = ("envs", "rewards", "agents", "experiments")


@dataclass(frozen=True)
class Shadow:
    """A package that isn't ours: its `name`, `where` it resolves to, and the `distribution` there, if one is known."""

    name: str
    where: str
    distribution: str | None = None

    def __str__(self) -> str:
        owner = (
            f"installed by {self.distribution!r}"
            if self.distribution
            else "not installed by any distribution"
        )
        return f"`import {self.name}` finds {self.where} ({owner})"


def project_root() -> Path:
    """The folder that holds `worldgym/`: the checkout, or site-packages after a plain install."""
    return Path(__file__).resolve().parents[2]


def find_shadowed(packages: Sequence[str] = PACKAGES, root: Path | None = None) -> list[Shadow]:
    """List the packages that resolve to something outside `root` (default: the folder that holds worldgym)."""
    root = (root or project_root()).resolve()
    shadows = []
    for name in packages:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError) as error:
            shadows.append(Shadow(name, f"nothing ({error})"))
            continue
        if spec is None:
            shadows.append(Shadow(name, "nothing"))
            continue
        places = [Path(place).resolve() for place in spec.submodule_search_locations or ()]
        if root / name in places:
            continue
        where = str(places[0]) if places else str(spec.origin)
        shadows.append(Shadow(name, where, _owner(name)))
    return shadows


def _owner(name: str) -> str | None:
    """The distributions, other than worldgym, that say they install the import name `name`."""
    from importlib.metadata import (
        packages_distributions,
    )  # 0.1 s: only read when there is something to explain

    owners = sorted({owner for owner in packages_distributions().get(name, []) if owner != "worldgym"})
    return ", ".join(owners) or None


def require_own_packages(packages: Sequence[str] = PACKAGES, root: Path | None = None) -> None:
    """Raise when a package isn't this project's.

    Raises:
        ShadowedPackageError: with the place, the distribution, and the way out.
    """
    shadows = find_shadowed(packages, root)
    if not shadows:
        return
    own = (root or project_root()).resolve()
    listed = "; ".join(str(shadow) for shadow in shadows)
    raise ShadowedPackageError(
        f"worldgym's own packages live in {own}, but {listed}. Uninstall that distribution, run from another folder, "
        "or give worldgym a virtual environment of its own (`make setup` in a checkout makes one)."
    )
