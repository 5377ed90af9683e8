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
from worldgym.models.video.object_motion import bounds_of
from worldgym.models.video.world_model import VideoWorldModel

GATE = -4.0  # a new picture is taken from by 2 % at first: little, but not beyond what gradients reach


def grown(model: VideoWorldModel, states: np.ndarray) -> VideoWorldModel:
    """`model` with the anchor warped as things are carried and pushed, or itself if it has that.

    Without `ObjectMotionConfig.warp_anchor` it gets the weights that this needs, without `contact_height` only the
    rule.

    Args:
        model: with object motion.
        states: `(F,S)` proprioception of the logs, data units; says when the hand holds something.

    Raises:
        ConfigError: a model without object motion, which has nothing to grow from.
    """
    own, old = model.config, model.config.dynamics.motion
    if old is None:
        raise ConfigError(
            "this world model has no object motion to grow from; train afresh on its tokenizer, without --initial"
        )
    if old.warp_anchor and old.contact_height is not None:
        return model
    (closed, opened), height = bounds_of(states, old.hand)
    if old.warp_anchor and height is None:
        return model
    mean, std = states.mean(0), states.std(0) + 1e-6

    def here(value: float, column: int) -> float:
        """From these logs' normal units to those that the model was trained in."""
        raw = value * float(std[column]) + float(mean[column])
        return (raw - own.state_mean[column]) / own.state_std[column]

    grip = old.hand.gripper
    grasp = old.grasp_range if old.warp_anchor else (here(closed, grip), here(opened, grip))
    low = None if height is None else here(height, old.hand.height)
    motion = replace(old, warp_anchor=True, grasp_range=grasp, contact_height=low)
    new = VideoWorldModel(replace(own, dynamics=replace(own.dynamics, motion=motion)))
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
