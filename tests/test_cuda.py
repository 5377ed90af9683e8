"""Everything that is computed, on a CUDA device; skipped with a message where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from device_paths import PATHS, seeded

from agents.rollouts.ray_pool import on_cpu
from worldgym.utils.devices import choose_device, choose_dtype, random_state, restore_random

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs a CUDA device, and torch finds none on this machine: nothing here was checked on a GPU",
)
SAMPLED = {"practice", "cloning", "judges", "train_models", "train_probe_and_foresight"}
"""Paths in which rounding, dropout or sampling near a tie may take another course than on the CPU."""


@pytest.mark.parametrize("name", PATHS)
def test_it_runs_on_cuda_and_says_what_the_cpu_says(name: str, tmp_path: Path) -> None:
    there = PATHS[name](choose_device("cuda"), tmp_path / "cuda")
    here = PATHS[name](torch.device("cpu"), tmp_path / "cpu")
    assert there.device.type == "cpu" and there.shape == here.shape
    assert bool(torch.isfinite(there).all())
    if name not in SAMPLED:  # pictures in [0, 255], computed in bfloat16: mostly the same, hardly ever far away
        assert float((there - here).abs().mean()) < 3.0


def test_precision_and_placing() -> None:
    device = choose_device("auto")
    assert device.type == "cuda" and choose_dtype("float32", device) is torch.float32
    layer = torch.nn.Linear(2, 2).to(device)
    copied = on_cpu(layer)
    assert next(copied.parameters()).device.type == "cpu" and next(layer.parameters()).device.type == "cuda"


def test_dropout_repeats_after_its_generators_are_put_back() -> None:
    x = torch.ones(1000, device="cuda")
    torch.nn.functional.dropout(x)
    state = random_state()
    first = torch.nn.functional.dropout(x)
    restore_random(state)
    assert torch.equal(torch.nn.functional.dropout(x), first) and "cuda:0" in state


def test_one_seed_begins_alike_on_both() -> None:
    from device_paths import world_model

    frames, none = torch.zeros(2, 1, 64, 64, 3, dtype=torch.uint8), torch.zeros(2, 0, 4)
    keys = [world_model().to(name).begin(frames, none, seeded()).keys.cpu() for name in ("cpu", "cuda")]
    assert torch.equal(*keys)
