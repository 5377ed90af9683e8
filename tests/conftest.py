"""What every test shares: off-screen rendering, one torch thread, no hub, and where optional data lie."""

from __future__ import annotations

import os
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
    """Tests run in as many processes as there are cores, so one thread each; and results don't depend on the count."""
    import torch

    torch.set_num_threads(1)


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
