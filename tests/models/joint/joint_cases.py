"""Tiny joint models and inputs that their tests share."""

from __future__ import annotations

import numpy as np
import torch

from agents.policies.joint import JointPolicy
from worldgym.data import EpisodeArrays
from worldgym.models.joint import FAMILIES, JointConfig
from worldgym.models.joint.network import Inputs
from worldgym.specs import ActionSpec, Camera, ObservationSpec, Specs, StateField

SIDE, ACTIONS, STATE = 16, 3, 4
WORLDS = [name for name in FAMILIES if name != "fastwam"]
"""Families whose video follows actions."""


def specs(cameras: int = 1) -> Specs:
    more = (Camera("wrist", SIDE, SIDE),) if cameras == 2 else ()
    fields = tuple(StateField(f"q{i}", "joint", "rad") for i in range(STATE))
    one = (1.0,) * ACTIONS
    spec = ActionSpec(("a", "b", "c"), ("m",) * ACTIONS, 5.0, tuple(-x for x in one), one)
    return Specs(ObservationSpec((Camera("front", SIDE, SIDE), *more), fields), spec)


def config_of(family: str, cameras: int = 1, **changes) -> JointConfig:
    states = np.random.default_rng(0).normal(size=(20, STATE)).astype(np.float32)
    base = JointConfig.preset("tiny", family).to_dict()
    tokenizer = {**base["tokenizer"], "image_size": SIDE}
    values = {**base, "chunk": 3, "tokenizer": tokenizer, **changes}
    return JointConfig.from_dict(values).for_data(states, specs(cameras))


def model_of(family: str, cameras: int = 1, **changes) -> JointPolicy:
    """A model with random weights; layers that begin at zero would hide mistakes."""
    torch.manual_seed(0)
    model = JointPolicy(config_of(family, cameras, **changes)).eval()
    model.requires_grad_(False)
    for layer in (model.network.video_out, model.network.action_out, model.integrator.net[-1]):
        torch.nn.init.normal_(layer.weight, std=0.3)
    for modulate in model.network.body.modulate.values():
        torch.nn.init.normal_(modulate[-1].weight, std=0.3)
    model.network.requires_grad_(True)
    return model


def inputs_of(model: JointPolicy, rows: int = 2, seed: int = 0) -> Inputs:
    """Random inputs of a training sequence."""
    c, g = model.config, torch.Generator().manual_seed(seed)
    n, k = c.block_count, c.chunk
    frame = (c.tokenizer.latent_channels, *c.tokenizer.grid)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    return Inputs(
        normal(rows, c.text_dim), normal(rows, n + 1, *frame), normal(rows, n, STATE), normal(rows, n, *frame),
        normal(rows, n, *frame), torch.rand(rows, n, generator=g), normal(rows, n, k, ACTIONS),
        torch.ones(rows, n, k, dtype=torch.bool), torch.rand(rows, n, generator=g),
    )  # fmt: skip


def observation(rows: int = 3, cameras: int = 1, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    out = {
        "image": rng.integers(0, 256, (rows, SIDE, SIDE, 3), dtype=np.uint8),
        "state": rng.normal(size=(rows, STATE)).astype(np.float32),
        "instruction": [f"move square {i}" for i in range(rows)],
    }
    if cameras == 2:
        out["image_wrist"] = rng.integers(0, 256, (rows, SIDE, SIDE, 3), dtype=np.uint8)
    return out


def episodes(count: int = 10, length: int = 9, successes: int | None = None) -> EpisodeArrays:
    """Episodes in which a red square moves to the middle, at a speed that grows with its distance.

    The action along the first axis follows from the picture; the others are zero. `successes` of the episodes count as
    successful, all when None.
    """
    rng = np.random.default_rng(0)
    frames, actions, states = [], [], []
    for _ in range(count):
        x = rng.uniform(-1, 1)
        for step in range(length + 1):
            picture = np.full((SIDE, SIDE, 3), 90, np.uint8)
            left = int(round((x + 1) / 2 * (SIDE - 6)))
            picture[5:11, left : left + 6] = (250, 30, 30)
            act = np.array([-0.5 * x, 0, 0], np.float32) * (step < length)
            frames.append(picture), actions.append(act), states.append([x, 0, 0, 0])
            x += float(act[0])
    offsets = np.arange(0, count * (length + 1) + 1, length + 1)
    last = np.zeros(len(frames), bool)
    last[offsets[1:] - 1] = True
    good = np.repeat(np.arange(count) < (count if successes is None else successes), length + 1)
    return EpisodeArrays(
        frames=np.stack(frames), states=np.array(states, np.float32), actions=np.stack(actions), success=last & good,
        progress=(last & good).astype(np.float32), is_last=last, offsets=offsets,
        instructions=["move the square to the middle"] * count, tasks=["t"] * count, behaviours=["expert"] * count,
        provenance=[{}] * count, indices=np.arange(count),
    )  # fmt: skip
