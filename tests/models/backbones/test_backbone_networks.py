"""The networks compute what the given classes of diffusers compute, and cached frames what a mask computes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from backbone_cases import SMALLER
from torch import nn

from worldgym.models.backbones.networks import CLEAN, CosmosNetwork, VideoNetwork, WanNetwork
from worldgym.models.backbones.shapes import SHAPES, build

FRAMES, TOKENS = 5, 12
TEXT_PROJECTION = {
    "use_crossattn_projection": True, "crossattn_proj_in_channels": 24, "encoder_hidden_states_channels": 16
}  # fmt: skip


def network(shape: str, **changes) -> VideoNetwork:
    torch.manual_seed(0)
    transformer, vae = SHAPES[shape]
    made, _ = build({**transformer, **SMALLER, **changes}, vae)
    kind = WanNetwork if "wan" in shape else CosmosNetwork
    return kind(made, action_dim=3, per_frame=4, width=16).eval().requires_grad_(False)


def inputs(clean: int = 3):
    rng = torch.Generator().manual_seed(1)
    levels = torch.rand(2, FRAMES, generator=rng)
    levels[:, :clean] = 0
    latents, actions = (
        torch.randn(2, FRAMES, 48, 8, 6, generator=rng),
        torch.rand(2, FRAMES, 4, 3, generator=rng),
    )
    return latents, levels, actions, torch.ones(2, FRAMES, 4, dtype=torch.bool)


def test_wan_without_trained_actions_is_the_transformer_of_diffusers():
    net = network("tiny-wan")
    latents, levels, actions, given = inputs()
    ours, _ = net(latents, levels, actions, given, range(FRAMES))
    per_token = (1000 * levels).repeat_interleave(TOKENS, 1)
    theirs = net.transformer(
        latents.transpose(1, 2), per_token, net.text.expand(2, -1, -1), return_dict=False
    )[0]
    torch.testing.assert_close(ours, theirs.transpose(1, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("shape", [{}, TEXT_PROJECTION], ids=["predict 2", "predict 2.5"])
def test_cosmos_without_trained_actions_is_the_transformer_of_diffusers(monkeypatch, padding, shape):
    if padding:  # diffusers resizes the mask with torchvision, which need not be installed
        from diffusers.models.transformers import transformer_cosmos

        resize = SimpleNamespace(resize=lambda mask, size, interpolation: F.interpolate(mask, size))
        stub = SimpleNamespace(functional=resize, InterpolationMode=SimpleNamespace(NEAREST="nearest"))
        monkeypatch.setattr(transformer_cosmos, "transforms", stub, raising=False)
    net = network("tiny-cosmos", concat_padding_mask=padding, **shape)
    latents, levels, actions, given = inputs()
    ours, _ = net(latents, levels, actions, given, range(FRAMES))
    clean = (levels <= 0).float()[:, None, :, None, None]
    theirs = net.transformer(
        latents.transpose(1, 2), levels.clamp(min=CLEAN)[:, None, :, None, None], net.text.expand(2, -1, -1), fps=16,
        condition_mask=clean.expand(-1, -1, -1, 8, 6), padding_mask=torch.zeros(1, 1, 64, 48), return_dict=False,
    )[0]  # fmt: skip
    torch.testing.assert_close(ours, theirs.transpose(1, 2), rtol=0, atol=1e-6)


def awake(shape: str) -> VideoNetwork:
    net = network(shape)
    for layer in net.actions.outputs:
        nn.init.normal_(layer.weight, std=0.3)
    return net


@pytest.mark.parametrize("shape", ["tiny-wan", "tiny-cosmos"])
def test_cached_frames_count_as_frames_under_a_block_causal_mask(shape):
    net, (latents, levels, actions, given) = awake(shape), inputs(clean=4)
    mask = torch.ones(FRAMES, FRAMES, dtype=torch.bool).tril()
    whole, _ = net(latents, levels, actions, given, range(FRAMES), mask=mask)
    cached: list[torch.Tensor] = []
    for i in range(FRAMES):
        part = [x[:, i : i + 1] for x in (latents, levels, actions, given)]
        one, new = net(*part, [i], cached=cached, keep=True)
        torch.testing.assert_close(one[:, 0], whole[:, i], rtol=1e-4, atol=1e-5)
        cached = [torch.cat(pair, 1) for pair in zip(cached, new, strict=True)] if cached else new


@pytest.mark.parametrize("shape", ["tiny-wan", "tiny-cosmos"])
def test_actions_that_are_not_given_have_no_effect_and_given_ones_have(shape):
    net, (latents, levels, actions, given) = awake(shape), inputs()
    given[:, 3, 2:] = False
    before, _ = net(latents, levels, actions, given, range(FRAMES))
    hidden, shown = actions.clone(), actions.clone()
    hidden[:, 3, 2:] += 1
    shown[:, 3, :2] += 1
    assert torch.equal(net(latents, levels, hidden, given, range(FRAMES))[0], before)
    assert (net(latents, levels, shown, given, range(FRAMES))[0] - before).abs().max() > 1e-3


def test_without_actions_a_frame_is_that_of_diffusers_even_when_they_are_trained():
    net, plain = awake("tiny-wan"), network("tiny-wan")
    latents, levels, actions, given = inputs()
    none = torch.zeros_like(given)
    ours, _ = net(latents, levels, actions, none, range(FRAMES))
    torch.testing.assert_close(ours, plain(latents, levels, actions, none, range(FRAMES))[0])


def test_gradient_checkpointing_changes_no_gradient():
    latents, levels, actions, given = inputs()
    gradients = []
    for checkpointing in (False, True):
        net = awake("tiny-wan").requires_grad_(True)
        net.checkpointing = checkpointing
        net(latents, levels, actions, given, range(FRAMES))[0].square().mean().backward()
        gradients.append(net.transformer.blocks[0].attn1.to_q.weight.grad)
    torch.testing.assert_close(*gradients)


def test_what_diffusers_keeps_in_float32_stays_so():
    net = network("tiny-wan")
    net.cast(torch.bfloat16)
    assert net.dtype == torch.bfloat16
    assert net.transformer.scale_shift_table.dtype == torch.float32
    out, _ = net(*inputs(), range(FRAMES))
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("shape", "billions"), [("wan2.2-ti2v-5b", (4.9, 5.1)), ("cosmos-predict2-2b", (1.9, 2.1))]
)
def test_published_shapes_have_their_published_sizes(shape, billions):
    with torch.device("meta"):
        transformer, vae = build(*SHAPES[shape])
    count = sum(p.numel() for p in transformer.parameters()) / 1e9
    assert billions[0] < count < billions[1]
    assert next(vae.parameters()).is_meta
