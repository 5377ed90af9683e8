"""What torch.compile needs, and how worldgym calls it where gradients are computed.

Example::

    has_compiler()      # True where g++ or the compiler named by $CXX is installed
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

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


def compiled(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    """`torch.compile(function)` whose gradients are those of `function`.

    With vectors of 512 bits, torch 2.13 compiles a backward pass of rotary embeddings in bfloat16 whose result is not
    finite (`findings/compiled_rotary_gradient.sh`), so vectors of 256 bits are used there.

    Args:
        function: a module or function.
        **settings: further arguments of `torch.compile`, without `mode` and `options`.
    """
    import torch

    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    made: Callable[..., Any] = torch.compile(function, options={"cpp.simdlen": 256} if wide else None, **settings)
    return made
