"""What an import makes of recordings: listed episodes, their parts that become episodes, and the scan of all rows.

Example::

    for item in folder.items:
        item.place.index, item.part.instruction
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from worldgym.data.formats.recording import Part


class Listed(Protocol):
    """A recorded episode: its number, its number of rows, and the file that it is read from."""

    @property
    def index(self) -> int: ...

    @property
    def length(self) -> int: ...

    @property
    def data(self) -> Path: ...


@dataclass(frozen=True)
class Item:
    """A part of a recorded episode, which becomes one episode of the dataset."""

    place: Any  # a `Listed`, of the type of its format
    number: int
    part: Part


@dataclass(frozen=True)
class Scan:
    """Result of reading all rows, before any frame is decoded.

    Args:
        items: the episodes to make, in order.
        actions: for each item, `(T, A)` as recorded or resampled.
        state_dim: proprioception dimension, S.
        lost: by recorded episode, the number of rows with an action that belongs to no item.
        hash: hash of all values that were read.
    """

    items: list[Item]
    actions: list[np.ndarray]
    state_dim: int
    lost: dict[int, int]
    hash: str
