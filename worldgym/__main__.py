"""Entry point of the console script: check for shadowed packages, then run the command line.

The command line is in the package `experiments`. Another package of that name may shadow it; the check here reports
this with an explanation instead of `No module named 'experiments.cli'`.

Example::

    python -m worldgym info
"""

from __future__ import annotations

import importlib
import sys

from worldgym.errors import ShadowedPackageError
from worldgym.utils.shadow import require_own_packages


def main() -> int:
    """Run `experiments.cli:main` and return its exit code; return 2 if another package shadows `experiments`."""
    try:
        require_own_packages(["experiments"])
    except ShadowedPackageError as error:
        sys.stderr.write(f"worldgym: {error}\n")
        return 2
    return int(importlib.import_module("experiments.cli").main())


if __name__ == "__main__":
    sys.exit(main())
