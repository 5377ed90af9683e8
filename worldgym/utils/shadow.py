"""Checks that the packages `envs`, `agents`, `rewards` and `experiments` are those of this project.

These names are common. Another distribution, or a folder next to the running script, may be imported instead, and the
resulting error does not show the cause.

Example::

    from worldgym.utils.shadow import require_own_packages
    require_own_packages()   # the error names the other distribution or folder
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
    """A package of another project: its `name`, its location `where`, and its `distribution`, if known."""

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
    """The folder that contains `worldgym/`: the checkout, or site-packages."""
    return Path(__file__).resolve().parents[2]


def find_shadowed(packages: Sequence[str] = PACKAGES, root: Path | None = None) -> list[Shadow]:
    """List the packages that resolve to a location outside `root` (default: the folder that contains worldgym)."""
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
    """The distributions, other than worldgym, that install the import name `name`."""
    from importlib.metadata import (
        packages_distributions,
    )  # takes 0.1 s, so it is called only for an error message

    owners = sorted({owner for owner in packages_distributions().get(name, []) if owner != "worldgym"})
    return ", ".join(owners) or None


def require_own_packages(packages: Sequence[str] = PACKAGES, root: Path | None = None) -> None:
    """Raise an error if a package is not that of this project.

    Raises:
        ShadowedPackageError: the message shows the location, the distribution and the remedy.
    """
    shadows = find_shadowed(packages, root)
    if not shadows:
        return
    own = (root or project_root()).resolve()
    listed = "; ".join(str(shadow) for shadow in shadows)
    raise ShadowedPackageError(
        f"worldgym's own packages are in {own}, but {listed}. Uninstall that distribution, run from another folder, "
        "or install worldgym in a separate virtual environment (`make setup` in a checkout makes one)."
    )
