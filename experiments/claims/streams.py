"""Random streams of an arm's own: what ran before in the process, or was already loaded, changes nothing.

Dropout draws from torch's global stream, and so does loading a network. An arm that inherits the stream of the arm
before it ends otherwise when the set of runs was interrupted between them.

Example::

    with own_streams("bc_only", 0):
        ...            # torch's, numpy's and Python's global streams begin at what these words give
    # and are afterwards what they were before
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def own_streams(*words: str | int) -> Iterator[None]:
    """Seed the global streams from `words` for the length of the block, then restore them."""
    import torch

    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    np.random.seed(int.from_bytes(digest[8:12], "big"))
    random.seed(digest[12:])
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])
