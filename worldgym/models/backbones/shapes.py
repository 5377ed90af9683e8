"""Shapes of networks by name: tiny ones for tests, and published ones for tables of cost on the `meta` device.

The published shapes carry no weights. Their sizes are those of the `config.json` of the diffusers repositories
Wan-AI/Wan2.2-TI2V-5B-Diffusers and nvidia/Cosmos-Predict2-2B-Video2World. The statistics of Wan 2.2's latents are not
among them: load the VAE from its folder for those.

Example::

    with torch.device("meta"):
        transformer, vae = build(*SHAPES["wan2.2-ti2v-5b"])
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from worldgym.utils.optional import require

Settings = dict[str, Any]


def _tiny_vae() -> Settings:
    """Wan 2.2's VAE with one level less, and 20 to 30 times narrower."""
    return {
        "base_dim": 8, "z_dim": 48, "dim_mult": [1, 2, 2], "num_res_blocks": 1, "temperal_downsample": [True, True],
        "is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "latents_mean": [0.0] * 48,
        "latents_std": [1.0] * 48, "scale_factor_temporal": 4, "scale_factor_spatial": 8,
    }  # fmt: skip


SHAPES: dict[str, tuple[Settings, Settings]] = {
    "tiny-wan": (
        {
            "_class_name": "WanTransformer3DModel", "patch_size": [1, 2, 2], "num_attention_heads": 4,
            "attention_head_dim": 24, "in_channels": 48, "out_channels": 48, "text_dim": 16, "freq_dim": 64,
            "ffn_dim": 256, "num_layers": 3, "rope_max_seq_len": 64,
        },
        _tiny_vae(),
    ),
    "tiny-cosmos": (
        {
            "_class_name": "CosmosTransformer3DModel", "in_channels": 49, "out_channels": 48,
            "num_attention_heads": 4, "attention_head_dim": 24, "num_layers": 3, "mlp_ratio": 3.0,
            "text_embed_dim": 16, "adaln_lora_dim": 32, "max_size": [64, 64, 64], "patch_size": [1, 2, 2],
            "rope_scale": [1.0, 1.0, 1.0], "concat_padding_mask": True, "extra_pos_embed_type": None,
        },
        _tiny_vae(),
    ),
    "wan2.2-ti2v-5b": (
        {
            "_class_name": "WanTransformer3DModel", "patch_size": [1, 2, 2], "num_attention_heads": 24,
            "attention_head_dim": 128, "in_channels": 48, "out_channels": 48, "text_dim": 4096, "freq_dim": 256,
            "ffn_dim": 14336, "num_layers": 30, "cross_attn_norm": True, "eps": 1e-6,
            "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024,
        },
        {
            "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2,
            "temperal_downsample": [False, True, True], "is_residual": True, "in_channels": 12, "out_channels": 12,
            "patch_size": 2, "scale_factor_spatial": 16, "scale_factor_temporal": 4,
            "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,
        },
    ),
    "cosmos-predict2-2b": (
        {
            "_class_name": "CosmosTransformer3DModel", "in_channels": 17, "out_channels": 16,
            "num_attention_heads": 16, "attention_head_dim": 128, "num_layers": 28, "mlp_ratio": 4.0,
            "text_embed_dim": 1024, "adaln_lora_dim": 256, "max_size": [128, 240, 240], "patch_size": [1, 2, 2],
            "rope_scale": [1.0, 3.0, 3.0], "concat_padding_mask": True, "extra_pos_embed_type": None,
        },
        {"base_dim": 96, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2,
         "temperal_downsample": [False, True, True], "scale_factor_spatial": 8, "scale_factor_temporal": 4},
    ),
}  # fmt: skip
"""Settings of transformer and VAE by name."""


def build(transformer: Mapping[str, Any], vae: Mapping[str, Any]) -> tuple[nn.Module, nn.Module]:
    """A transformer and a VAE with random weights; under `torch.device("meta")` without memory."""
    require("diffusers")
    import diffusers

    plain = {key: value for key, value in transformer.items() if not key.startswith("_")}
    made = getattr(diffusers, transformer["_class_name"])(**plain)
    return made, diffusers.AutoencoderKLWan(**{k: v for k, v in vae.items() if not k.startswith("_")})
