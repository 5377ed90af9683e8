"""Tokenizers that map frames to grids of latents and back: our own, and any image autoencoder of diffusers.

Example::

    tokenizer = build_tokenizer(TokenizerConfig(image_size=(48, 80)))
    tokenizer.encode(frames)          # (N, 48, 80, 3) uint8 -> (N, 16, 6, 10)
"""

from __future__ import annotations

from typing import Any

from worldgym.models.tokenizers.base import VideoTokenizer, check_frames
from worldgym.models.tokenizers.diffusers import DiffusersTokenizer, DiffusersTokenizerConfig
from worldgym.models.tokenizers.frame import FrameTokenizer, TokenizerConfig
from worldgym.utils.sizes import ImageSize, short, size_of
from worldgym.utils.typed import from_values

AnyTokenizerConfig = TokenizerConfig | DiffusersTokenizerConfig


def build_tokenizer(config: AnyTokenizerConfig) -> Any:
    """Create a tokenizer with random weights, to be trained or loaded."""
    if isinstance(config, DiffusersTokenizerConfig):
        return DiffusersTokenizer(config)
    return FrameTokenizer(config)


def tokenizer_config(values: Any, where: str = "") -> AnyTokenizerConfig:
    """Parse the config of a tokenizer from JSON values.

    Raises:
        ConfigError: unknown or missing settings, or values of another type.
    """
    if isinstance(values, dict) and "kind" in values:
        return from_values(DiffusersTokenizerConfig, values, where)
    return from_values(TokenizerConfig, values, where)


__all__ = [
    "AnyTokenizerConfig",
    "DiffusersTokenizer",
    "DiffusersTokenizerConfig",
    "FrameTokenizer",
    "TokenizerConfig",
    "VideoTokenizer",
    "build_tokenizer",
    "check_frames",
    "tokenizer_config",
]
