"""The package `foreign_arm` on the path, as an installed one."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import invalidate_caches
from pathlib import Path

import pytest

from worldgym import registry

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def installed() -> Iterator[None]:
    """The distribution on the path of this process and of its children, as `pip install` would leave it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        patch.setenv("PYTHONPATH", str(HERE), prepend=":")
        invalidate_caches()
        registry._entry_points.cache_clear()
        yield
    registry._entry_points.cache_clear()
