"""Cost of the world models on video transformers of diffusers (`diffusers`), with random weights of published shapes.

Example::

    with on_meta():
        step_cost(training("wan2.2-ti2v-5b", batch=1, checkpointing=True, device="cpu"))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch

from experiments.pipelines.cost.training import Training
from worldgym.nn import make_sampler

PRESETS = {"tiny-wan": "tiny-wan", "large": "wan2.2-ti2v-5b", "cosmos-predict2-2b": "cosmos-predict2-2b"}
"""Names of presets, and the shapes behind them."""
FRAMES = 5
"""Latent frames of a training window after the first one: 20 actions, the default window."""
CYCLE = 4
"""Chunks of 5 actions after which chunks and latent frames of 4 actions begin together again."""
SAMPLER = "worldgym.models.backbones.sampling.make_sampler"
Device = torch.device | str


def build(preset: str, device: Device) -> Any:
    """A model for the tabletop: one camera, four actions, four numbers of proprioception; made on the device."""
    from worldgym.models.backbones.config import BackboneConfig
    from worldgym.models.backbones.world_model import DiffusersWorldModel
    from worldgym.specs import ActionSpec, Camera, GripperRule, ObservationSpec, Specs, StateField

    base = BackboneConfig.preset(PRESETS[preset])
    names, one = ("dx", "dy", "dz", "gripper"), (1.0,) * 4
    action = ActionSpec(names, ("",) * 4, 5.0, tuple(-x for x in one), one, GripperRule(3, 1.0, -1.0))
    state = tuple(StateField(f"s{i}", "other", "") for i in range(4))
    specs = Specs(ObservationSpec((Camera("front", *base.size),), state), action)
    with torch.device(device):
        model = DiffusersWorldModel(base.for_data(np.zeros((2, 4), np.float32), specs))
    return model.with_dtype(base.dtype)


def training(preset: str, batch: int, checkpointing: bool, device: Device) -> Training:
    """A step of `worldgym.training.backbones` on latents of the cache, of all weights of the transformer."""
    from worldgym.training.backbone_data import Drawn
    from worldgym.training.backbones import BackboneTraining, state_loss, video_loss

    model = build(preset, device)
    model.requires_grad_(True).vae.requires_grad_(False)
    model.network.cast(torch.float32)
    model.network.checkpointing = checkpointing
    model.train()
    c, settings = model.config, BackboneTraining(batch=batch, frames=FRAMES)
    z = torch.zeros(batch, FRAMES + 1, c.channels, *c.grid, device=device)
    moves = torch.zeros(batch, FRAMES + 1, c.per_frame, c.action_dim, device=device)
    clips = _Clips(Drawn(z, moves), c.state_dim)

    def forward() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return video_loss(model, clips, settings, generator) + state_loss(model, clips, settings, generator)

    trained = tuple(p for p in model.parameters() if p.requires_grad)
    average = sum(p.numel() * p.element_size() for p in trained)
    unit = f"windows of {1 + FRAMES} latent frames"
    return Training(model, trained, (z, moves), forward, average, True, batch, unit)


class _Clips:
    """What the losses ask of `worldgym.training.backbone_data.Clips`, with one window."""

    def __init__(self, drawn: Any, state_dim: int) -> None:
        self.drawn, self.first, self.rows = drawn, np.zeros(1, np.int64), np.zeros(1, np.int64)
        self.latents, self.states = drawn.latents[0], torch.zeros(1, state_dim)

    def draw(self, batch: int, frames: int, generator: torch.Generator) -> Any:
        return self.drawn

    def draw_path(self, batch: int, steps: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        states, action = self.states.shape[1], self.drawn.moves.shape[-1]
        shapes = ((batch, steps + 1, states), (batch, states), (batch, action), (batch, steps, action))
        return tuple(torch.zeros(shape) for shape in shapes)


def imagining(model: Any, batch: int, decode: str) -> tuple[Any, Callable[[], Any], int]:
    """A state with a full window, a function that imagines 20 frames in four chunks, and this number."""
    from experiments.pipelines import speed

    state = speed.start(model, batch)
    actions = torch.zeros(batch, 5, model.action_dim, device=model.device)
    r, window = model.config.per_frame, model.window

    def work() -> Any:
        now = state
        # the schedulers of diffusers look up values; their passes are those of this one
        with mock.patch(SAMPLER, lambda _, *given: make_sampler("euler", *given)):
            for chunk in range(CYCLE):
                now, *_ = model.imagine_alike(model.network, now, actions, decode, window, 5 * chunk % r)
        return now

    return state, work, 5 * CYCLE


