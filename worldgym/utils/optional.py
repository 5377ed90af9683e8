"""One door for optional packages, so that a missing one is reported by the extra that brings it.

Example::

    from worldgym.utils.optional import require
    sb3 = require("stable_baselines3", extra="sb3")
"""

from __future__ import annotations

import importlib
from types import ModuleType

from worldgym.errors import DependencyError

# These import torchvision whenever it is installed, so a broken one breaks them with a misleading message.
_TORCHVISION_USERS = ("transformers", "diffusers", "open_clip", "timm", "peft", "torchvision")


def require(module: str, *, extra: str | None = None, package: str | None = None) -> ModuleType:
    """Import `module`, or say what to install.

    Args:
        module: dotted import name, such as `"stable_baselines3"`.
        extra: the worldgym extra that brings it; None for a core dependency.
        package: distribution name when it differs from the module's first part.

    Raises:
        DependencyError: the module can't be imported; the message holds the command that installs it.
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
