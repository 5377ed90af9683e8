"""Distillation of a light decoder: true pixels from true latents, with the noise of imagined ones.

Example::

    train_decoder(model, latents, frames, LoopConfig(steps=3000, lr=2e-3), "runs/chunk/decoder")
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldgym.errors import ConfigError
from worldgym.models.chunk.world_model import ChunkWorldModel
from worldgym.models.tokenizers.frame import FrameTokenizer, unit_rms
from worldgym.training.loop import LoopConfig, TrainingLoop
from worldgym.utils.devices import autocast, rand, randn

BATCH = 64


def train_decoder(
    model: ChunkWorldModel,
    latents: Tensor,
    frames: Any,
    settings: LoopConfig,
    run_dir: Path | str,
    identity: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Train `model.light` in place; resumes from `run_dir`. Returns the last scalars.

    Args:
        model: chunk model with a light decoder.
        latents: `(F,C,h,w)` latents of the frames.
        frames: F frames `(H,W,3)` uint8, indexable by an array of rows.
        settings: settings of the run.
        run_dir: folder of checkpoints.
        identity: values that identify the run.

    Raises:
        ConfigError: the model has no light decoder, or its tokenizer has no background image.
    """
    tokenizer = model.tokenizer
    if model.light is None or not isinstance(tokenizer, FrameTokenizer):
        raise ConfigError("a light decoder needs ChunkConfig(decoder_widths=...) and a FrameTokenizer")

    def loss(module: nn.Module, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(len(latents), (BATCH,), generator=generator)
        z = latents[rows].to(model.device).float()
        level = 0.25 * rand((len(z), 1, 1, 1), generator, z.device)
        z = unit_rms(z + level * randn(z.shape, generator, z.device)).contiguous(
            memory_format=torch.channels_last
        )
        true = torch.as_tensor(frames[rows.numpy()]).to(model.device).permute(0, 3, 1, 2).float() / 255
        with autocast(z.device):
            pixels = module(z).float() / 2 + tokenizer.background
        far = (true - tokenizer.background).abs().amax(1, keepdim=True)
        weight = 1 + 5 * F.max_pool2d((far > 0.07).float(), 3, 1, 1)
        error = pixels - true
        total = (weight / weight.mean() * (error.abs() + 4 * error.square())).mean()
        return total, {"psnr": -10 * float(error.detach().square().mean().log10())}

    training = TrainingLoop(
        model.light, settings, run_dir, loss, tag="train_decoder", identity=dict(identity or {})
    )
    facts = training.run()
    model.light.load_state_dict(training.ema_model.state_dict())
    return facts
