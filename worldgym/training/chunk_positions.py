"""Training of the networks of positions of a chunk world model: proprioception, the hand in the image, objects.

Example::

    train_positions(model, data, LoopConfig(steps=4000), "runs/chunk/positions")
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldgym.models.chunk.config import HAND
from worldgym.models.chunk.slots import Slots
from worldgym.models.chunk.world_model import ChunkWorldModel
from worldgym.training.chunk_data import ChunkEpisodes, Labels, labels
from worldgym.training.loop import LoopConfig, TrainingLoop


def roll_positions(
    model: ChunkWorldModel, given: Labels, k: int, true_path: bool
) -> tuple[Tensor, list[Slots]]:
    """Predicted proprioception `(B,n k,S)`, and the slots before the first and after each chunk.

    `true_path` moves the slots along the true path of the hand; proprioception is then predicted chunk by chunk.
    """
    now, last, before, path = given.states[:, 0], given.last, given.before, []
    slots = Slots.new(
        model.objects_of(given.where[:, 0]),
        model.objects_of(given.present[:, 0]).float(), model.config.memory,
    )  # fmt: skip
    every = [slots]
    for c in range(given.actions.shape[1] // k):
        if true_path and c:
            now = given.states[:, c * k]
            last = now - given.states[:, c * k - 1]
        acts = given.actions[:, c * k : (c + 1) * k]
        steps = model.kinematics(now, last, before, acts, slots.positions.detach())
        path.append(steps)
        walked = torch.cat([now[:, None], steps], 1)
        if true_path:
            walked = given.states[:, c * k : (c + 1) * k + 1]
        if model.motion is not None:
            slots = model.motion(slots, walked, model.kinematics.place(walked).detach())
        every.append(slots)
        now, last, before = walked[:, -1], walked[:, -1] - walked[:, -2], acts[:, -1]
    return torch.cat(path, 1), every


def place_loss(model: ChunkWorldModel, given: Labels, k: int) -> Tensor:
    """Distance in 1/64 of the image between the hand as found by the probe and as placed by proprioception."""
    if HAND not in model.config.parts:
        return given.states.new_zeros(())
    at = model.config.parts.index(HAND)
    alive = torch.cat([torch.ones_like(given.mask[:, :1]), given.mask[:, k - 1 :: k]], 1)
    seen = (given.present[:, :, at] & alive).float()
    away = (model.kinematics.place(given.states[:, ::k]) - given.where[:, :, at]) * 64
    cost = F.smooth_l1_loss(away, torch.zeros_like(away), reduction="none").sum(-1)
    return (seen * cost).sum() / (seen.sum() + 1e-6)


def position_loss(
    model: ChunkWorldModel, given: Labels, k: int, true_path: bool
) -> tuple[Tensor, dict[str, float]]:
    """Loss of kinematics, of the hand's place in the image and of the slots."""
    path, slots = roll_positions(model, given, k, true_path)
    weight = given.mask.float()
    error = F.smooth_l1_loss(path, given.states[:, 1:], reduction="none", beta=0.05).mean(-1)
    kin = (weight * error).sum() / (weight.sum() + 1e-6)
    facts, loss = {"kinematics": float(kin.detach())}, kin
    alive = torch.cat([torch.ones_like(given.mask[:, :1]), given.mask[:, k - 1 :: k]], 1)
    place = place_loss(model, given, k)
    loss, facts["hand_px"] = loss + 0.05 * place, float(place.detach())
    if model.motion is not None:
        pair = (given.where, given.present)
        where, present = (model.objects_of(x.flatten(0, 1)).unflatten(0, x.shape[:2]) for x in pair)
        known = present[:, :1] & present[:, 1:] & alive[:, 1:, None]
        found = torch.stack([s.positions for s in slots[1:]], 1)
        distance = F.smooth_l1_loss(found * 64, where[:, 1:] * 64, reduction="none", beta=1.0).sum(-1)
        moved = ((where[:, 1:] - where[:, :1]).norm(dim=-1) * 64 > 3.0) & known
        focus = known.float() * (1 + 3 * moved.float())
        cost = (focus * distance).sum() / (focus.sum() + 1e-6)
        there = torch.stack([s.present for s in slots[1:]], 1).clamp(1e-4, 1 - 1e-4)
        wanted = present[:, 1:].float()
        seen = F.binary_cross_entropy(there, wanted, reduction="none")
        seen = (seen * alive[:, 1:, None]).sum() / (alive[:, 1:].sum() * max(1, wanted.shape[2]) + 1e-6)
        loss = loss + 0.1 * cost + 0.1 * seen
        with torch.no_grad():
            px = ((found - where[:, 1:]).norm(dim=-1) * 64)[moved]
            facts |= {"moved_px": float(px.median()) if len(px) else 0.0, "presence": float(seen)}
    return loss, facts


class Positions(nn.Module):
    """The networks of positions, as one module to train."""

    def __init__(self, model: ChunkWorldModel) -> None:
        super().__init__()
        self.kinematics, self.motion = model.kinematics, model.motion


def kinematics_loss(model: ChunkWorldModel, given: Labels, k: int) -> tuple[Tensor, dict[str, float]]:
    """Loss of proprioception and of the hand's place alone, each chunk from true proprioception."""
    b, n = len(given.actions), given.actions.shape[1] // k
    starts, acts = given.states[:, :-1:k], given.actions.unflatten(1, (n, k))
    last = torch.cat([given.last[:, None], given.states[:, k:-1:k] - given.states[:, k - 1 : -2 : k]], 1)
    before = torch.cat([given.before[:, None], acts[:, :-1, -1]], 1)
    where = model.objects_of(given.where[:, :-1].flatten(0, 1)) if model.motion is not None else None
    path = model.kinematics(*(x.flatten(0, 1) for x in (starts, last, before, acts)), where).unflatten(
        0, (b, n)
    )
    weight = given.mask.unflatten(1, (n, k)).float()
    error = (path - given.states[:, 1:].unflatten(1, (n, k))).abs().mean(-1)
    loss = (weight * error).sum() / (weight.sum() + 1e-6)
    return loss, {"kinematics": float(loss.detach())}


def train_positions(
    model: ChunkWorldModel,
    data: ChunkEpisodes,
    settings: LoopConfig,
    run_dir: Path | str,
    batch: int = 96,
    kinematics_alone: float = 0.3,
    identity: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Train `kinematics` and `motion` in place; resumes from `run_dir`.

    Args:
        model: the world model.
        data: encoded logs.
        settings: settings of the run.
        run_dir: folder of checkpoints.
        batch: windows per step.
        kinematics_alone: fraction of the run in which proprioception alone is trained.
        identity: values that identify the run.

    Returns:
        the last scalars.
    """
    chunk = model.config.chunk

    def loss(module: nn.Module, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        coin = torch.rand(3, generator=generator).tolist()
        k = chunk if coin[0] < 0.75 else 1 + int(coin[1] * chunk)
        index, mask, _, _ = data.episodes.draw(batch, max(1, 40 // chunk) * k, generator)
        given = labels(model, data, index, mask, k)
        kin, facts = kinematics_loss(model, given, k)
        if training._progress() < kinematics_alone:
            place = place_loss(model, given, k)
            return kin + 0.05 * place, {**facts, "hand_px": float(place.detach())}
        whole, more = position_loss(model, given, k, coin[2] < 0.3)
        return whole + kin, {"kinematics_chunk": facts["kinematics"], **more}

    part = Positions(model)
    training = TrainingLoop(
        part, settings, run_dir, loss, tag="train_positions", identity={"batch": batch, **(identity or {})}
    )
    facts = training.run()
    part.load_state_dict(training.ema_model.state_dict())
    return facts
