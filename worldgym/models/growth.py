"""An older world model grown into today's shape, so that training can go on from it.

Why: an input that a model lacks is a few columns of its first layers. Filled with zeros it is at first ignored, and the
grown model imagines what the old one did; from there it is learned in a fraction of the time of a fresh model.

Example::

    model = grown(load_world_model("runs/old/export"), states)      # (F, S) proprioception of the logs
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from worldgym.errors import ConfigError
from worldgym.models.world_model import VideoWorldModel

GATE = -4.0  # a new picture is taken from by 2 % at first: little, but not beyond what gradients reach


def grown(model: VideoWorldModel, states: np.ndarray) -> VideoWorldModel:
    """`model` with the anchor moved as things are carried and pushed, or itself if it has that.

    Without `DynamicsConfig.held` it gets the weights that this needs, without `low` only the rule.

    Args:
        model: with moved frames.
        states: `(F,S)` proprioception of the logs, data units; tells when the hand holds something.

    Raises:
        ConfigError: a model without moved frames, which has nothing to grow from.
    """
    old = model.config.dynamics
    if old.held and old.low is not None:
        return model
    if not old.moved:
        raise ConfigError(
            "this world model has no moved frame to grow from; train afresh on its tokenizer, without --initial"
        )
    own = model.config
    shape = own.for_data(states, old.action_dim, model.image_size)
    if old.held and shape.dynamics.low is None:
        return model

    def here(value: float, dim: int) -> float:
        """From these logs' normal units to those that the model was trained in."""
        raw = value * shape.state_std[dim] + shape.state_mean[dim]
        return (raw - own.state_mean[dim]) / own.state_std[dim]

    bounds, low = shape.dynamics.holding, shape.dynamics.low
    holding = old.holding if old.held else (here(bounds[0], -1), here(bounds[1], -1))
    low = None if low is None else here(low, 2)
    new = VideoWorldModel(replace(own, dynamics=replace(old, held=True, holding=holding, low=low)))
    known, weights = model.state_dict(), new.state_dict()
    for name, value in weights.items():
        if name in known and known[name].shape == value.shape:
            weights[name] = known[name]
        elif name in known:
            value = torch.full_like(value, GATE if name.endswith("take.bias") else 0.0)
            value[tuple(slice(0, n) for n in known[name].shape)] = known[name]
            weights[name] = value
    new.load_state_dict(weights)
    return new
