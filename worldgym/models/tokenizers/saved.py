"""Writes and reads the tokenizer in a run folder of `worldgym train tokenizer`.

Example::

    write_tokenizer(tokenizer, Path("runs/tokenizer"), {"psnr": 31.2})
    tokenizer = read_tokenizer(Path("runs/tokenizer"))
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from worldgym.errors import CheckpointError, ConfigError
from worldgym.models.tokenizers.frame import FrameTokenizer, TokenizerConfig
from worldgym.utils.files import read_json
from worldgym.utils.folders import save_folder, verify_folder
from worldgym.utils.tensors import load_tensors, save_tensors
from worldgym.utils.typed import from_values


def write_tokenizer(tokenizer: FrameTokenizer, folder: Path, metrics: Mapping[str, float]) -> None:
    """Save a tokenizer with its config and the `metrics` of its training; other files of `folder` are kept."""
    with save_folder(folder) as stage:
        save_tensors(stage / "tokenizer.safetensors", tokenizer.state_dict())
        settings = json.dumps({**asdict(tokenizer.config), "metrics": dict(metrics)}, indent=1)
        (stage / "tokenizer.json").write_text(settings, encoding="utf-8")


def read_tokenizer(folder: Path) -> FrameTokenizer:
    """Load the trained tokenizer in `folder`, frozen.

    Raises:
        CheckpointError: the tokenizer is missing, damaged, or has weights that are not finite.
    """
    remedy = f"run `worldgym train tokenizer --out {folder}` first, or give the folder of a finished run"
    names = ("tokenizer.json", "tokenizer.safetensors")
    lacking = [name for name in names if not (folder / name).is_file()]
    if lacking:
        raise CheckpointError(f"no usable tokenizer in {folder}: {', '.join(lacking)} is missing; {remedy}")
    verify_folder(folder, names, remedy)
    settings = read_json(folder / "tokenizer.json", remedy)
    tensors = load_tensors(folder / "tokenizer.safetensors")
    try:
        if isinstance(settings, dict):
            settings.pop("metrics", None)
        model = FrameTokenizer(from_values(TokenizerConfig, settings, str(folder / "tokenizer.json")))
        model.load_state_dict(tensors)
    except (ConfigError, RuntimeError, MemoryError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"no usable tokenizer in {folder} ({error}); {remedy}") from error
    return model.eval().requires_grad_(False)
