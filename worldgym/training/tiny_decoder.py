"""Distillation of a small decoder for a `DiffusersWorldModel`: true pixels from the latents of the logs, with noise.

Example::

    train_tiny_decoder(model, clips, arrays, LoopConfig(steps=5000, lr=2e-3), "runs/wan/decoder")
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldgym.errors import ConfigError
from worldgym.models.backbones.world_model import DiffusersWorldModel
from worldgym.training.backbone_data import Clips
from worldgym.training.loop import LoopConfig, TrainingLoop
from worldgym.training.pictures import Pictures
from worldgym.utils.devices import autocast, rand, randn

BATCH, NOISE = 16, 0.2
"""Latent frames per step, and the largest noise on them, in standard deviations: imagined latents are not exact."""


def train_tiny_decoder(
    model: DiffusersWorldModel,
    clips: Clips,
    arrays: Any,
    loop: LoopConfig,
    run_dir: Path | str,
    identity: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Train `model.tiny` in place; resumes from `run_dir`.

    Args:
        model: world model with a tiny decoder.
        clips: encoded logs.
        arrays: the episodes that `clips` were encoded from.
        loop: settings of the run.
        run_dir: folder of checkpoints.
        identity: values that identify the run.

    Returns:
        the last scalars, with the PSNR in dB of this decoder and of the VAE's on the same frames of the logs.

    Raises:
        ConfigError: the model has no tiny decoder.
    """
    if model.tiny is None:
        raise ConfigError("this model has no tiny decoder; make it with the setting tiny_decoder=64")
    tiny, pictures, r = (
        model.tiny.requires_grad_(True),
        Pictures.of(arrays, model.canvas),
        model.config.per_frame,
    )

    def drawn(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents `(B,3,C,h,w)`: the first frame of a clip, and two consecutive ones; pixels `(B,r,3,H,W)`."""
        clip = torch.randint(len(clips.rows), (count,), generator=generator).numpy()
        late = torch.rand(count, generator=generator).numpy()
        at = 1 + (late * clips.frames[clip]).astype(int)  # the latent frame of the clip that is decoded
        first = clips.first[clip]
        index = torch.from_numpy(first[:, None] + at[:, None] + [-1, 0])
        rows = clips.rows[clip][:, None] + r * (at[:, None] - 1) + range(1, r + 1)
        frames = pictures[rows.flatten()].unflatten(0, rows.shape).to(model.device)
        return clips.latents[index].float().to(model.device), frames.permute(
            0, 1, 4, 2, 3
        ).float() / 127.5 - 1

    def loss(module: nn.Module, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        z, true = drawn(BATCH, generator)
        z = z + NOISE * rand((len(z), 1, 1, 1, 1), generator, z.device) * randn(z.shape, generator, z.device)
        first = torch.randint(len(clips.first), (BATCH,), generator=generator)
        alone = clips.latents[torch.from_numpy(clips.first)[first]][:, None].float().to(z.device)
        shown = pictures[clips.rows[first.numpy()]].to(z.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        with autocast(z.device):
            pixels, pixels_alone = module(z)[:, 1].float(), module(alone)[:, 0, -1].float()
        error, error_alone = pixels - true, pixels_alone - shown
        total = error.abs().mean() + 4 * error.square().mean()
        total = total + (error_alone.abs().mean() + 4 * error_alone.square().mean()) / r
        return total, {"psnr": _psnr(error.detach())}

    training = TrainingLoop(
        tiny, loop, run_dir, loss, tag="train_tiny_decoder", identity=dict(identity or {})
    )
    facts = training.run()
    tiny.load_state_dict(training.ema_model.state_dict())
    tiny.requires_grad_(False)
    z, true = drawn(4 * BATCH, torch.Generator().manual_seed(0))
    for name, decoder in (("psnr", tiny), ("vae_psnr", model.vae)):
        pixels = decoder.decode(z)[:, -r:].permute(0, 1, 4, 2, 3).float() / 127.5 - 1
        facts[name] = _psnr(pixels.to(true.device) - true)
    return {f"decoder_{name}": value for name, value in facts.items()}


def _psnr(error: Tensor) -> float:
    """PSNR in dB of errors of pixels in [-1, 1]."""
    return float(-10 * (error / 2).square().mean().clamp_min(1e-10).log10())
