"""Pipeline folders of diffusers: what loads, and what each damage says."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from backbone_cases import actions_of, config_of, specs, start
from safetensors.torch import load_file, save_file

from worldgym.errors import CheckpointError, ConfigError
from worldgym.models.backbones.loading import read_pipeline
from worldgym.models.backbones.shapes import build
from worldgym.models.backbones.world_model import DiffusersWorldModel


@pytest.fixture(scope="module", params=["tiny-wan", "tiny-cosmos"])
def written(request, tmp_path_factory):
    """A pipeline folder as diffusers writes it, and the parts in it."""
    from diffusers import UniPCMultistepScheduler

    folder, config = tmp_path_factory.mktemp("pipeline"), config_of(request.param)
    torch.manual_seed(1)
    parts = build(config.transformer, config.vae)
    for name, part in zip(("transformer", "vae"), parts, strict=True):
        part.save_pretrained(folder / name)
    UniPCMultistepScheduler(flow_shift=3.0, use_flow_sigmas=True).save_pretrained(folder / "scheduler")
    return folder, parts


@pytest.fixture
def folder(written, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(written[0], tmp_path / "pipeline")
    return tmp_path / "pipeline"


def edit(folder, part: str, **changes) -> None:
    file = folder / part / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_pipeline_folder_becomes_a_world_model(written):
    folder, (transformer, _) = written
    config, parts = read_pipeline(folder, "float32")
    assert (config.shift, config.attention, config.residual) == (3.0, "full", 0.0)
    weights = parts[0].state_dict()
    assert all(torch.equal(weights[name], value) for name, value in transformer.state_dict().items())
    model = DiffusersWorldModel(config.for_data(torch.zeros(2, 4).numpy(), specs()), parts).eval()
    _, imagined = model.step(start(model), actions_of(model))
    assert imagined.frames.shape == (3, 5, 16, 16, 3)


def test_weights_of_another_architecture_are_named(folder):
    file = next((folder / "transformer").glob("*.safetensors"))
    tensors = load_file(file)
    gone = sorted(name for name in tensors if "attn1.to_q" in name)[0]
    save_file({name: value for name, value in tensors.items() if name != gone}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"of another architecture.*1 missing keys, e.g. {gone}"):
        read_pipeline(folder)


def test_weights_of_another_size_are_named(folder):
    edit(folder, "transformer", num_attention_heads=4)
    with pytest.raises(
        CheckpointError, match="can't be loaded as a (Wan|Cosmos)Transformer3DModel|another architecture"
    ):
        read_pipeline(folder)


def test_a_transformer_or_a_vae_of_another_class_or_compression_is_refused(folder):
    edit(folder, "vae", temperal_downsample=[False, True])
    with pytest.raises(ConfigError, match="one latent frame of 2 frames, expected 4"):
        read_pipeline(folder)
    edit(folder, "vae", _class_name="AutoencoderKLCogVideoX")
    with pytest.raises(ConfigError, match="AutoencoderKLCogVideoX, expected an AutoencoderKLWan"):
        read_pipeline(folder)
    edit(folder, "transformer", _class_name="CogVideoXTransformer3DModel")
    with pytest.raises(ConfigError, match="CogVideoXTransformer3DModel, expected a WanTransformer3DModel"):
        read_pipeline(folder)


def test_missing_files_and_pickles_are_named(folder):
    file = next((folder / "vae").glob("*.safetensors"))
    torch.save({}, folder / "vae" / "diffusion_pytorch_model.bin")
    file.unlink()
    with pytest.raises(CheckpointError, match="no safetensors file in .*vae.*pickle are not read"):
        read_pipeline(folder)
    with pytest.raises(CheckpointError, match="expected a pipeline folder of diffusers"):
        read_pipeline(folder / "nothing")


def test_levels_of_karras_fall_back_to_the_default_shift(folder):
    from diffusers import FlowMatchEulerDiscreteScheduler

    shutil.rmtree(folder / "scheduler")
    FlowMatchEulerDiscreteScheduler(shift=1.0, use_karras_sigmas=True).save_pretrained(folder / "scheduler")
    assert read_pipeline(folder)[0].shift == 5.0
