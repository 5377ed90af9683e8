"""Training of the frame tokenizer on logged frames.

The tokenizer is trained first, because a world model cannot predict details that it loses. `probe_report` is its
acceptance test: the gripper position must be readable from *decoded* frames.

Example::

    tokenizer = train_tokenizer(arrays.frames, TokenizerConfig(), LoopConfig(steps=4000, lr=2e-3), "runs/tokenizer")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldgym.errors import ConfigError
from worldgym.models.tokenizers.base import check_frames
from worldgym.models.tokenizers.frame import FrameTokenizer, TokenizerConfig, tokenizer_loss
from worldgym.training.loop import LoopConfig, TrainingLoop
from worldgym.training.pictures import Pictures


def train_tokenizer(
    frames: np.ndarray | Pictures,
    config: TokenizerConfig,
    loop: LoopConfig,
    run_dir: Path | str,
    batch: int = 48,
    held_out: np.ndarray | Pictures | None = None,
    initial: FrameTokenizer | None = None,
    identity: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> FrameTokenizer:
    """Train to the end of `loop` and return the averaged model.

    Args:
        frames: `(F,H,W,3)` uint8, or pictures of several cameras; all of them from `seen` episodes.
        config: config of the tokenizer.
        loop: steps, learning rates, seed.
        run_dir: folder of checkpoints and TensorBoard logs; the same call resumes.
        batch: frames per step.
        held_out: N further frames for the reported PSNR, or None.
        initial: tokenizer to continue from; its background is computed anew. `config` must be its own.
        identity: further values that identify the run, such as the hash of the dataset.
        device: device of the training; the result stays there.

    Raises:
        ConfigError: no frames, frames of another size than in `config`, or a batch below 1.
    """
    if not len(frames) or batch < 1:
        raise ConfigError(f"got {len(frames)} frames and batches of {batch}, expected at least one of each")
    pictures = Pictures.of(frames)
    check_frames(pictures[:1], config.image_size)
    torch.manual_seed(loop.seed)
    model = FrameTokenizer(config)
    if initial is not None:
        model.load_state_dict(initial.state_dict())
    rng = np.random.default_rng(loop.seed)
    model.set_background(pictures[rng.choice(len(frames), min(len(frames), 1500), replace=False)])
    model = model.to(device=device, memory_format=torch.channels_last)

    def loss(
        module: torch.nn.Module, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        index = torch.randint(len(frames), (batch,), generator=generator).numpy()
        assert isinstance(module, FrameTokenizer)
        return tokenizer_loss(module, pictures[np.sort(index)], generator)

    def evaluate(module: torch.nn.Module, step: int) -> dict[str, float]:
        assert isinstance(module, FrameTokenizer)
        return (
            {}
            if held_out is None or not len(held_out)
            else {f"world_model/tokenizer_{k}": v for k, v in reconstruction_psnr(module, held_out).items()}
        )

    run_facts = {"batch": batch, "tokenizer": asdict(config), **(identity or {})}
    training = TrainingLoop(
        model, loop, run_dir, loss, tag="train_tokenizer", evaluate=evaluate, identity=run_facts
    )
    training.run()
    tokenizer = training.ema_model
    assert isinstance(tokenizer, FrameTokenizer)
    return tokenizer


def reconstruction_psnr(tokenizer: Any, frames: np.ndarray | Pictures) -> dict[str, float]:
    """PSNR in dB of decoded frames, over all pixels and, for static cameras, over the foreground pixels."""
    real = Pictures.of(frames)[:]
    again = tokenizer.decode(tokenizer.encode(real)).float() / 255
    target = real.to(again.device).float() / 255
    error = (again - target).square()
    scores = {"psnr": float(-10 * error.mean().log10())}
    if tokenizer.static_picture is None:
        return scores
    far = (target - tokenizer.static_picture.permute(1, 2, 0)).abs().amax(-1, keepdim=True) > 0.07
    return {**scores, "psnr_foreground": float(-10 * ((error * far).sum() / (3 * far.sum() + 1)).log10())}
