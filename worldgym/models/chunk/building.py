"""Building a chunk world model for a dataset: from the parts of an earlier world model, and with a position probe.

Example::

    model = for_data(specs, "small", arrays, initial="tabletop-small", probe="runs/probe/export")
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from worldgym.errors import ConfigError
from worldgym.models.canvas import Canvas
from worldgym.models.chunk.config import ChunkConfig
from worldgym.models.chunk.world_model import ChunkWorldModel
from worldgym.models.loading import load_world_model
from worldgym.models.probe import PositionProbe
from worldgym.models.tokenizers.saved import read_tokenizer
from worldgym.models.video.world_model import VideoWorldModel
from worldgym.specs import Specs, check_observations
from worldgym.utils.typed import from_values

logger = logging.getLogger(__name__)
SHARED = ("embed", "modulate", "layers", "final", "unembed", "refine", "change")
"""Parts of the picture network that a frame model's dynamics has too."""


@dataclass(frozen=True)
class Ensemble:
    """The settings that make an ensemble; see `ChunkConfig`."""

    members: int = 1
    own_layers: int = 1


def for_data(
    specs: Specs,
    preset: str,
    arrays: Any,
    *,
    initial: Path | str | None = None,
    probe: Path | str | None = None,
    tokenizer: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> ChunkWorldModel:
    """A chunk model for a dataset.

    Args:
        specs: specs of the dataset.
        preset: preset of the config.
        arrays: episodes of the dataset.
        initial: world model of type `video` or `chunk`, whose tokenizer is taken over, and whose weights are where the
            shapes agree. With a `tokenizer` beside it, it may be a model of another robot.
        tokenizer: run folder of `worldgym train tokenizer`, for a model that starts from nothing; with `initial`, the
            tokenizer of `initial` trained further, for a model of another robot.
        probe: folder of a position probe; None trains without positions.
        settings: `members` and `own_layers` of an ensemble (`Ensemble`), whose members begin with the weights of
            `initial`.

    Raises:
        ConfigError: neither `initial` nor `tokenizer`, or one of them does not fit the data; other settings.
    """
    if initial is None and tokenizer is None:
        raise ConfigError(
            "a chunk model starts from another world model, or from a tokenizer; type --initial WORLD_MODEL or "
            "--tokenizer RUN (of `worldgym train tokenizer`)"
        )
    old: Any = None if initial is None else load_world_model(initial)
    if old is not None and not isinstance(old, VideoWorldModel | ChunkWorldModel):
        raise ConfigError(
            f"--initial {initial} is a {type(old).__name__}; expected a world model of type video or chunk"
        )
    if tokenizer is not None:
        frames = read_tokenizer(Path(tokenizer))
        shape: Any = frames.config
        base = replace(ChunkConfig.preset(preset), tokenizer=shape)
        canvas = Canvas(specs.observation.cameras, shape.reduction * base.patch)
        if canvas.size != frames.image_size:
            raise ConfigError(
                f"the tokenizer {tokenizer} reads images of {frames.image_size}, but the dataset's cameras need "
                f"{canvas.size}; train a tokenizer on this dataset"
            )
    else:
        check_observations(specs.observation, old.specs.observation, "the dataset", f"the world model {initial}")
        frames, shape = old.tokenizer, old.config.tokenizer
        base = replace(ChunkConfig.preset(preset), tokenizer=shape)
    located = None if probe is None else PositionProbe.from_pretrained(probe)
    config = base.for_data(arrays.states, specs, () if located is None else located.config.parts)
    config = replace(config, tokenizer=shape, tasks=tuple(sorted(set(arrays.tasks))))
    if located is not None:
        config = replace(config, probe_width=located.config.width)
    same = isinstance(old, ChunkWorldModel) and tokenizer is None
    if same:
        config = replace(old.config, tasks=config.tasks)
    elif isinstance(old, ChunkWorldModel):
        config = replace(config, members=old.config.members, own_layers=old.config.own_layers)
    config = _with_members(config, settings)
    model = ChunkWorldModel(config)
    if same:
        model.load_state_dict(old.state_dict(), strict=config.members == old.config.members)
    elif isinstance(old, ChunkWorldModel):
        _warm_elsewhere(model, old)
    elif old is not None:
        _warm(model, old)
    if old is not None and not (isinstance(old, ChunkWorldModel) and old.config.members > 1):
        model.copy_first_member()
    model.tokenizer.load_state_dict(frames.state_dict())
    if located is not None and model.locator is not None:
        model.locator.load_state_dict(located.state_dict())
    model.tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _with_members(config: ChunkConfig, settings: Mapping[str, Any] | None) -> ChunkConfig:
    """The config with the `Ensemble` in `settings`."""
    if not settings:
        return config
    wanted = from_values(Ensemble, dict(settings), "--settings")
    if config.members > 1 and (wanted.members, wanted.own_layers) != (config.members, config.own_layers):
        raise ConfigError(
            f"the initial world model has {config.members} members with {config.own_layers} own layers, got "
            f"members={wanted.members} own_layers={wanted.own_layers}; leave out --settings to train it further"
        )
    return replace(config, members=wanted.members, own_layers=wanted.own_layers)


def _warm_elsewhere(model: ChunkWorldModel, old: ChunkWorldModel) -> None:
    """Copy the weights of a chunk model of other parts or another robot, where the shapes agree."""
    theirs, mine = old.state_dict(), model.state_dict()
    found = {name: value for name, value in theirs.items() if name in mine and mine[name].shape == value.shape}
    model.load_state_dict({**mine, **found})
    stem, other, parts = model.picture.stem, old.picture.stem, 2 * old.picture.parts
    pictures = other.weight.shape[1] - parts
    if stem.weight.shape[1] - 2 * model.picture.parts == pictures and stem.weight.shape[0] == other.weight.shape[0]:
        with torch.no_grad():  # the channels of pictures come before the maps of parts
            stem.weight[:, :pictures] = other.weight[:, :pictures]
    logger.info("%d of %d arrays of weights are taken over from the initial world model", len(found), len(mine))


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
