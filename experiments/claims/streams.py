"""Separate random streams for each arm, independent of what ran or was loaded before in the process.

Dropout and the initialisation of networks draw from torch's global stream. If an arm continued the stream of the arm
before it, its result would change when a set of runs is interrupted between the two.

Example::

    with own_streams("bc_only", 0):
        ...            # the global streams of torch, numpy and Python are seeded from these words
    # afterwards the earlier states are restored
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def own_streams(*words: str | int) -> Iterator[None]:
    """Seed the global random streams from `words` inside the block, and restore them afterwards."""
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
