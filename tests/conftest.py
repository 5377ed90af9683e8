"""What every test shares: off-screen rendering, one torch thread, no hub, and where optional data lie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Before anything imports MuJoCo, torch or transformers: they read these once.
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> None:
    """Tests run in as many processes as there are cores, so one thread each."""
    _reset_threads()


@pytest.fixture(autouse=True)
def _threads_are_put_back() -> Iterator[None]:
    """A command that a test runs sets the thread count of the process: other tests must not notice."""
    _reset_threads()
    yield
    _reset_threads()


def _reset_threads() -> None:
    """One thread, and no sentence embedding of another count: its last bits differ."""
    import torch

    from worldgym import text

    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
        text._cache.clear()


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def bridge_data() -> Path:
    """Folder of BridgeData V2 episodes (`*.mp4` with `*.npz`), given by WORLDGYM_BRIDGE_DATA."""
    given = os.environ.get("WORLDGYM_BRIDGE_DATA")
    if not given:
        pytest.skip(
            "set WORLDGYM_BRIDGE_DATA to a folder of BridgeData V2 episodes (mp4 + npz) to run this test"
        )
    folder = Path(given)
    if not any(folder.glob("*.npz")):
        pytest.skip(f"WORLDGYM_BRIDGE_DATA={folder} holds no .npz file")
    return folder


@pytest.fixture
def stages_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the stages of a build by calling the command line: a process each needs 5 s to import what it uses."""
    from experiments.cli import main
    from experiments.pipelines import build

    monkeypatch.setattr(build, "execute", lambda stage: (main([*stage.words, *stage.arguments]), False))
