"""Training of a chunk world model: first positions, then the picture that shows them.

Positions of hand and objects in the logs come from a position probe. The networks that predict them are small, so they
see every window of the logs many times, rolled out from the first frame alone. The picture network then learns to show
*given* positions: it gets the true ones, so that it never has a reason to distrust them.

Example::

    data = ChunkEpisodes.encode(model, arrays)
    train_positions(model, data, LoopConfig(steps=4000), "runs/chunk/positions")
    train_picture(model, data, ChunkTraining(), "runs/chunk/picture")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldgym.models.chunk.config import HAND
from worldgym.models.chunk.picture import Parts
from worldgym.models.chunk.slots import Slots
from worldgym.models.chunk.world_model import ChunkState, ChunkWorldModel
from worldgym.models.tokenizers.frame import autocast
from worldgym.training.loop import LoopConfig, TrainingLoop
from worldgym.training.pictures import Pictures
from worldgym.training.world_model import LatentEpisodes, pixel_loss
from worldgym.utils.devices import rand, randn


@dataclass(frozen=True)
class ChunkTraining:
    """Settings of training the picture network.

    Args:
        loop: steps, learning rates, seed.
        batch: chunks per step.
        chunks: chunks per predicted window.
        rollout_from: fraction of the run after which windows are predicted from their first frame.
        rollout_share: fraction of the batches that are predicted from then on.
        short_share: fraction of the batches with chunks of fewer actions.
        context_noise: largest noise added to true latents before a chunk.
        divergence: latent error at which the weight of a predicted context is one half.
        robust: see `worldgym.training.world_model.WorldModelTraining`.
        pixel_coef: weight of the squared error of decoded pixels.
        pixel_frames: frames decoded per step for this loss.
    """

    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=6000, lr=1e-3, optimizer="muon", ema=0.995, weight_decay=0.02
        )
    )
    batch: int = 64
    chunks: int = 8
    rollout_from: float = 0.35
    rollout_share: float = 0.75
    short_share: float = 0.25
    context_noise: float = 0.4
    divergence: float = 0.25
    robust: float = 0.05
    pixel_coef: float = 8.0
    pixel_frames: int = 32


@dataclass
class ChunkEpisodes:
    """Encoded logs with positions.

    Args:
        episodes: latents, actions and proprioception.
        where: `(F,P,2)` positions of the parts in image widths; None without a probe.
        present: `(F,P)` probability that a part is in the image; None without a probe.
    """

    episodes: LatentEpisodes
    where: Tensor | None
    present: Tensor | None

    @staticmethod
    def encode(model: ChunkWorldModel, arrays: Any) -> ChunkEpisodes:
        """Encode logs with the model's tokenizer, and locate the parts with its probe."""
        episodes = LatentEpisodes.encode(model.tokenizer, arrays, model.canvas)
        if model.locator is None:
            return ChunkEpisodes(episodes, None, None)
        pictures = Pictures.of(arrays, model.canvas)
        parts = [model.locate(pictures[i : i + 512]) for i in range(0, len(pictures), 512)]
        return ChunkEpisodes(episodes, torch.cat([p for p, _ in parts]), torch.cat([p for _, p in parts]))


@dataclass
class Labels:
    """True proprioception and positions in B windows of n chunks of k actions.

    Args:
        states: `(B,n k+1,S)` normalised.
        last: `(B,S)` change before the first frame, normalised.
        before: `(B,A)` action before the first frame; zeros at the start of an episode.
        actions: `(B,n k,A)`.
        mask: `(B,n k)` bool, real frames.
        where: `(B,n+1,P,2)` positions at the ends of chunks.
        present: `(B,n+1,P)` bool.
    """

    states: Tensor
    last: Tensor
    before: Tensor
    actions: Tensor
    mask: Tensor
    where: Tensor
    present: Tensor


def labels(model: ChunkWorldModel, data: ChunkEpisodes, index: Tensor, mask: Tensor, k: int) -> Labels:
    """Labels of the windows with frames `index (B,n k+1)`."""
    e = data.episodes
    begin = torch.from_numpy(np.asarray(e.offsets)[:-1])
    first = begin[torch.searchsorted(begin, index[:, 0].contiguous(), right=True) - 1]
    inside = (index[:, 0] > first)[:, None]
    acted = torch.where(inside, e.actions[(index[:, 0] - 1).clamp(min=0)], torch.zeros(1, model.action_dim))
    states = model.normalise_state(e.states[index].to(model.device))
    earlier = model.normalise_state(e.states[torch.maximum(index[:, 0] - 1, first)].to(model.device))
    ends, parts = index[:, ::k], len(model.config.parts)
    where = torch.zeros(*ends.shape, parts, 2) if data.where is None else data.where[ends]
    present = torch.zeros(*ends.shape, parts) if data.present is None else data.present[ends]
    return Labels(
        states, states[:, 0] - earlier, acted.to(model.device), e.actions[index[:, :-1]].to(model.device),
        mask.to(model.device), where.to(model.device), present.to(model.device) > 0.5,
    )  # fmt: skip


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


@torch.no_grad()
def shown_positions(
    model: ChunkWorldModel,
    data: ChunkEpisodes,
    given: Labels,
    anchors: Tensor,
    k: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Positions that the picture network is to show: true where the probe finds a part, else predicted.

    Returns:
        positions `(B,n+1,P,2)` with noise of 0.3 pixels, presence `(B,n+1,P)`, and positions in the anchor `(B,P,2)`.
    """
    where, present = given.where, given.present.float()
    if data.where is None or data.present is None or not model.config.parts:
        return where, present, where[:, 0]
    seen = (data.present[anchors] > 0.5).to(where.device)[..., None]
    first = torch.where(seen, data.where[anchors].to(where.device), where[:, 0])
    known = given.present[..., None].clone()
    _, slots = roll_positions(model, given, k, True)
    hand = model.kinematics.place(given.states[:, ::k])
    ones = torch.ones_like(hand[:, 0])
    guessed, found = [], []
    for c, now in enumerate(slots):
        guessed.append(model.with_hand(hand[:, c], now.positions))
        found.append(model.with_hand(ones, now.present[..., None].expand(-1, -1, 2))[..., 0])
    if HAND in model.config.parts:  # the drawn hand is tied to proprioception, not to the probe
        at = model.config.parts.index(HAND)
        known[:, :, at] = False
        anchor_states = model.normalise_state(data.episodes.states[anchors].to(where.device))
        first = first.clone()
        first[:, at] = model.kinematics.place(anchor_states)
    where = torch.where(known, where, torch.stack(guessed, 1))
    present = torch.maximum(present, torch.stack(found, 1))
    return where + 0.3 / 64 * randn(where.shape, generator, where.device), present, first


def picture_loss(
    model: ChunkWorldModel,
    data: ChunkEpisodes,
    settings: ChunkTraining,
    background: Tensor | None,
    rollout: bool,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, float]]:
    """Squared error of the latents after a chunk, weighted to what changes, and of decoded pixels."""
    config, e = model.config, data.episodes
    coin = torch.rand(2, generator=generator).tolist()
    k = config.chunk if coin[0] >= settings.short_share else 1 + int(coin[1] * config.chunk)
    n = settings.chunks if rollout else 1
    index, mask, _, anchors = e.draw(max(1, settings.batch // n), n * k, generator)
    given = labels(model, data, index, mask, k)
    anchor_at = torch.from_numpy(anchors)
    z = e.latents[index[:, ::k]].to(model.device).float()
    anchor = e.latents[anchor_at].to(model.device).float()
    b = len(z)
    where, present, first = shown_positions(model, data, given, anchor_at, k, generator)
    path = given.states.unfold(1, k + 1, k).transpose(2, 3)  # (B, n, k+1, S)
    chunks = given.actions.unflatten(1, (n, k))
    weight = given.mask[:, k - 1 :: k].float()  # chunks that end with a real frame
    before = z[:, :-1]
    if rollout:
        before = _rolled(model, z[:, 0], anchor, first, where, present, chunks, path)
        drift = (before - z[:, :-1]).square().mean((2, 3, 4))
        weight = weight / (1 + (drift / settings.divergence) ** 2)
    else:
        level = settings.context_noise * rand((b, n, 1, 1, 1), generator, z.device).square()
        before = model.tokenizer.project(before + level * randn(before.shape, generator, z.device), 2)
    target = z[:, 1:].flatten(0, 1)
    with autocast(z.device):
        parts, features = None, None
        if config.parts:
            features = model.picture.shift.unfold(anchor)
            features = features[:, None].expand(-1, n, -1, -1, -1).flatten(0, 1)
            parts = Parts(
                where[:, :-1].flatten(0, 1), where[:, 1:].flatten(0, 1),
                first[:, None].expand(-1, n, -1, -1).flatten(0, 1), present[:, 1:].flatten(0, 1),
            )  # fmt: skip
        inputs = model.given(chunks.flatten(0, 1), path.flatten(0, 1))
        inputs = inputs + 0.02 * randn(inputs.shape, generator, inputs.device)
        anchors_each = anchor[:, None].expand(-1, n, -1, -1, -1).flatten(0, 1)
        latents, log_error = model.picture(before.flatten(0, 1), anchors_each, features, parts, inputs)
    weight = weight.flatten()
    error = (latents - target).square().mean(1)
    change = (target - z[:, :-1].flatten(0, 1)).square().mean(1).clamp(max=1.0)
    focus = 1 + 6 * change
    if background is not None:
        focus = focus + 2 * ((target - background).square().mean(1) > 0.25).float()
    cost = 2 * settings.robust * ((1 + error / settings.robust).sqrt() - 1) if settings.robust else error
    per_frame = (focus * cost).sum((1, 2)) / focus.sum((1, 2))
    total = weight.sum() + 1e-6
    latent = (weight * per_frame).sum() / total
    plain = error.detach().mean((1, 2))
    estimate = (weight * (log_error - (plain + 1e-4).log()).square()).sum() / total
    loss = latent + 0.002 * estimate
    kind, counted = "rollout" if rollout else "forced", (weight > 0).float()
    facts = {
        f"latent_{kind}": float(latent.detach()),
        f"mse_{kind}": float((counted * plain).sum() / (counted.sum() + 1e-6)),
    }
    if settings.pixel_coef:
        count = max(1, min(settings.pixel_frames, int((weight > 0).sum())))
        rows = torch.multinomial(weight.cpu() + 1e-9, count, generator=generator).to(z.device)
        pixels = pixel_loss(model.tokenizer, latents[rows], target[rows], weight[rows])
        loss = loss + settings.pixel_coef * pixels
        facts[f"pixel_{kind}"] = float(pixels.detach())
    return loss, facts


@torch.no_grad()
def _rolled(
    model: ChunkWorldModel, z: Tensor, anchor: Tensor, first: Tensor, where: Tensor, present: Tensor, chunks: Tensor,
    path: Tensor,
) -> Tensor:  # fmt: skip
    """Latents `(B,n,C,h,w)` before each chunk, predicted from the first ones `z` at the given positions."""
    model.refresh()
    net = model.inference_network()
    features = net.shift.unfold(anchor.to(net.embed.weight.dtype)) if model.config.parts else None
    latents = [z]
    for c in range(chunks.shape[1] - 1):
        parts = Parts(where[:, c], where[:, c + 1], first, present[:, c + 1]) if model.config.parts else None
        out, _ = net(latents[-1], anchor, features, parts, model.given(chunks[:, c], path[:, c]))
        latents.append(model.tokenizer.project(out))
    return torch.stack(latents, 1)


def train_picture(
    model: ChunkWorldModel,
    data: ChunkEpisodes,
    settings: ChunkTraining,
    run_dir: Path | str,
    identity: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Train `picture` in place; resumes from `run_dir`. Returns the last scalars."""
    model.tokenizer.requires_grad_(False)
    background = model.tokenizer.encode_background()

    def loss(module: nn.Module, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        late = training._progress() >= settings.rollout_from
        rollout = late and float(torch.rand((), generator=generator)) < settings.rollout_share
        return picture_loss(model, data, settings, background, rollout, generator)

    plain = {name: value for name, value in asdict(settings).items() if name != "loop"}
    training = TrainingLoop(
        model.picture,
        settings.loop,
        run_dir,
        loss,
        tag="train_picture",
        identity={**plain, **(identity or {})},
    )
    facts = training.run()
    model.picture.load_state_dict(training.ema_model.state_dict())
    model.refresh()
    return facts


__all__ = ["ChunkEpisodes", "ChunkState", "ChunkTraining", "train_picture", "train_positions"]
