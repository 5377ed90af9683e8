"""Nothing is computed from tensors on two devices: every path, on a device that is pretended (`pretended_device.py`).

It needs no GPU. What it cannot show: that CUDA has each operation, how fast it is, and that memory suffices.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from device_paths import PATHS, world_model
from pretended_device import DEVICE, autocast, pretended_device

from agents.rollouts.ray_pool import _Imaginer, on_cpu
from worldgym.errors import ConfigError


@pytest.fixture(autouse=True)
def _pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", autocast)


@pytest.mark.parametrize("name", PATHS)
def test_all_tensors_of_a_path_are_on_its_device(name: str, tmp_path: Path) -> None:
    with pretended_device():
        there = PATHS[name](DEVICE, tmp_path)
    assert there.device.type == "cpu" and bool(torch.isfinite(there).all())


def test_what_is_sent_to_workers_is_on_the_cpu() -> None:
    with pretended_device():
        model, plain = world_model().to(DEVICE), world_model()
        sent = on_cpu(model)
        assert sent.device.type == "cpu" and model.device == DEVICE and on_cpu(plain) is plain


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_worker_that_was_given_a_gpu_and_finds_none_says_so() -> None:
    with pytest.raises(ConfigError, match="finds 0 CUDA devices"):
        _Imaginer(world_model(), None, 1, "cuda")


def test_mixed_devices_are_refused() -> None:
    with pretended_device():
        there, here = torch.zeros(3, device=DEVICE), torch.zeros(3)
        rows = torch.tensor([0, 1])
        assert there.device == DEVICE and (there + 1).cpu().tolist() == [1.0, 1.0, 1.0]
        assert (there + torch.tensor(2.0)).cpu().tolist() == [2.0] * 3 and len(there[rows]) == 2
        for wrong in (
            lambda: there + here,
            lambda: here[rows.to(DEVICE)],
            lambda: torch.cat([there, here]),
            lambda: torch.randn(3, device=DEVICE, generator=torch.Generator()),
            lambda: there.numpy(),
            lambda: np.asarray(there),
        ):
            with pytest.raises((RuntimeError, TypeError)):
                wrong()
        layer = torch.nn.Linear(3, 1).to(DEVICE)
        with pytest.raises(RuntimeError, match="expected all tensors to be on"):
            layer(here)
        layer(there).sum().backward()
        assert layer.weight.grad is not None and layer.weight.grad.device == DEVICE
