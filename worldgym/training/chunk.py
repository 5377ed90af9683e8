"""Training of a chunk world model: first positions, then the picture that shows them.

Positions of hand and objects in the logs come from a position probe. The networks that predict them are small, so they
see every window of the logs many times, rolled out from the first frame alone. The picture network then learns to show
*given* positions: it gets the true ones, so that it never has a reason to distrust them.

Example::

    data = ChunkEpisodes.encode(model, arrays)
    data.counts = bootstrap(model.config.members, arrays.indices)
    train_positions(model, data, LoopConfig(steps=4000), "runs/chunk/positions")
    train_picture(model, data, ChunkTraining(), "runs/chunk/picture")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from worldgym.models.chunk.building import for_data
from worldgym.models.chunk.config import HAND
from worldgym.models.chunk.picture import Parts
from worldgym.models.chunk.world_model import ChunkWorldModel
from worldgym.models.video.object_motion import HandColumns, window_odds
from worldgym.specs import Specs
from worldgym.training.between import train_between
from worldgym.training.chunk_data import ChunkEpisodes, Labels, bootstrap, labels
from worldgym.training.chunk_positions import roll_positions, train_positions
from worldgym.training.generic import PartTraining
from worldgym.training.light_decoder import train_decoder
from worldgym.training.loop import LoopConfig, TrainingLoop
from worldgym.training.pictures import Pictures
from worldgym.training.world_model import frame_loss, pixel_loss
from worldgym.utils.devices import autocast, rand, randn

CONTACT_ODDS = (
    2.5  # windows with a contact are drawn more often by this factor, twice if something is carried
)


class LatentHead(Protocol):
    """A network that is trained in the same steps as the dynamics whose predicted latents it reads."""

    @property
    def module(self) -> nn.Module:
        """The network; the training loop updates its parameters."""
        ...

    @property
    def alone(self) -> bool:
        """Whether the dynamics stays as it is, and the network alone is trained."""
        ...

    def loss(
        self, predicted: Tensor, rows: Tensor, weight: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """A term of the loss, and scalars to log.

        Args:
            predicted: `(N,C,h,w)` predicted latents, with gradient.
            rows: `(N,)` frames of the logs that they predict.
            weight: `(N,)` weights, 0 for padding.
            generator: random generator of the step.
        """
        ...


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
    _, (slots, *_) = roll_positions(model, given, k, True)  # the first member's
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
    head: LatentHead | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Squared error of the latents after a chunk, weighted to what changes, and of decoded pixels.

    In an ensemble, the latents' loss is the sum over the members, each on its own sample of episodes. One member, drawn
    per step, predicts the latents before each chunk, and is decoded to pixels. The loss of `head` on its latents is
    added.
    """
    config, e = model.config, data.episodes
    coin = torch.rand(2, generator=generator).tolist()
    drawn = 0 if config.members == 1 else int(torch.randint(config.members, (), generator=generator))
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
        before = _rolled(model, z[:, 0], anchor, first, where, present, chunks, path, drawn)
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
        predictions = model.picture(
            before.flatten(0, 1), anchors_each, features, parts, inputs, range(config.members)
        )
    weight = weight.flatten()
    current = z[:, :-1].flatten(0, 1)
    total, loss, of_members = weight.sum() + 1e-6, weight.new_zeros(()), []
    counts = weight.new_ones(config.members, len(weight))
    if given.counts is not None:
        counts = given.counts.repeat_interleave(n, 1)
    for count, (found, log_error) in zip(counts, predictions, strict=True):
        per_frame, error = frame_loss(found, target, current, background, settings.robust)
        term = (count * weight * per_frame).sum() / total
        estimate = (count * weight * (log_error - (error + 1e-4).log()).square()).sum() / total
        loss = loss + term + 0.002 * estimate
        of_members.append((found, term, error))
    latents, _, plain = of_members[drawn]
    kind, counted = "rollout" if rollout else "forced", (weight > 0).float()
    weight = weight * counts[drawn]  # what follows is learned by one member, from its own sample
    facts = {
        f"latent_{kind}": float(torch.stack([term for _, term, _ in of_members]).detach().mean()),
        f"mse_{kind}": float((counted * plain).sum() / (counted.sum() + 1e-6)),
    }
    if settings.pixel_coef and (data.counts is None or bool(weight.any())):
        count = max(1, min(settings.pixel_frames, int((weight > 0).sum())))
        rows = torch.multinomial(weight.cpu() + 1e-9, count, generator=generator).to(z.device)
        pixels = pixel_loss(model.tokenizer, latents[rows], target[rows], weight[rows])
        loss = loss + settings.pixel_coef * pixels
        facts[f"pixel_{kind}"] = float(pixels.detach())
    if head is not None:
        projected = model.tokenizer.project(latents.float())
        term, more = head.loss(projected, index[:, k::k].flatten(), weight, generator)
        loss, facts = loss + term, {**facts, **more}
    return loss, facts


@torch.no_grad()
def _rolled(
    model: ChunkWorldModel, z: Tensor, anchor: Tensor, first: Tensor, where: Tensor, present: Tensor, chunks: Tensor,
    path: Tensor, member: int,
) -> Tensor:  # fmt: skip
    """Latents `(B,n,C,h,w)` before each chunk, predicted by `member` from the first ones `z` at given positions."""
    model.refresh()
    net = model.inference_network()
    features = net.shift.unfold(anchor.to(net.embed.weight.dtype)) if model.config.parts else None
    latents = [z]
    for c in range(chunks.shape[1] - 1):
        parts = Parts(where[:, c], where[:, c + 1], first, present[:, c + 1]) if model.config.parts else None
        inputs = model.given(chunks[:, c], path[:, c])
        [(out, _)] = net(latents[-1], anchor, features, parts, inputs, (member,))
        latents.append(model.tokenizer.project(out))
    return torch.stack(latents, 1)


def train_picture(
    model: ChunkWorldModel,
    data: ChunkEpisodes,
    settings: ChunkTraining,
    run_dir: Path | str,
    identity: Mapping[str, Any] | None = None,
    head: LatentHead | None = None,
) -> dict[str, float]:
    """Train `picture` and, if there is one, `head` in place; resumes from `run_dir`. Returns the last scalars."""
    model.tokenizer.requires_grad_(False)
    background = model.tokenizer.encode_background()

    def loss(module: nn.Module, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        late = training._progress() >= settings.rollout_from
        rollout = late and float(torch.rand((), generator=generator)) < settings.rollout_share
        return picture_loss(model, data, settings, background, rollout, generator, head)

    plain = {name: value for name, value in asdict(settings).items() if name != "loop"}
    trained = model.picture
    if head is not None and head.alone:
        trained = head.module
        model.picture.eval().requires_grad_(False)
    elif head is not None:
        trained = nn.ModuleDict({"picture": model.picture, "head": head.module})
    training = TrainingLoop(
        trained,
        settings.loop,
        run_dir,
        loss,
        tag="train_picture",
        identity={**plain, **(identity or {})},
    )
    facts = training.run()
    trained.load_state_dict(training.ema_model.state_dict())
    model.refresh()
    return facts


class ChunkTrainer:
    """Trains a model of the type `chunk` for `worldgym train world-model` (`worldgym.training.generic`)."""

    heads = optimizers = True
    own = ("positions", "picture", "decoder", "between")

    @staticmethod
    def for_data(
        specs: Specs, preset: str, arrays: Any, *, initial: Path | None = None, probe: Path | None = None,
        tokenizer: Path | None = None, settings: Mapping[str, Any] | None = None,
    ) -> ChunkWorldModel:  # fmt: skip
        """A model for a dataset; see `worldgym.models.chunk.building.for_data`."""
        return for_data(specs, preset, arrays, initial=initial, probe=probe, tokenizer=tokenizer, settings=settings)

    @staticmethod
    def fit(
        model: ChunkWorldModel, arrays: Any, settings: PartTraining, folder: Path, head: LatentHead | None = None
    ) -> dict[str, float]:
        """Train positions for a fifth of the time, the picture for three, then decoder and frames within chunks.

        Each part resumes. `head` is trained with the picture, or alone in as many steps.
        """
        hand = HandColumns.of(model.specs.observation)
        data = ChunkEpisodes.encode(model, arrays)
        data.counts = bootstrap(model.config.members, arrays.indices, settings.loop.seed)
        if hand is not None:
            data.episodes.odds = window_odds(
                arrays.states, arrays.offsets, settings.window, CONTACT_ODDS, hand
            )
        facts: dict[str, float] = {}
        first, second = _shares(settings.loop, 0.2), _shares(settings.loop, 0.6)
        alone = head is not None and head.alone
        if model.state_dim and not alone:
            loop = replace(first, lr=2e-3, final_lr=0.02, ema=0.995)
            facts |= train_positions(model, data, loop, folder / "positions")
        optimizer = settings.optimizer or "muon"
        loop = replace(second, optimizer=optimizer, final_lr=0.02, warmup=200, ema=0.995, weight_decay=0.02)
        chunks = ChunkTraining(loop, batch=3 * settings.batch)
        facts |= train_picture(model, data, chunks, folder / "picture", head=head)
        if model.light is not None and not alone:
            pictures = Pictures.of(arrays, model.canvas)
            loop = replace(_shares(settings.loop, 0.1), lr=3e-3, final_lr=0.02, ema=0.995)
            facts |= train_decoder(model, data.episodes.latents, pictures, loop, folder / "decoder")
        if model.between is not None and model.config.chunk > 1 and not alone:
            loop = replace(_shares(settings.loop, 0.1), lr=2e-3, final_lr=0.02, ema=0.995)
            facts |= train_between(model, data, loop, folder / "between")
        model.eval().requires_grad_(False)
        return facts


def _shares(loop: LoopConfig, share: float) -> LoopConfig:
    """The loop with a share of its time or steps."""
    minutes = None if loop.max_minutes is None else share * loop.max_minutes
    return replace(loop, steps=max(1, round(share * loop.steps)), max_minutes=minutes)
