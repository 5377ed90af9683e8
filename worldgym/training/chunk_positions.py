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

ALL_OBJECTS = 0.15  # share of the steps that roll the objects outside the image too, whose presence is learned there
FROM_START = 0.6  # share of the steps whose windows begin at the start of an episode, as closed loops do


def roll_positions(
    model: ChunkWorldModel, given: Labels, k: int, true_path: bool, which: Tensor | None = None
) -> tuple[Tensor, list[list[Slots]]]:
    """Predicted proprioception `(B,n k,S)`, and for each member the slots before the first and after each chunk.

    Proprioception reads the objects of the first member.

    Args:
        model: the world model.
        given: labels of the windows.
        k: actions per chunk.
        true_path: move the slots along the true path of the hand; proprioception is then predicted chunk by chunk.
        which: `(B,M)` objects that get a slot; all if None. The others rest at their first position.
    """
    now, last, before, path = given.states[:, 0], given.last, given.before, []
    places, present = model.objects_of(given.where[:, 0]), model.objects_of(given.present[:, 0]).float()
    slots = Slots.new(chosen(places, which), chosen(present, which), model.config.memory, which)
    every = [[slots] for _ in model.motions or (None,)]
    for c in range(given.actions.shape[1] // k):
        if true_path and c:
            now = given.states[:, c * k]
            last = now - given.states[:, c * k - 1]
        acts = given.actions[:, c * k : (c + 1) * k]
        moved = every[0][-1].positions.detach()
        if which is not None:
            moved = places.scatter(1, which[..., None].expand(-1, -1, 2), moved)
        steps = model.kinematics(now, last, before, acts, moved)
        path.append(steps)
        walked = torch.cat([now[:, None], steps], 1)
        if true_path:
            walked = given.states[:, c * k : (c + 1) * k + 1]
        hand = model.kinematics.place(walked).detach() if model.motions else walked
        for mine, motion in zip(every, model.motions or (None,), strict=True):
            mine.append(mine[-1] if motion is None else motion(mine[-1], walked, hand))
        now, last, before = walked[:, -1], walked[:, -1] - walked[:, -2], acts[:, -1]
    return torch.cat(path, 1), every


def chosen(values: Tensor, which: Tensor | None) -> Tensor:
    """Values `(B,M,...)` of the objects `which (B,M)` from those of all objects `(B,N,...)`; all if None."""
    if which is None:
        return values
    index = which.view(*which.shape, *(1,) * (values.ndim - 2)).expand(-1, -1, *values.shape[2:])
    return values.gather(1, index)


def in_image(model: ChunkWorldModel, given: Labels) -> Tensor | None:
    """`(B,M)` int64: as many objects of each window as are in the first image of the fullest one, those there first."""
    there = model.objects_of(given.present[:, 0]).float()
    count = int(there.sum(1).max()) if there.numel() else 0
    return None if count >= there.shape[1] else there.topk(max(1, count), dim=1).indices


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
    model: ChunkWorldModel, given: Labels, k: int, true_path: bool, which: Tensor | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Loss of kinematics, of the hand's place in the image and of the slots; `which` as in `roll_positions`."""
    path, each = roll_positions(model, given, k, true_path, which)
    weight = given.mask.float()
    error = F.smooth_l1_loss(path, given.states[:, 1:], reduction="none", beta=0.05).mean(-1)
    kin = (weight * error).sum() / (weight.sum() + 1e-6)
    facts, loss = {"kinematics": float(kin.detach())}, kin
    alive = torch.cat([torch.ones_like(given.mask[:, :1]), given.mask[:, k - 1 :: k]], 1)
    place = place_loss(model, given, k)
    loss, facts["hand_px"] = loss + 0.05 * place, float(place.detach())
    if model.motions:
        pair = (given.where, given.present)
        where, present = (model.objects_of(x.flatten(0, 1)).unflatten(0, x.shape[:2]) for x in pair)
        if which is not None:
            every = which.repeat_interleave(where.shape[1], 0)
            where, present = (chosen(x.flatten(0, 1), every).unflatten(0, x.shape[:2]) for x in (where, present))
        known = present[:, :1] & present[:, 1:] & alive[:, 1:, None]
        moved = ((where[:, 1:] - where[:, :1]).norm(dim=-1) * 64 > 3.0) & known
        wanted, there = present[:, 1:].float(), alive[:, 1:].float()
        focus = known.float() * (1 + 3 * moved.float())
        counts = focus.new_ones(len(each), len(focus)) if given.counts is None else given.counts
        guesses, of_members = [], []
        for slots, count in zip(each, counts, strict=True):
            found = torch.stack([s.positions for s in slots[1:]], 1)
            distance = F.smooth_l1_loss(found * 64, where[:, 1:] * 64, reduction="none", beta=1.0).sum(-1)
            cost = (count[:, None, None] * focus * distance).sum() / (focus.sum() + 1e-6)
            guess = torch.stack([s.present for s in slots[1:]], 1).clamp(1e-4, 1 - 1e-4)
            wrong = count[:, None, None] * F.binary_cross_entropy(guess, wanted, reduction="none")
            seen = (wrong * there[..., None]).sum() / (there.sum() * max(1, wanted.shape[2]) + 1e-6)
            loss = loss + 0.1 * cost + 0.1 * seen
            guesses.append(found.detach())
            of_members.append(seen.detach())
        px = ((torch.stack(guesses) - where[:, 1:]).norm(dim=-1) * 64)[:, moved]
        presence = float(torch.stack(of_members).mean())
        facts |= {"moved_px": float(px.median()) if px.numel() else 0.0, "presence": presence}
    return loss, facts


class Positions(nn.Module):
    """The networks of positions, as one module to train."""

    def __init__(self, model: ChunkWorldModel) -> None:
        super().__init__()
        self.kinematics, self.motion, self.other_motions = model.kinematics, model.motion, model.other_motions


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
    """Train `kinematics` and the motion of objects, of every member, in place; resumes from `run_dir`.

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
        coin = torch.rand(5, generator=generator).tolist()
        k = chunk if coin[0] < 0.75 else 1 + int(coin[1] * chunk)
        begin = coin[3] < FROM_START
        index, mask, _, _ = data.episodes.draw(batch, max(1, 40 // chunk) * k, generator, begin)
        given = labels(model, data, index, mask, k)
        kin, facts = kinematics_loss(model, given, k)
        if training._progress() < kinematics_alone:
            place = place_loss(model, given, k)
            return kin + 0.05 * place, {**facts, "hand_px": float(place.detach())}
        which = None if coin[4] < ALL_OBJECTS or model.motion is None else in_image(model, given)
        whole, more = position_loss(model, given, k, coin[2] < 0.3, which)
        return whole + kin, {"kinematics_chunk": facts["kinematics"], **more}

    part = Positions(model)
    training = TrainingLoop(
        part, settings, run_dir, loss, tag="train_positions", identity={"batch": batch, **(identity or {})}
    )
    facts = training.run()
    part.load_state_dict(training.ema_model.state_dict())
    return facts
