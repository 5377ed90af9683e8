"""What torch.compile needs.

Example::

    has_compiler()      # True where g++ or the compiler named by $CXX is installed
"""

from __future__ import annotations

import os
import shutil

from worldgym.errors import ConfigError


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which torch.compile needs on a CPU: g++, or the program that `$CXX` names.

    torch takes the whole of `$CXX` for the name of a program, without options.
    """
    return shutil.which(compiler()) is not None


def compiler() -> str:
    """The compiler that torch.compile calls on a CPU."""
    return os.environ.get("CXX", "g++")


def require_compiler() -> None:
    """Raise a ConfigError unless torch.compile can run on a CPU."""
    if not has_compiler():
        raise ConfigError(
            f"--compile needs a C++ compiler, and {compiler()!r} is no program that can be run; install the package "
            "g++ and type CXX=g++ before the command, or leave out --compile"
        )
