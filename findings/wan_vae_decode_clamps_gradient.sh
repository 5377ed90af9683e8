#!/usr/bin/env bash
# diffusers 0.38.0 and 0.42.1: `decode()` of the video VAEs AutoencoderKLWan and AutoencoderKLQwenImage clamps its output to
# [-1, 1] inside the method, in training mode too, and has no argument against it. So a reconstruction loss on
# `decode(z).sample` has a gradient of exactly zero for every pixel that the decoder puts outside the range, however wrong
# it is; if all are outside, no weight gets any gradient and the loss stays where it is. AutoencoderKL,
# AutoencoderKLCosmos and AutoencoderKLHunyuanVideo with the same interface do not clamp, and their pixels come back.
# Whoever trains or fine-tunes such a VAE through the public method needs a loss on the output of `vae.decoder` as well.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/check.py" <<'PY'
import warnings

warnings.filterwarnings("ignore")
import diffusers
import torch
from diffusers import AutoencoderKL, AutoencoderKLQwenImage, AutoencoderKLWan


def wan():
    return AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[True], latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ), torch.randn(1, 4, 2, 4, 4)


def qwen():
    return AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[True], latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ), torch.randn(1, 4, 1, 4, 4)


def plain():
    return AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(8,), norm_num_groups=4, latent_channels=4,
    ), torch.randn(1, 4, 8, 8)


def trained(make):
    """Largest output, and squared error before and after 30 steps of Adam towards 0, from a decoder that is too bright."""
    torch.manual_seed(0)
    vae, z = make()
    vae.train()
    with torch.no_grad():
        vae.decoder.conv_out.bias.fill_(3.0)
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.1)
    errors, gradient = [], 0.0
    for step in range(31):
        out = vae.decode(z).sample
        loss = out.square().mean()
        errors.append(float(loss.detach()))
        if step == 0:
            largest = float(out.detach().max())
        optimizer.zero_grad()
        loss.backward()
        gradient = max(gradient, max(float(p.grad.abs().max()) for p in vae.parameters() if p.grad is not None))
        optimizer.step()
    return largest, gradient, errors[0], errors[-1]


print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
found = {}
for make in (wan, qwen, plain):
    largest, gradient, first, last = found[make.__name__] = trained(make)
    print(f"  {make.__name__}: largest output {largest:.2f}, largest gradient {gradient:.2g}, error {first:.2f} -> {last:.2f}")
for name in ("wan", "qwen"):
    largest, gradient, first, last = found[name]
    assert largest == 1.0 and gradient == 0.0 and first == last == 1.0, "decode() has a gradient outside the range now"
largest, gradient, first, last = found["plain"]
assert largest > 1.5 and gradient > 0 and last < 0.1 * first, "AutoencoderKL behaves otherwise now"
PY
for version in 0.38.0 0.42.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet torch==2.13.0 numpy==2.2.6 "diffusers==$version" transformers==5.23.0
    "$folder/$version/bin/python" "$folder/check.py"
done
