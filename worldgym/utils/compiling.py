"""What torch.compile needs.

Example::

    has_compiler()      # True where g++ or the compiler named by $CXX is installed
"""

from __future__ import annotations

import os
import shlex
import shutil


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which torch.compile needs on a CPU: g++, or the one that `$CXX` names."""
    return shutil.which(shlex.split(os.environ.get("CXX") or "g++")[0]) is not None
