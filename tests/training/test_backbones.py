"""Training of backbones: the targets, the cache of latents, adapters, and learning on tabletop logs."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from worldgym.errors import ConfigError
from worldgym.models import load_world_model
from worldgym.models.backbones.config import BackboneConfig
from worldgym.models.backbones.world_model import DiffusersWorldModel
from worldgym.training.backbone_data import Clips
from worldgym.training.backbones import (
    BackboneTraining,
    DiffusersTrainer,
    add_adapters,
    teacher_mask,
    video_loss,
)
from worldgym.training.generic import PartTraining
from worldgym.training.loop import LoopConfig
from worldgym.training.tiny_decoder import train_tiny_decoder

sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "backbones"))
from backbone_cases import actions_of, config_of, episodes, model_of, specs, start  # noqa: E402

STEPS = 1000
SHORT = PartTraining(LoopConfig(steps=4, lr=1e-3, warmup=1), batch=2, window=8)


def test_windows_are_the_first_latent_frame_and_consecutive_ones_with_their_actions(tmp_path):
    model, arrays = model_of(), episodes(count=2, length=14)
    clips = Clips.encode(model, arrays, tmp_path / "latents")
    assert sorted(clips.frames.tolist()) == [
        2,
        2,
        3,
        3,
        3,
        3,
        3,
        3,
    ]  # from the first four frames of two episodes
    whole = model.vae.encode(torch.from_numpy(arrays.frames[1:14])[None])  # the clip from the second frame on
    at = int(clips.first[clips.rows.tolist().index(1)])
    torch.testing.assert_close(clips.latents[at : at + 4].float(), whole[0], rtol=1e-2, atol=1e-2)
    number = torch.arange(len(clips.latents)).half()[:, None, None, None].expand(-1, 48, 2, 2)
    drawn = replace(clips, latents=number).draw(64, 2, torch.Generator().manual_seed(0))
    assert drawn.latents.shape[:2] == (64, 3) and drawn.moves.shape == (64, 3, 4, 3)
    for latents, moves in zip(drawn.latents, drawn.moves, strict=True):
        found = latents[:, 0, 0, 0].long().tolist()
        assert found[0] in clips.first and found[2] == found[1] + 1
        clip = clips.first.tolist().index(found[0])
        row = clips.rows[clip] + 4 * (found[1] - found[0] - 1)
        assert torch.equal(moves[1], clips.actions[row : row + 4]) and not moves[0].any()


def test_latents_are_encoded_once_and_again_for_another_vae(tmp_path, monkeypatch):
    model, arrays = model_of(), episodes()
    first = Clips.encode(model, arrays, tmp_path / "latents")
    calls = []
    monkeypatch.setattr(model.vae, "encode", lambda frames: calls.append(1) or model_of().vae.encode(frames))
    again = Clips.encode(model, arrays, tmp_path / "latents")
    assert torch.equal(first.latents, again.latents) and not calls
    model.vae.latent_mean += 1
    Clips.encode(model, arrays, tmp_path / "latents")
    assert calls


def test_episodes_too_short_or_without_actions_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least 5 frames"):
        Clips.encode(model_of(), episodes(length=3), tmp_path)
    silent = replace(episodes(), has_action=np.zeros(3, bool))
    with pytest.raises(ConfigError, match="none of the 3 episodes has actions"):
        Clips.encode(model_of(), silent, tmp_path)


@pytest.mark.parametrize("shape", ["tiny-wan", "tiny-cosmos"])
def test_training_sees_what_sampling_sees(tmp_path, shape):
    """Under the mask, a noisy frame is predicted as by a network that has the clean ones before it alone."""
    model = model_of(shape)
    rng = torch.Generator().manual_seed(0)
    z, moves = torch.randn(2, 4, 48, 2, 2, generator=rng), torch.rand(2, 4, 4, 3, generator=rng)
    noisy, level = torch.randn(2, 3, 48, 2, 2, generator=rng), torch.rand(2, 3, generator=rng)
    given = torch.ones(2, 4, 4, dtype=torch.bool)
    given[:, 0] = False
    both = torch.cat([moves[:, :3], moves[:, 1:]], 1)
    out, _ = model.network(
        torch.cat([z[:, :3], noisy], 1), torch.cat([torch.zeros(2, 3), level], 1), both,
        torch.cat([given[:, :3], given[:, 1:]], 1), [0, 1, 2, 1, 2, 3], mask=teacher_mask(3),
    )  # fmt: skip
    cached: list[torch.Tensor] = []
    for i in range(3):
        _, new = model.network(z[:, i : i + 1], torch.zeros(2, 1), moves[:, i : i + 1], given[:, i : i + 1], [i],
                               cached=cached, keep=True)  # fmt: skip
        cached = [torch.cat(pair, 1) for pair in zip(cached, new, strict=True)] if cached else new
        now = slice(i + 1, i + 2)
        alone, _ = model.network(noisy[:, i : i + 1], level[:, i : i + 1], moves[:, now], given[:, now], [i + 1],
                                 cached=cached)  # fmt: skip
        torch.testing.assert_close(out[:, 3 + i], alone[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["causal", "full"])
def test_the_loss_reaches_transformer_and_actions(tmp_path, attention):
    model = model_of(attention=attention).requires_grad_(True)
    model.vae.requires_grad_(False)
    clips = Clips.encode(model, episodes(), tmp_path)
    video_loss(model, clips, BackboneTraining(batch=4, frames=2), torch.Generator().manual_seed(0)).backward()
    assert model.network.transformer.blocks[0].attn1.to_q.weight.grad.abs().sum() > 0
    assert model.network.actions.outputs[1].weight.grad.abs().sum() > 0
    assert model.vae.autoencoder.quant_conv.weight.grad is None


def test_a_tiny_decoder_learns_the_frames_of_the_logs(tmp_path):
    model, arrays = model_of(tiny_decoder=16), episodes()
    clips = Clips.encode(model, arrays, tmp_path / "latents")
    loop = LoopConfig(steps=1, lr=2e-3, warmup=1)
    first = train_tiny_decoder(model, clips, arrays, loop, tmp_path / "one")
    later = train_tiny_decoder(model, clips, arrays, replace(loop, steps=60), tmp_path / "more")
    assert later["decoder_psnr"] > first["decoder_psnr"] + 1
    assert first["decoder_vae_psnr"] == later["decoder_vae_psnr"]
    with pytest.raises(ConfigError, match="make it with the setting tiny_decoder=64"):
        train_tiny_decoder(model_of(), clips, arrays, loop, tmp_path / "none")
    # one is added to a finished model, and trained with the rest
    model.save_pretrained(tmp_path / "export")
    other = DiffusersTrainer.for_data(
        specs(), "", arrays, initial=tmp_path / "export", settings={"tiny_decoder": 8}
    )
    assert other.tiny.net[0].out_channels == 8
    facts = DiffusersTrainer.fit(other, arrays, SHORT, tmp_path / "run")
    assert facts["decoder_psnr"] > 0


def tiny(monkeypatch) -> None:
    from worldgym.models.backbones import config as module

    small = config_of()
    monkeypatch.setitem(module.SHAPES, "tiny-wan", (small.transformer, small.vae))


def test_a_run_resumes_and_its_model_is_saved(tmp_path, monkeypatch):
    tiny(monkeypatch)
    arrays = episodes()
    weights = []
    for _ in range(2):  # the second one reads the finished checkpoints
        torch.manual_seed(0)
        model = DiffusersTrainer.for_data(specs(), "tiny-wan", arrays)
        facts = DiffusersTrainer.fit(model, arrays, SHORT, tmp_path / "run")
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
    assert {"vae_mse"} <= facts.keys() or facts == {}
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())
    model.save_pretrained(tmp_path / "export")
    with pytest.raises(ConfigError, match="2 action dimensions, the world model .* 3"):
        DiffusersTrainer.for_data(specs(action=2), "", episodes(action=2), initial=tmp_path / "export")
    again = DiffusersTrainer.for_data(specs(), "", arrays, initial=tmp_path / "export")
    assert not any(p.requires_grad for p in again.vae.parameters())
    other = DiffusersTrainer.for_data(
        specs(), "", arrays, initial=tmp_path / "export", settings={"attention": "full"}
    )
    assert other.config.attention == "full"
    with pytest.raises(ConfigError, match="action_width of the world model .* can't be changed"):
        DiffusersTrainer.for_data(
            specs(), "", arrays, initial=tmp_path / "export", settings={"action_width": 8}
        )
    with pytest.raises(ConfigError, match="unknown setting 'widow'; did you mean 'window'"):
        DiffusersTrainer.for_data(specs(), "tiny-wan", arrays, settings={"widow": 8})


def test_adapters_train_alone_in_float32_and_are_merged(tmp_path):
    pytest.importorskip("peft")
    model, arrays = model_of(), episodes()
    model.save_pretrained(tmp_path / "before")
    model = DiffusersTrainer.for_data(specs(), "", arrays, initial=tmp_path / "before", settings={"lora": 2})
    trained = [name for name, p in model.network.transformer.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    frozen = model.network.transformer.blocks[0].attn1.to_q.base_layer.weight.clone()
    DiffusersTrainer.fit(model, arrays, SHORT, tmp_path / "run")
    merged = model.network.transformer.blocks[0].attn1.to_q.weight
    assert (merged - frozen).abs().max() > 0
    model.save_pretrained(tmp_path / "after")
    again = load_world_model(tmp_path / "after")  # without peft
    actions = actions_of(model)
    assert torch.equal(
        again.step(start(again), actions)[1].frames, model.step(start(model), actions)[1].frames
    )


def test_adapters_of_a_model_in_bfloat16_are_float32():
    pytest.importorskip("peft")
    model = model_of().with_dtype("bfloat16")
    add_adapters(model, 2)
    kinds = {p.dtype for name, p in model.network.transformer.named_parameters() if "lora_" in name}
    assert kinds == {torch.float32}
    with pytest.raises(ConfigError, match="lora is 0, expected a rank"):
        add_adapters(model_of(), 0)


@pytest.mark.slow
def test_a_few_hundred_steps_beat_a_copy_of_the_first_frame(tmp_path):
    """On held-out episodes of a moving square; VAE and transformer start from random weights."""
    arrays, side = episodes(count=60, length=8), 16
    base = BackboneConfig.preset("tiny-wan")
    plain = {"patch_size": None, "in_channels": 3, "out_channels": 3, "scale_factor_spatial": 4}
    coarse = {**base.transformer, "patch_size": [1, 1, 1], "num_layers": 2}
    torch.manual_seed(0)
    config = replace(base, image_size=side, vae={**base.vae, **plain}, transformer=coarse)
    model = DiffusersWorldModel(config.for_data(arrays.states, specs()))
    held_out = np.arange(len(arrays)) % 6 == 0
    settings = PartTraining(LoopConfig(steps=STEPS, lr=2e-3, ema=0.98), batch=16, window=8)
    DiffusersTrainer.fit(model, arrays.keep(~held_out), settings, tmp_path / "run")
    scores = against_copy(model, arrays.keep(held_out))
    assert scores["model"] < 0.9 * scores["copy"], scores
    assert scores["state"] < 0.1 * scores["state_copy"], scores


def against_copy(model: DiffusersWorldModel, arrays, steps: int = 8) -> dict[str, float]:
    """Mean squared errors of imagined frames, of the first frame in their place, and the same of proprioception."""
    index = arrays.offsets[:-1][:, None] + np.arange(steps + 1)
    frames, states = (torch.from_numpy(x[index]) for x in (arrays.frames, arrays.states))
    actions = torch.from_numpy(arrays.actions[index[:, :-1]])
    state = model.begin(frames[:, :1], actions[:, :0], torch.Generator().manual_seed(0), states=states[:, :1])
    shown, path = [], []
    for chunk in actions.split(5, 1):
        state, imagined = model.step(state, chunk)
        shown.append(imagined.frames)
        path.append(imagined.states)

    def error(one, other) -> float:
        return float((one.float() - other.float()).square().mean())

    return {
        "model": error(torch.cat(shown, 1), frames[:, 1:]) / 255**2,
        "copy": error(frames[:, :1].expand_as(frames[:, 1:]), frames[:, 1:]) / 255**2,
        "state": error(torch.cat(path, 1), states[:, 1:]),
        "state_copy": error(states[:, :1].expand_as(states[:, 1:]), states[:, 1:]),
    }
