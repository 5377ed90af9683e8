"""Loads the tokenizer from a run folder of `worldgym train tokenizer`.

Example::

    tokenizer = read_tokenizer(Path("runs/tokenizer"))
"""

from __future__ import annotations

from pathlib import Path

from worldgym.errors import CheckpointError, ConfigError
from worldgym.models.tokenizers.frame import FrameTokenizer, TokenizerConfig
from worldgym.utils.files import read_json
from worldgym.utils.folders import verify_folder
from worldgym.utils.tensors import load_tensors
from worldgym.utils.typed import from_values


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
