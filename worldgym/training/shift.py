"""Training of the network that shifts latents: its target is decoding, shifting the pixels and encoding again.

It is trained separately, before the dynamics: the exact target is known for any latents and any shift, so minutes are
enough, and the dynamics then predicts grasped objects by copying. The network is also applied twice in a row and
compared with one long shift, because an object is carried for twenty steps and small errors accumulate.

Example::

    train_shift(model, data, LoopConfig(steps=2000, lr=3e-3), "runs/world_model/shift")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldgym.errors import ConfigError
from worldgym.models.tokenizers.frame import FrameTokenizer, unit_rms
from worldgym.models.video.latent_shift import LatentShift, move_bilinearly
from worldgym.models.video.world_model import VideoWorldModel
from worldgym.training.loop import LoopConfig, TrainingLoop
from worldgym.training.world_model import LatentEpisodes
from worldgym.utils.devices import autocast, rand, randn

BATCH = 96
REACH = 1.2  # largest shift in cells; a hand at full speed moves by less than one cell per step


@torch.no_grad()
def shift_by_pixels(tokenizer: FrameTokenizer, z: Tensor, *shifts: Tensor) -> list[Tensor]:
    """Decode latents `(N,C,h,w)`, shift them by each of `shifts (N,2)` latent cells, and encode: the exact targets.

    The difference to the background image is shifted, which is what the tokenizer encodes.
    """
    with autocast(z.device):
        difference = tokenizer.decoder(z.contiguous(memory_format=torch.channels_last)).float()
        scale = difference.shape[-1] / z.shape[-1]
        return [
            unit_rms(tokenizer.encoder(move_bilinearly(difference, shift * scale)).float())
            for shift in shifts
        ]


def shift_loss(
    net: LatentShift, tokenizer: FrameTokenizer, z: Tensor, background: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Squared latent error after one shift and, at half weight, after two; the foreground has fourfold weight.

    Args:
        net: the trained network.
        tokenizer: computes the targets.
        z: `(N,C,h,w)` latents of true frames.
        background: `(C,h,w)` latent of the empty scene.
        generator: draws shifts, and noise on `z`, because imagined latents are never noise-free.
    """
    level = 0.3 * rand((len(z), 1, 1, 1), generator, z.device).square()
    z = unit_rms(z + level * randn(z.shape, generator, z.device))
    first, second = REACH * (2 * rand((2, len(z), 2), generator, z.device) - 1)
    once, twice = shift_by_pixels(tokenizer, z, first, first + second)
    with autocast(z.device):
        moved = net(z, first)
        moved_twice = net(moved, second)

    def cost(predicted: Tensor, true: Tensor) -> Tensor:
        weight = 1 + 3 * ((true - background).square().mean(1) > 0.25).float()
        return (weight * (predicted - true).square().mean(1)).sum() / weight.sum()

    one, two = cost(moved, once), cost(moved_twice, twice)
    return one + 0.5 * two, {"once": float(one.detach()), "twice": float(two.detach())}


def train_shift(
    model: VideoWorldModel,
    data: LatentEpisodes,
    settings: LoopConfig,
    run_dir: Path | str,
    identity: Mapping[str, Any] | None = None,
) -> None:
    """Train `model.dynamics.objects.shift` in place, on frames drawn by `data.odds`; resumes from `run_dir`.

    `identity` are further values that identify the run, such as the hash of the dataset.

    Raises:
        ConfigError: the model has no object motion (`DynamicsConfig.motion` is None), or its tokenizer has no
            background, which is needed to separate moving objects.
    """
    objects = model.dynamics.objects
    if objects is None:
        raise ConfigError(
            "this world model has no object motion; build it with DynamicsConfig(motion=ObjectMotionConfig(...))"
        )
    tokenizer = model.tokenizer.requires_grad_(False)
    background = tokenizer.encode_background()
    if background is None or not isinstance(tokenizer, FrameTokenizer):
        raise ConfigError(
            "object motion needs a FrameTokenizer with background=True; use motion=None for this tokenizer"
        )
    odds = torch.ones(len(data.latents), device="cpu") if data.odds is None else torch.from_numpy(data.odds)

    def loss(module: nn.Module, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(module, LatentShift)
        u = torch.rand(BATCH, generator=generator, dtype=torch.float64) * total[-1]
        rows = torch.searchsorted(total, u).clamp(max=len(odds) - 1)
        latents = data.latents[rows].to(background.device).float()
        return shift_loss(module, tokenizer, latents, background, generator)

    total = odds.double().cumsum(0)
    run_facts = {"dynamics": asdict(model.config.dynamics), **(identity or {})}
    training = TrainingLoop(objects.shift, settings, run_dir, loss, tag="train_shift", identity=run_facts)
    training.run()
    objects.shift.load_state_dict(training.ema_model.state_dict())
    model.refresh()
