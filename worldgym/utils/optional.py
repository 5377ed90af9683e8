"""Imports optional packages; the error for a missing one names the extra that installs it.

Example::

    from worldgym.utils.optional import require
    sb3 = require("stable_baselines3", extra="sb3")
"""

from __future__ import annotations

import importlib
from types import ModuleType

from worldgym.errors import DependencyError

# These packages import torchvision if it is installed; a broken torchvision makes them fail with a misleading message.
_TORCHVISION_USERS = ("transformers", "diffusers", "open_clip", "timm", "peft", "torchvision")


def require(module: str, *, extra: str | None = None, package: str | None = None) -> ModuleType:
    """Import `module`, or raise an error with the command that installs it.

    Args:
        module: dotted import name, e.g. `"stable_baselines3"`.
        extra: the worldgym extra that installs it; None for a core dependency.
        package: distribution name, if it differs from the first part of the module name.

    Raises:
        DependencyError: the module cannot be imported; the message gives the command that installs it.
    """
    if module.partition(".")[0] in _TORCHVISION_USERS:
        from worldgym.utils.torchvision_compat import repair_torchvision

        repair_torchvision()
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = package or module.partition(".")[0]
        command = f'pip install "worldgym[{extra}]"' if extra else f"pip install {name}"
        raise DependencyError(
            f"{name} is needed here and can't be imported ({error}). Type: {command}"
        ) from error
