"""Tokenizers behind one protocol: ours with and without a background, and autoencoders of diffusers."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from worldgym.errors import ConfigError
from worldgym.models import (
    DiffusersTokenizer,
    DiffusersTokenizerConfig,
    FrameTokenizer,
    TokenizerConfig,
    VideoTokenizer,
    VideoWorldModel,
    WorldModelConfig,
)
from worldgym.models.tokenizers import build_tokenizer, tokenizer_config
from worldgym.training.loop import LoopConfig
from worldgym.training.world_model import LatentEpisodes, WorldModelTraining, train_world_model
from worldgym.utils.sizes import short, size_of


def frames(n: int, h: int, w: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, h, w, 3), dtype=np.uint8))


def tiny_autoencoder():
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    blocks = {"encoder_block_out_channels": (8, 8, 8, 8), "decoder_block_out_channels": (8, 8, 8, 8)}
    return AutoencoderTiny(**blocks, num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1)).eval()


def small() -> DiffusersTokenizer:
    return DiffusersTokenizer.of(tiny_autoencoder(), (32, 48)).requires_grad_(False)


def ours(**changes) -> FrameTokenizer:
    return FrameTokenizer(TokenizerConfig((32, 48), 4, (8, 8, 8), (0, 0, 0), **changes)).requires_grad_(False)


@pytest.mark.parametrize("make", [small, ours, lambda: ours(background=False)])
def test_every_tokenizer_obeys_the_protocol(make):
    tokenizer = make()
    assert isinstance(tokenizer, VideoTokenizer)
    assert (tokenizer.image_size, tokenizer.latent_channels, tokenizer.grid) == ((32, 48), 4, (4, 6))
    z = tokenizer.encode(frames(3, 32, 48), 2)
    assert z.shape == (3, 4, 4, 6) and z.dtype == torch.float32
    again = tokenizer.decode(z, 2)
    assert again.shape == (3, 32, 48, 3) and again.dtype == torch.uint8
    assert tokenizer.decode_pixels(z).shape == (3, 3, 32, 48)
    assert tokenizer.project(z).shape == z.shape
    assert (tokenizer.encode_background() is None) == (tokenizer.static_picture is None)
    with pytest.raises(ConfigError, match="32, 48, 3"):
        tokenizer.encode(frames(1, 48, 32))
    values = json.loads(json.dumps(asdict(tokenizer.config)))
    config = tokenizer_config(values)
    assert config == tokenizer.config
    fresh = build_tokenizer(config).eval()
    fresh.load_state_dict(tokenizer.state_dict())
    assert torch.allclose(fresh.encode(frames(3, 32, 48), 2), z)


def test_a_moving_camera_has_no_background_to_store():
    tokenizer = ours(background=False)
    tokenizer.set_background(frames(4, 32, 48))
    assert not any("background" in name for name in tokenizer.state_dict())
    assert "background" in ours().state_dict()


def test_latents_of_any_autoencoder_are_standardised():
    tokenizer = small().fit(frames(8, 32, 48))
    z = tokenizer.encode(frames(8, 32, 48))
    assert torch.allclose(z.mean((0, 2, 3)), torch.zeros(4), atol=1e-3)
    assert torch.allclose(z.std((0, 2, 3)), torch.ones(4), atol=0.05)


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderDC"])
def test_other_autoencoders_fit_too(kind):
    import diffusers

    torch.manual_seed(0)
    if kind == "AutoencoderKL":
        widths = {"block_out_channels": (8, 8), "norm_num_groups": 4}
        down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
        model = diffusers.AutoencoderKL(down_block_types=down, up_block_types=up, **widths)
        shape = (4, 16, 24)
    else:
        sizes = {"encoder_block_out_channels": (8, 16), "decoder_block_out_channels": (8, 16)}
        layers = {"encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1)}
        kinds = {"encoder_block_types": "ResBlock", "decoder_block_types": "ResBlock"}
        scales = {"encoder_qkv_multiscales": ((), ()), "decoder_qkv_multiscales": ((), ())}
        model = diffusers.AutoencoderDC(latent_channels=4, **sizes, **layers, **kinds, **scales)
        shape = (4, 16, 24)
    tokenizer = DiffusersTokenizer.of(model.eval(), (32, 48))
    z = tokenizer.encode(frames(2, 32, 48))
    assert tuple(z.shape[1:]) == shape and tokenizer.decode(z).shape == (2, 32, 48, 3)
    assert tokenizer.config.kind == kind and tokenizer.config.reduction == 2


def test_a_world_model_on_a_diffusers_autoencoder_trains_and_survives_disk(tmp_path):
    tiny, tokenizer = WorldModelConfig.preset("tiny"), small().fit(frames(8, 32, 48))
    bare = replace(tiny.dynamics, latent_channels=4, grid=(4, 6), motion=None)
    shape = replace(tiny, tokenizer=tokenizer.config, dynamics=bare)
    assert shape.for_data(np.zeros((5, 2), np.float32), 3, (32, 48), hand=False).dynamics.grid == (4, 6)
    torch.manual_seed(0)
    model = VideoWorldModel(shape)
    model.tokenizer.load_state_dict(tokenizer.state_dict())
    zeros = torch.zeros(12, 4)
    data = LatentEpisodes(tokenizer.encode(frames(12, 32, 48)).half(), zeros, zeros, np.array([0, 6, 12]))
    loop = LoopConfig(steps=2, warmup=1)
    settings = WorldModelTraining(loop=loop, batch=2, window=2, rollout_from=0.0)
    trained = train_world_model(model, data, settings, tmp_path / "run")
    trained.save_pretrained(tmp_path / "export")
    again = VideoWorldModel.from_pretrained(tmp_path / "export")
    assert torch.equal(again.tokenizer.latent_std, tokenizer.latent_std)
    state = again.begin(frames(2, 32, 48)[:, None], torch.zeros(2, 0, 4))
    assert again.step(state, torch.zeros(2, 2, 4))[1].frames.shape == (2, 2, 32, 48, 3)


def test_sizes_are_one_number_for_squares():
    assert (short((64, 64)), short(64), short([48, 80]), size_of(64), size_of((48, 80))) == (
        64, 64, (48, 80), (64, 64), (48, 80),
    )  # fmt: skip
    assert TokenizerConfig(image_size=(64, 64)) == TokenizerConfig(image_size=64)


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="AutoencoderTiny"):
        DiffusersTokenizerConfig("AutoencoderHuge")
    with pytest.raises(ConfigError, match="multiple of 8"):
        DiffusersTokenizerConfig("AutoencoderTiny", 60)
    with pytest.raises(ConfigError, match="DiffusersTokenizer.of"):
        DiffusersTokenizer(DiffusersTokenizerConfig("AutoencoderTiny", 64, {}, 8), tiny_autoencoder())
    with pytest.raises(ConfigError, match="unknown setting 'size'"):
        tokenizer_config({"size": 3})
