"""Extension of an older world model to the current architecture, so that its training can continue.

A missing input corresponds to a few columns in the first layers. Filled with zeros, they are ignored at first, and the
extended model predicts what the old one did. Training then takes a fraction of the time of training from scratch.

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

GATE = -4.0  # initial gate logit: 2 % is taken from a new frame, which is little but enough for gradients to reach it


def grown(model: VideoWorldModel, states: np.ndarray) -> VideoWorldModel:
    """Extend `model` by an anchor warped by grasped and pushed objects; returns `model` if it already has that.

    Without `ObjectMotionConfig.warp_anchor` it gets the weights needed for this, without `contact_height` only the
    setting.

    Args:
        model: a world model with object motion.
        states: `(F,S)` proprioception of the logs in data units; used to derive when the hand grasps something.

    Raises:
        ConfigError: the model has no object motion to extend.
    """
    own, old = model.config, model.config.dynamics.motion
    if old is None:
        raise ConfigError(
            "this world model has no object motion to extend; train from scratch on its tokenizer, without --initial"
        )
    if old.warp_anchor and old.contact_height is not None:
        return model
    (closed, opened), height = bounds_of(states, old.hand)
    if old.warp_anchor and height is None:
        return model
    mean, std = states.mean(0), states.std(0) + 1e-6

    def to_model_units(value: float, column: int) -> float:
        """Convert from the normalised units of these logs to those that the model was trained in."""
        raw = value * float(std[column]) + float(mean[column])
        return (raw - own.state_mean[column]) / own.state_std[column]

    grip = old.hand.gripper
    grasp = old.grasp_range if old.warp_anchor else (to_model_units(closed, grip), to_model_units(opened, grip))
    low = None if height is None else to_model_units(height, old.hand.height)
    motion = replace(old, warp_anchor=True, grasp_range=grasp, contact_height=low)
    new = VideoWorldModel(replace(own, dynamics=replace(own.dynamics, motion=motion)))
    old_weights, weights = model.state_dict(), new.state_dict()
    for name, value in weights.items():
        if name in old_weights and old_weights[name].shape == value.shape:
            weights[name] = old_weights[name]
        elif name in old_weights:
            value = torch.full_like(value, GATE if name.endswith("take.bias") else 0.0)
            value[tuple(slice(0, n) for n in old_weights[name].shape)] = old_weights[name]
            weights[name] = value
    new.load_state_dict(weights)
    return new
