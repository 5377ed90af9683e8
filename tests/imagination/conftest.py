from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest
import torch
from fakes import DotJudge, DotWorldModel, make_starts

from worldgym.imagination import WorldModelEnv, WorldModelVectorEnv

torch.set_num_threads(1)
warnings.filterwarnings("ignore", message=".*is missing `autoreset_mode`.*")


@pytest.fixture
def make_vec() -> Callable[..., WorldModelVectorEnv]:
    def make(num_envs: int = 3, noise: float = 0.01, **settings: Any) -> WorldModelVectorEnv:
        settings.setdefault("reward", DotJudge())
        settings.setdefault("success_threshold", 0.9)
        return WorldModelVectorEnv(DotWorldModel(noise), starts=make_starts(), num_envs=num_envs, **settings)

    return make


@pytest.fixture
def make_one() -> Callable[..., WorldModelEnv]:
    def make(noise: float = 0.01, **settings: Any) -> WorldModelEnv:
        settings.setdefault("reward", DotJudge())
        settings.setdefault("success_threshold", 0.9)
        return WorldModelEnv(DotWorldModel(noise), starts=make_starts(), **settings)

    return make


@pytest.fixture
def registered() -> Any:
    """An id whose keywords are all JSON-able, with both entry points."""
    name = "test/Dot-v0"
    if name not in gym.registry:
        gym.register(name, entry_point="fakes:make_dot", vector_entry_point="fakes:make_dot_vec")
    return name
