"""Inputs and outputs of a `VLAPolicy`'s network, and the pixel coordinates that it reads.

Example::

    coordinates((64, 64)).shape      # (2, 64, 64)
    cells((64, 64), 8)               # 64 tokens of an image
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from agents.policies.goal_head import GoalProposals


class Inputs(NamedTuple):
    """Inputs of the network.

    Args:
        picture: `(B,5,H,W)` main camera: colours in [-1, 1] and pixel coordinates.
        words: `(B,E)` standardised embedding of the instruction.
        state: `(B,S)` standardised proprioception.
        views: images of the further cameras, by camera name.
        future: image of the main camera later in the episode, for a policy with `future_view`.
    """

    picture: Tensor
    words: Tensor
    state: Tensor
    views: dict[str, Tensor]
    future: Tensor | None = None

    def rows(self, part: slice) -> Inputs:
        """Some rows."""
        views = {name: view[part] for name, view in self.views.items()}
        future = None if self.future is None else self.future[part]
        return Inputs(self.picture[part], self.words[part], self.state[part], views, future)


class PolicyForward(NamedTuple):
    """Outputs of one forward pass.

    Args:
        features: `(B, chunk, width)`, inputs of the action head.
        goal: `(B, goal_dims)` next keyframe, standardised; its first two entries are the position to move to.
        pointing: distribution over that position, see `agents.policies.goal_head`.
        hidden: tokens `(B, N, width)` after each transformer layer.
    """

    features: Tensor
    goal: Tensor
    pointing: GoalProposals
    hidden: tuple[Tensor, ...]


def coordinates(size: tuple[int, int]) -> Tensor:
    """`(2,H,W)` pixel centres in [-1,1], x then y."""
    rows, columns = ((torch.arange(side) + 0.5) / side * 2 - 1 for side in size)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y])


def shrunk(size: tuple[int, int], factor: int) -> tuple[int, int]:
    """Image size after convolutions with total stride `factor`; sides are rounded up."""
    return -(-size[0] // factor), -(-size[1] // factor)


def cells(size: tuple[int, int], factor: int) -> int:
    """Number of cells of an image of this size after convolutions with total stride `factor`."""
    height, width = shrunk(size, factor)
    return height * width
