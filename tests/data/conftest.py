"""A dataset on disk, made of made-up episodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_up import episode, open_writer


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Build a dataset of `count` episodes and return its folder."""

    def make(count: int = 5, **options: Any) -> Path:
        folder = tmp_path / "dataset"
        with open_writer(folder, **options) as writer:
            for number in range(count):
                writer.append(episode(number))
        return folder

    return make
