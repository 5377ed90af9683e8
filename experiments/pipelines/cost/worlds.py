"""World models whose cost is computed, by registered type. A new type is one entry of `WORLDS`.

Example::

    with on_meta():
        training = world_training("video", "base", batch=64)
        imagining_cost("video", "base", batch=64)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from experiments.pipelines import speed
from experiments.pipelines.cost import backbones
from experiments.pipelines.cost.counting import Live, bytes_of, flops_of, weights_of
from experiments.pipelines.cost.training import Training, checkpointed
from worldgym.errors import ConfigError
from worldgym.registry import WORLD_MODELS

CHUNK = 5
"""Actions of an imagined chunk."""
Device = torch.device | str


def _video(preset: str, device: Device) -> Any:
    from worldgym.models import VideoWorldModel
    from worldgym.models.video.config import WorldModelConfig

    return VideoWorldModel(WorldModelConfig.preset(preset)).to(device)


def _video_training(preset: str, batch: int, checkpointing: bool, device: Device) -> Training:
    """The step of `worldgym.training.world_model` with true contexts; the other kind needs no more memory."""
    from worldgym.training.world_model import Windows, WorldModelTraining, world_model_loss

    model, settings = _video(preset, device), WorldModelTraining()
    c, length = model.config.dynamics, settings.window
    model.train()
    model.tokenizer.requires_grad_(False)
    if model.dynamics.objects is not None:
        model.dynamics.objects.shift.requires_grad_(False)
    if checkpointing:
        checkpointed(model.dynamics.layers)
    latents = torch.zeros(batch, length + 1, c.latent_channels, *c.cells)
    windows = Windows(
        latents, torch.zeros(batch, length, c.action_dim), torch.zeros(batch, length + 1, c.state_dim),
        torch.ones(batch, length, dtype=torch.bool), latents[:, 0].clone(), torch.zeros(batch, 40, c.state_dim),
    ).to(torch.device(device))  # fmt: skip
    background = model.tokenizer.encode_background()
    fixed = () if background is None else (background,)

    def forward() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return world_model_loss(model, windows, settings, background, False, generator, model.dynamics)[0]

    trained = tuple(p for p in model.parameters() if p.requires_grad)
    inputs = (*vars(windows).values(), *fixed)
    copies = (
        bytes_of(weights_of(model)) + bytes_of(weights_of(model.dynamics)) // 2
    )  # the average; inference, bfloat16
    return Training(model, trained, inputs, forward, copies, True, batch, f"windows of {length} frames")


def _chunk(preset: str, device: Device) -> Any:
    from worldgym.models.chunk.config import ChunkConfig
    from worldgym.models.chunk.world_model import ChunkWorldModel
    from worldgym.models.video.config import WorldModelConfig

    specs = _specs(WorldModelConfig.preset(preset))
    config = ChunkConfig.preset(preset).for_data(np.zeros((2, 4), np.float32), specs, PARTS)
    return ChunkWorldModel(config).to(device)


PARTS = ("hand", "red cube", "blue cube", "green cube", "tray", "drawer", "button")
"""Parts that the position probe locates, as many as in a scene of the tabletop."""


def _specs(config: Any) -> Any:
    from worldgym.specs import ActionSpec, Specs

    count = config.dynamics.action_dim
    names = tuple(f"action_{i}" for i in range(count))
    action = ActionSpec(names, ("",) * count, 5.0, (-1.0,) * count, (1.0,) * count)
    return Specs(config.described.observation, action)


def _chunk_training(preset: str, batch: int, checkpointing: bool, device: Device) -> Training:
    """The step of the picture network (`worldgym.training.chunk`), which is most of the training."""
    from worldgym.training.chunk import ChunkTraining, picture_loss
    from worldgym.training.chunk_data import ChunkEpisodes
    from worldgym.training.world_model import LatentEpisodes

    model = _chunk(preset, device)
    model.train()
    model.requires_grad_(False)
    model.picture.requires_grad_(True)
    if checkpointing:
        checkpointed(model.picture.layers)
    c, frames, settings = model.config, 512, ChunkTraining(batch=batch, short_share=0.0)
    episodes = LatentEpisodes(
        torch.zeros(frames, c.tokenizer.latent_channels, *c.cells, dtype=torch.float16),
        torch.zeros(frames, c.action_dim), torch.zeros(frames, c.state_dim), np.array([0, frames // 2, frames]),
    )  # fmt: skip
    data = ChunkEpisodes(episodes, torch.full((frames, len(PARTS), 2), 0.5), torch.ones(frames, len(PARTS)))
    background = model.tokenizer.encode_background()
    fixed = () if background is None else (background,)

    def forward() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return picture_loss(model, data, settings, background, False, generator)[0]

    trained, copies = tuple(model.picture.parameters()), 3 * bytes_of(weights_of(model.picture)) // 2
    return Training(model, trained, fixed, forward, copies, True, batch, "chunks of 5 actions")


@dataclass(frozen=True)
class Entry:
    """How the cost of a type of world model is computed.

    Args:
        presets: names of shapes.
        build: `build(preset, device)`, a model with random weights.
        training: `training(preset, batch, checkpointing, device)`, a training step.
        imagining: `imagining(model, batch, decode)`: the state that environments keep, a function that imagines, and
            the number of frames per environment that a call of it imagines.
    """

    presets: tuple[str, ...]
    build: Callable[[str, Device], Any]
    training: Callable[[str, int, bool, Device], Training]
    imagining: Callable[[Any, int, str], tuple[Any, Callable[[], Any], int]]


def _steps(model: Any, batch: int, decode: str) -> tuple[Any, Callable[[], Any], int]:
    """Imagining by `step`, a chunk at a time."""
    return speed.start(model, batch), speed.imagining(model, batch, CHUNK, decode=decode), CHUNK


WORLDS: dict[str, Entry] = {
    "video": Entry(("tiny", "small", "base"), _video, _video_training, _steps),
    "chunk": Entry(("tiny", "small", "base"), _chunk, _chunk_training, _steps),
    "diffusers": Entry(tuple(backbones.PRESETS), backbones.build, backbones.training, backbones.imagining),
}
"""By type. A new type is one entry; it counts where the type is registered (`worldgym.registry.WORLD_MODELS`)."""


def world_presets() -> list[tuple[str, str]]:
    """Types and presets of registered world models whose cost can be computed."""
    known = set(WORLD_MODELS.names())
    return [(kind, preset) for kind, entry in WORLDS.items() if kind in known for preset in entry.presets]


def _entry(kind: str, preset: str) -> Entry:
    if (kind, preset) not in world_presets():
        known = ", ".join(f"{kind} {preset}" for kind, preset in world_presets())
        raise ConfigError(f"there is no world model {kind!r} with the preset {preset!r}; there are {known}")
    return WORLDS[kind]


def world_training(
    kind: str, preset: str, batch: int, checkpointing: bool = False, device: Device = "cpu"
) -> Training:
    """A training step of a world model.

    Args:
        kind: registered type.
        preset: name of a shape.
        batch: rows of a step.
        checkpointing: recompute the activations of the transformer's layers in the backward pass.
        device: where the step is taken.

    Raises:
        ConfigError: an unknown type or preset.
    """
    return _entry(kind, preset).training(preset, batch, checkpointing, device)


def world_model(kind: str, preset: str, device: Device = "cpu") -> Any:
    """The world model of a preset, with random weights, for imagining."""
    return _entry(kind, preset).build(preset, device).eval().requires_grad_(False)


def imagining_cost(kind: str, preset: str, batch: int) -> dict[str, int]:
    """Operations of an imagined frame, and memory of imagining `batch` environments.

    Returns:
        `frame_flops` (every frame decoded), `frame_flops_last` (one in five decoded, per step of the environment),
        `env_bytes` (state and cache of keys and values that an environment keeps between steps) and
        `imagining_bytes` (weights, states of the batch, and temporary values at their fullest).
    """
    model, imagining = world_model(kind, preset), _entry(kind, preset).imagining
    with torch.no_grad():
        state, work, frames = imagining(model, batch, "all")
        kept = bytes_of(state.tensors()) // batch
        del state
        flops = flops_of(work) // (batch * frames)
        last = flops_of(imagining(model, batch, "last")[1]) // (batch * frames)
        copies = [p for fast in getattr(model, "_fast", ()) for p in weights_of(fast)]
        del work
        with Live([*weights_of(model), *copies]) as live:
            held = imagining(model, batch, "all")
            held[1]()
    return {
        "frame_flops": flops, "frame_flops_last": last, "env_bytes": kept, "imagining_bytes": live.peak,
    }  # fmt: skip
