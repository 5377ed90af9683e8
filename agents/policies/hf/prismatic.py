"""The vision-language model of OpenVLA (Prismatic): two vision towers, a projector, and a language model.

Modules have the names of the published checkpoints, so that their weights load without remote code and without timm:
`vision_backbone.featurizer` (DINOv2 with registers), `vision_backbone.fused_featurizer` (SigLIP), `projector`,
`language_model`. The features are those of the last block but one (arXiv 2406.09246, section 3; arXiv 2402.07865).

Example::

    vlm = Prismatic({"model_type": "openvla", "text_config": {"model_type": "llama", ...}})
    vlm.image_tokens(frames).shape        # (B, 256, D)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldgym.errors import ConfigError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Tower:
    """Shape of a vision transformer, and the scaling of its images.

    Args:
        width: width.
        depth: number of blocks.
        heads: attention heads.
        ffn: width of the feed-forward layers.
        patch: pixels along one side of a patch.
        registers: register tokens; with them there is a class token too, and neither has a position embedding.
        layer_scale: whether blocks scale their outputs.
        pool: whether the checkpoint has a pooling head, which is not used.
        mean: per-channel mean that is subtracted from images in [0, 1].
        std: per-channel standard deviation that divides them.
    """

    width: int
    depth: int
    heads: int
    ffn: int
    patch: int = 14
    registers: int = 0
    layer_scale: bool = False
    pool: bool = False
    mean: tuple[float, ...] = HALF[0]
    std: tuple[float, ...] = HALF[1]


DINOV2_L = Tower(1024, 24, 16, 4096, registers=4, layer_scale=True, mean=IMAGENET[0], std=IMAGENET[1])
SIGLIP_SO = Tower(1152, 27, 16, 4304, pool=True)
BACKBONES: dict[str, tuple[tuple[Tower, ...], int]] = {
    "dinosiglip-vit-so-224px": ((DINOV2_L, SIGLIP_SO), 224),
    "dinosiglip-vit-so-384px": ((DINOV2_L, SIGLIP_SO), 384),
    "siglip-vit-so400m": ((SIGLIP_SO,), 224),
    "siglip-vit-so400m-384px": ((SIGLIP_SO,), 384),
    "dinov2-vit-l": ((DINOV2_L,), 224),
}
"""Towers and image size by `vision_backbone_id`."""


class Scale(nn.Module):
    """Scales the output of a branch (LayerScale); the name of the weight is that of the published checkpoints."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(1e-5 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """`x` times one factor per channel."""
        return x * self.scale_factor


class Attention(nn.Module):
    """Self-attention with one matrix for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `(B,N,D)`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    """Two layers with GELU between."""

    def __init__(self, width: int, ffn: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, ffn), nn.Linear(ffn, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `(B,N,D)`."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """A transformer block of a vision tower."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        width = tower.width
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn, self.mlp = Attention(width, tower.heads), Mlp(width, tower.ffn)
        if tower.layer_scale:
            self.ls1, self.ls2 = Scale(width), Scale(width)
        self.scaled = tower.layer_scale

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `(B,N,D)`."""
        out = self.attn(self.norm1(x))
        x = x + (self.ls1(out) if self.scaled else out)
        out = self.mlp(self.norm2(x))
        return x + (self.ls2(out) if self.scaled else out)


class Pool(nn.Module):
    """The pooling head of SigLIP: part of the checkpoint, not used by the policy."""

    def __init__(self, width: int, ffn: int) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q, self.kv, self.proj = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )
        self.norm, self.mlp = nn.LayerNorm(width, eps=1e-6), Mlp(width, ffn)


class Patches(nn.Module):
    """Patch embedding."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, tower.width, tower.patch, stride=tower.patch)

    def forward(self, x: Tensor) -> Tensor:
        """Images `(B,3,H,W)` to `(B,N,D)`."""
        out: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return out


class VisionTower(nn.Module):
    """A vision transformer with the module names of timm; gives the patch tokens of the last block but one."""

    def __init__(self, tower: Tower, size: int) -> None:
        super().__init__()
        width, count = tower.width, (size // tower.patch) ** 2
        self.tower, self.skipped = tower, (1 + tower.registers if tower.registers else 0)
        self.patch_embed = Patches(tower)
        if tower.registers:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
            self.reg_token = nn.Parameter(torch.zeros(1, tower.registers, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, count, width))
        self.blocks = nn.ModuleList(Block(tower) for _ in range(tower.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        if tower.pool:
            self.attn_pool = Pool(width, tower.ffn)
        self.register_buffer("mean", torch.tensor(tower.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(tower.std).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Patch tokens `(B,N,D)` of `images (B,3,H,W)` in [0, 1]."""
        x = self.patch_embed((images - self.mean) / self.std) + self.pos_embed
        if self.skipped:
            x = torch.cat(
                [self.cls_token.expand(len(x), -1, -1), self.reg_token.expand(len(x), -1, -1), x], 1
            )
        for block in self.blocks[:-1]:
            x = block(x)
        return x[:, self.skipped :]


class Towers(nn.Module):
    """One or two vision towers on the same image, their features side by side."""

    def __init__(self, towers: tuple[Tower, ...], size: int) -> None:
        super().__init__()
        self.featurizer = VisionTower(towers[0], size)
        if len(towers) > 1:
            self.fused_featurizer = VisionTower(towers[1], size)
        self.fused = len(towers) > 1

    def forward(self, images: Tensor) -> Tensor:
        """Features `(B,N,sum of widths)`."""
        first: Tensor = self.featurizer(images)
        return torch.cat([first, self.fused_featurizer(images)], -1) if self.fused else first


class Projector(nn.Module):
    """Features of the towers to the width of the language model; three layers behind two towers, else two."""

    def __init__(self, width: int, out: int, fused: bool) -> None:
        super().__init__()
        inner = 4 * width if fused else out
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, out)
        if fused:
            self.fc3 = nn.Linear(out, out)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        """Features `(B,N,width)` to `(B,N,out)`."""
        x = self.fc2(F.gelu(self.fc1(x)))
        return self.fc3(F.gelu(x)) if self.fused else x


class Prismatic(nn.Module):
    """Vision towers, projector and language model.

    Args:
        config: content of the published `config.json`. `towers` (a list of fields of `Tower`) and `image_sizes` replace
            the shapes of `vision_backbone_id`.

    Raises:
        ConfigError: an unknown backbone, or a language model that transformers cannot build.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModelForCausalLM

        name, text = config.get("vision_backbone_id"), dict(config.get("text_config") or {})
        if config.get("towers"):
            towers = tuple(Tower(**tower) for tower in config["towers"])
            size = int(config["image_sizes"][0])
        elif name in BACKBONES:
            towers, size = BACKBONES[str(name)]
        else:
            raise ConfigError(f"the vision backbone is {name!r}; known are {', '.join(BACKBONES)}")
        kind = text.pop("model_type", "llama")
        for name in ("torch_dtype", "dtype"):  # the policy decides
            text.pop(name, None)
        try:
            read = AutoConfig.for_model(
                kind, **{key: value for key, value in text.items() if value is not None}
            )
            self.language_model = AutoModelForCausalLM.from_config(read)
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            raise ConfigError(f"transformers cannot build the language model {kind!r}: {error}") from error
        self.size, self.config = size, PrismaticShape(read)
        self.vision_backbone = Towers(towers, size)
        width = sum(tower.width for tower in towers)
        self.projector = Projector(width, read.hidden_size, len(towers) > 1)

    @property
    def model(self) -> Prismatic:
        """The module that holds vision and language, as in transformers."""
        return self

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.projector.fc1.weight.device

    def get_decoder(self) -> Any:
        """The language model without its output layer."""
        return self.language_model.get_decoder()

    def get_input_embeddings(self) -> Any:
        """Embeddings of the tokens."""
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """Output layer of the language model."""
        return self.language_model.get_output_embeddings()

    def gradient_checkpointing_enable(self) -> None:
        """Recompute the activations of the language model in the backward pass."""
        self.language_model.gradient_checkpointing_enable()

    def image_tokens(self, frames: Tensor) -> Tensor:
        """Embeddings `(B,N,D)` of `frames (B,H,W,3)` uint8, resized without regard to their aspect ratio."""
        x = frames.movedim(-1, 1).to(self.device).float()
        if tuple(x.shape[-2:]) != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True, align_corners=False)
            x = x.round().clamp(0, 255)
        out: Tensor = self.projector(self.vision_backbone((x / 255).to(self.projector.fc1.weight.dtype)))
        return out


@dataclass(frozen=True)
class PrismaticShape:
    """The fields of a transformers config that a policy reads.

    Args:
        text: config of the language model.
    """

    text: Any
    model_type: str = "openvla"
