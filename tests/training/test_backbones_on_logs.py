"""A tiny video transformer of diffusers, from random weights, learns the tabletop from logs (20 minutes on a core)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.cli import main
from worldgym.data import EpisodeDataset
from worldgym.training.backbones import DiffusersTrainer
from worldgym.training.generic import PartTraining
from worldgym.training.loop import LoopConfig

pytest.importorskip("diffusers")
FRAMES = 25
FINE = {
    "patch_size": None, "in_channels": 3, "out_channels": 3, "scale_factor_spatial": 4, "z_dim": 16,
    "latents_mean": [0.0] * 16, "latents_std": [1.0] * 16,
}  # fmt: skip
"""The tiny VAE with 4x4 latent frames of 16 channels at 16 px; 2x2 of 48 lose the arm."""


def logs(folder, episodes: int):
    """Tabletop logs at 16 pixels, and their specs."""
    assert main(["collect", "--out", str(folder), "--episodes", str(episodes), "--workers", "2"]) == 0
    dataset = EpisodeDataset(folder)
    arrays = dataset.load_arrays()
    pixels = torch.from_numpy(arrays.frames).permute(0, 3, 1, 2).float()
    small = torch.nn.functional.avg_pool2d(pixels, 4).round().to(torch.uint8).permute(0, 2, 3, 1)
    camera = replace(dataset.specs.observation.cameras[0], height=16, width=16)
    specs = replace(dataset.specs, observation=replace(dataset.specs.observation, cameras=(camera,)))
    return replace(arrays, frames=small.contiguous().numpy()), specs


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(-10 * torch.log10(((one.float() - other.float()) / 255).square().mean()))


@pytest.mark.slow
def test_five_seconds_imagined_from_actions_beat_the_repeated_first_frame(tmp_path):
    arrays, specs = logs(tmp_path / "data", 2000)
    held = np.arange(len(arrays)) % 25 == 0
    train, test = arrays.keep(~held), arrays.keep(held)
    shape = DiffusersTrainer.for_data(specs, "tiny-wan", train).config
    settings = {
        "vae": {**shape.vae, **FINE}, "image_size": 16, "steps": 2,
        "transformer": {**shape.transformer, "patch_size": [1, 1, 1], "in_channels": 16, "out_channels": 16},
    }  # fmt: skip
    torch.manual_seed(0)
    model = DiffusersTrainer.for_data(specs, "tiny-wan", train, settings=settings)
    loop = LoopConfig(steps=2400, lr=4e-3, ema=0.98)
    facts = DiffusersTrainer.fit(model, train, PartTraining(loop, batch=16, window=20), tmp_path / "run")
    assert facts["vae_mse"] < 0.006
    index = test.offsets[:-1][np.diff(test.offsets) >= FRAMES][:, None] + np.arange(FRAMES)
    frames, states = torch.from_numpy(test.frames[index]), torch.from_numpy(test.states[index])
    state = model.begin(
        frames[:, :1], torch.zeros(len(index), 0, 4), torch.Generator().manual_seed(0), states=states[:, :1]
    )
    shown = []
    for actions in torch.from_numpy(test.actions[index[:, :-1]]).split(5, 1):
        state, imagined = model.step(state, actions)
        shown.append(imagined.frames)
    still = frames[:, :1].expand_as(frames[:, 1:])
    assert psnr(torch.cat(shown, 1), frames[:, 1:]) > psnr(still, frames[:, 1:])
