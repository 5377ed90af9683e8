"""Tiny models and inputs that the tests of backbones share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from worldgym.models.backbones.config import BackboneConfig
from worldgym.models.backbones.world_model import DiffusersWorldModel
from worldgym.specs import ActionSpec, Camera, GripperRule, ObservationSpec, Specs, StateField

SMALLER = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 12}


def specs(height: int = 16, width: int = 16, state: int = 4, cameras: int = 1, action: int = 3) -> Specs:
    more = (Camera("wrist", 16, 16),) if cameras == 2 else ()
    fields = tuple(StateField(f"q{i}", "joint", "rad") for i in range(state))
    names, one = tuple("abcdefgh"[:action]), (1.0,) * action
    spec = ActionSpec(
        names, ("m",) * action, 5.0, tuple(-x for x in one), one, GripperRule(action - 1, 1.0, -1.0)
    )
    return Specs(ObservationSpec((Camera("front", height, width), *more), fields), spec)


def config_of(
    shape: str = "tiny-wan", attention: str = "causal", given: Specs | None = None, **changes
) -> BackboneConfig:
    given = specs() if given is None else given
    states = np.random.default_rng(0).normal(size=(20, given.observation.state_dim)).astype(np.float32)
    base = BackboneConfig.preset(shape)
    base = replace(
        base, transformer={**base.transformer, **SMALLER}, attention=attention, window=2, steps=2, **changes
    )
    return base.for_data(states, given)


def model_of(*args, **changes) -> DiffusersWorldModel:
    torch.manual_seed(0)
    model = DiffusersWorldModel(config_of(*args, **changes)).eval().requires_grad_(False)
    wake(model)
    return model


def wake(model: DiffusersWorldModel) -> None:
    """Layers that begin at zero would hide mistakes."""
    for layer in (
        *model.network.actions.outputs,
        model.integrator.net[-1],
        model.network.transformer.proj_out,
    ):
        if layer.weight.numel():
            torch.nn.init.normal_(layer.weight, std=0.3)


def start(model: DiffusersWorldModel, rows: int = 3, frames: int = 1, seed: int = 1):
    rng = torch.Generator().manual_seed(seed)
    cameras = model.specs.observation.cameras
    shown = [
        torch.randint(0, 256, (rows, frames, *camera.size, 3), generator=rng, dtype=torch.uint8)
        for camera in cameras
    ]
    views = {camera.name: view for camera, view in zip(cameras[1:], shown[1:], strict=True)}
    states = torch.randn(rows, frames, model.state_dim, generator=rng)
    actions = 2 * torch.rand(rows, frames - 1, model.action_dim, generator=rng) - 1
    more = {"views": views} if views else {}
    return model.begin(shown[0], actions, torch.Generator().manual_seed(5), states=states, **more)


def actions_of(model: DiffusersWorldModel, rows: int = 3, steps: int = 5, seed: int = 2) -> torch.Tensor:
    return 2 * torch.rand(rows, steps, model.action_dim, generator=torch.Generator().manual_seed(seed)) - 1


def episodes(count: int = 3, length: int = 10, action: int = 3, size: int = 16, state: int = 4):
    """Arrays of random episodes in which a bright square moves by the action."""
    from worldgym.data import EpisodeArrays

    rng = np.random.default_rng(0)
    frames, actions, states = [], [], []
    for _ in range(count):
        x = 0.5
        for step in range(length + 1):
            picture = np.full((size, size, 3), 90, np.uint8)
            left = int(x * (size - 4))
            picture[4:8, left : left + 4] = (250, 30, 30)
            a = rng.uniform(-1, 1, action).astype(np.float32) * (step < length)
            frames.append(picture), actions.append(a), states.append([x] * state)
            x = float(np.clip(x + 0.2 * a[0], 0, 1))
    offsets = np.arange(0, count * (length + 1) + 1, length + 1)
    last = np.zeros(len(frames), bool)
    last[offsets[1:] - 1] = True
    return EpisodeArrays(
        frames=np.stack(frames), states=np.array(states, np.float32).reshape(len(frames), state),
        actions=np.stack(actions), success=last, progress=last.astype(np.float32), is_last=last, offsets=offsets,
        instructions=["go"] * count, tasks=["t"] * count, behaviours=["expert"] * count, provenance=[{}] * count,
        indices=np.arange(count),
    )  # fmt: skip
