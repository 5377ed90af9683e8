"""Distributed weights: the same training as with whole weights in every process, and checkpoints for any number."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.cli import main
from experiments.pipelines.ranks import run_ranks
from worldgym.errors import ConfigError
from worldgym.training import backbones
from worldgym.training.backbone_data import Clips
from worldgym.training.backbones import DiffusersTrainer
from worldgym.training.generic import PartTraining
from worldgym.training.loop import LoopConfig
from worldgym.training.sharding import shard
from worldgym.utils.tensors import load_tensors, save_tensors

sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "backbones"))
from backbone_cases import episodes, model_of  # noqa: E402

SETTINGS = PartTraining(LoopConfig(steps=3, lr=1e-3, warmup=1, ema=0.5), batch=2, window=8)


def trained(settings: PartTraining, folder: Path) -> dict[str, torch.Tensor]:
    model = model_of(residual=0.5).requires_grad_(True)
    model.vae.requires_grad_(False)
    DiffusersTrainer.fit(model, episodes(), settings, folder)
    return {name: value for name, value in model.state_dict().items() if not value.is_meta}


def train_in_three_ways(rank: int, out: Path, model: torch.nn.Module, data: None) -> None:
    ways = {"whole": SETTINGS, "sharded": replace(SETTINGS, shard=True)}
    ways["resumed"] = replace(ways["sharded"], loop=replace(SETTINGS.loop, save_seconds=0.0))
    for name, settings in ways.items():
        if name == "resumed":  # every process is interrupted after the second step
            with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
                patched.setattr(backbones, "video_loss", Interrupted(backbones.video_loss))
                trained(settings, out / name)
        weights = trained(settings, out / name)
        if rank == 0:
            save_tensors(out / f"{name}.safetensors", weights)
        else:  # the other processes keep nothing of a sharded model
            assert any(key.startswith("network") for key in weights) == (name == "whole")


class Interrupted:
    """A loss that raises at its third call."""

    def __init__(self, loss: Callable[..., torch.Tensor]) -> None:
        self.loss, self.calls = loss, 0

    def __call__(self, *inputs: Any) -> torch.Tensor:
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt
        return self.loss(*inputs)


def test_sharded_training_equals_training_with_whole_weights(tmp_path):
    run_ranks(
        train_in_three_ways, tmp_path, torch.nn.Linear(1, 1), None,
        processes=2, address=None, out=tmp_path, device=torch.device("cpu"),
    )  # fmt: skip
    whole, sharded, resumed = (
        load_tensors(tmp_path / f"{name}.safetensors") for name in ("whole", "sharded", "resumed")
    )
    assert whole.keys() == sharded.keys() == resumed.keys()
    begun = model_of(residual=0.5).state_dict()
    moved = [name for name in whole if not torch.equal(whole[name], begun[name])]
    assert "network.transformer.blocks.0.attn1.to_q.weight" in moved
    for name, value in whole.items():
        torch.testing.assert_close(sharded[name], value, rtol=1e-3, atol=1e-5, msg=name)
        torch.testing.assert_close(resumed[name], sharded[name], rtol=1e-4, atol=1e-6, msg=name)
    # one process continues from the checkpoint of two
    longer = replace(SETTINGS, loop=replace(SETTINGS.loop, steps=4))
    assert trained(longer, tmp_path / "sharded").keys() == whole.keys()
    # and the latents that two processes encoded are those of one
    both = load_tensors(tmp_path / "whole" / "latents" / "latents.safetensors")["latents"]
    torch.testing.assert_close(
        both, Clips.encode(model_of(residual=0.5), episodes(), tmp_path / "alone").latents
    )


def test_sharding_is_refused_where_there_is_nothing_to_distribute(tmp_path, capsys):
    with pytest.raises(ConfigError, match="add --processes 2"):
        shard([torch.nn.Linear(2, 2)], torch.device("cpu"))
    assert main(["train", "world-model", "--data", str(tmp_path), "--shard"]) == 2
    assert "--shard is for --type diffusers" in capsys.readouterr().err
