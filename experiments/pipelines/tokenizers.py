"""Load the tokenizer of a world model, or from a run folder of `worldgym train tokenizer`.

Example::

    tokenizer = load_tokenizer(None, Path("runs/tokenizer"))
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from worldgym.errors import ConfigError

if TYPE_CHECKING:
    from worldgym.models import FrameTokenizer


def load_tokenizer(world_model: Path | None, tokenizer: Path | None) -> FrameTokenizer | None:
    """Load the tokenizer of a world model, or of `worldgym train tokenizer`; None if neither is given."""
    if world_model is not None:
        from worldgym.models import load_world_model

        found: FrameTokenizer | None = getattr(load_world_model(world_model), "tokenizer", None)
        if found is None:
            raise ConfigError(f"the world model {world_model} has no tokenizer; do not set --world-model")
        return found
    if tokenizer is None:
        return None
    from worldgym.models.tokenizers.saved import read_tokenizer

    return read_tokenizer(tokenizer)
