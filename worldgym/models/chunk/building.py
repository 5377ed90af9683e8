"""Building a chunk world model for a dataset: from the parts of an earlier world model, and with a position probe.

Example::

    model = for_data(specs, "small", arrays, initial="tabletop-small", probe="runs/probe/export")
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from worldgym.errors import ConfigError
from worldgym.models.chunk.config import ChunkConfig
from worldgym.models.chunk.world_model import ChunkWorldModel
from worldgym.models.loading import load_world_model
from worldgym.models.probe import PositionProbe
from worldgym.models.video.world_model import VideoWorldModel
from worldgym.specs import Specs, check_observations

SHARED = ("embed", "modulate", "layers", "final", "unembed", "refine", "change")
"""Parts of the picture network that a frame model's dynamics has too."""


def for_data(
    specs: Specs, preset: str, arrays: Any, *, initial: Path | str | None, probe: Path | str | None
) -> ChunkWorldModel:
    """A chunk model for a dataset.

    Args:
        specs: specs of the dataset.
        preset: preset of the config.
        arrays: episodes of the dataset.
        initial: world model of type `video` or `chunk`, whose tokenizer is taken over, and whose weights are where the
            shapes agree.
        probe: folder of a position probe; None trains without positions.

    Raises:
        ConfigError: no `initial`, or it does not fit the data.
    """
    if initial is None:
        raise ConfigError(
            "a chunk model takes its tokenizer from another world model; type --initial WORLD_MODEL (of type video, "
            "see `worldgym train world-model --help`)"
        )
    old = load_world_model(initial)
    if not isinstance(old, VideoWorldModel | ChunkWorldModel):
        raise ConfigError(
            f"--initial {initial} is a {type(old).__name__}; expected a world model of type video or chunk"
        )
    check_observations(specs.observation, old.specs.observation, "the dataset", f"the world model {initial}")
    located = None if probe is None else PositionProbe.from_pretrained(probe)
    base = replace(ChunkConfig.preset(preset), tokenizer=old.config.tokenizer)
    config = base.for_data(arrays.states, specs, () if located is None else located.config.parts)
    config = replace(config, tasks=tuple(sorted(set(arrays.tasks))))
    if located is not None:
        config = replace(config, probe_width=located.config.width)
    if isinstance(old, ChunkWorldModel):
        config = replace(old.config, tasks=config.tasks)
    model = ChunkWorldModel(config)
    model.tokenizer.load_state_dict(old.tokenizer.state_dict())
    if isinstance(old, ChunkWorldModel):
        model.load_state_dict(old.state_dict())
    else:
        _warm(model, old)
    if located is not None and model.locator is not None:
        model.locator.load_state_dict(located.state_dict())
    model.tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _warm(model: ChunkWorldModel, old: VideoWorldModel) -> None:
    """Copy the weights of a frame model's dynamics to the picture network, where the shapes agree."""
    picture, dynamics = model.picture, old.dynamics
    for name in SHARED:
        _copy(getattr(picture, name), getattr(dynamics, name))
    if picture.place.shape == dynamics.place.shape:
        picture.place.data.copy_(dynamics.place.data)
    if dynamics.objects is not None and picture.parts:
        _copy(picture.shift, dynamics.objects.shift)
        count = dynamics.objects.count
        with torch.no_grad():
            picture.take.weight[:count].copy_(dynamics.objects.take.weight)
            picture.take.bias[:count].copy_(dynamics.objects.take.bias)  # type: ignore[index]
    z = model.config.tokenizer.latent_channels
    shown = dynamics.stem.weight.shape[1] - z  # without the noisy frame, which a chunk model does not have
    if (
        dynamics.stem.weight.shape[0] == picture.stem.weight.shape[0]
        and shown <= picture.stem.weight.shape[1]
    ):
        with torch.no_grad():
            picture.stem.weight.zero_()
            picture.stem.weight[:, :shown] = dynamics.stem.weight[:, z:]
            picture.stem.bias.copy_(dynamics.stem.bias)  # type: ignore[arg-type]


def _copy(into: nn.Module, source: nn.Module) -> None:
    """Copy a part's weights if all shapes agree."""
    mine, theirs = into.state_dict(), source.state_dict()
    if {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}:
        into.load_state_dict(theirs)
