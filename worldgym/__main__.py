"""The console script's first step: see that the project's packages are its own, then hand over to the command line.

The command line lives in `experiments`, and that very name may be shadowed; found here, the mistake is explained
instead of ending in `No module named 'experiments.cli'`.

Example::

    python -m worldgym info
"""

from __future__ import annotations

import importlib
import sys

from worldgym.errors import ShadowedPackageError
from worldgym.utils.shadow import require_own_packages


def main() -> int:
    """Run `experiments.cli:main` if it is ours; 2 when it isn't."""
    try:
        require_own_packages(["experiments"])
    except ShadowedPackageError as error:
        sys.stderr.write(f"worldgym: {error}\n")
        return 2
    return int(importlib.import_module("experiments.cli").main())


if __name__ == "__main__":
    sys.exit(main())
