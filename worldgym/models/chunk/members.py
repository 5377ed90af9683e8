"""An ensemble within one chunk world model: members share the trunk and differ in what follows it.

Each member has its own last layers of the picture network and its own network that moves the objects, and is trained on
its own bootstrap sample of the episodes (`worldgym.training.chunk_data.bootstrap`). An imagined episode follows one
member. At every chunk all members predict from its state, and their disagreement is the epistemic uncertainty (RWM-U,
arXiv 2504.16680, which shares a GRU trunk):

    u = mean_z var_m(z_m) + sum_i p_i var_m(x_mi) / (w^2 max(1, sum_i p_i))

with the latents z (unit mean square), the positions x of objects, the probability p that an object is in the image, and
the width w of an object's flow (`worldgym.models.chunk.picture.SPREAD`). Pictures are compared at the positions of the
episode's own member, so that the trunk runs once.

An environment draws the member of a slot from the seed of that slot. Attempts of RL that share a start frame follow the
same member, as they share all other noise.

Example::

    slots = own_slots([motion(slots, path, hand) for motion in model.motions], state.member)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from worldgym.models.chunk.picture import SPREAD
from worldgym.models.chunk.slots import Slots

LEAST = 1e-12  # variance of members that agree exactly; only its logarithm is used


def own_rows(values: Tensor, member: Tensor) -> Tensor:
    """Row i of `values (M,B,...)` from the member `member[i]`, `(B,...)`."""
    return values[member, torch.arange(len(member), device=member.device)]


def own_slots(each: Sequence[Slots], member: Tensor | None) -> Slots:
    """The slots that the member of each episode predicts."""
    if member is None:
        return each[0]
    fields = ([s.positions for s in each], [s.present for s in each], [s.memory for s in each])
    return Slots(*(own_rows(torch.stack(values), member) for values in fields), each[0].which)


def own_picture(found: Sequence[tuple[Tensor, Tensor]], member: Tensor | None) -> tuple[Tensor, Tensor]:
    """Latents of the member of each episode, and the log of the uncertainty `(B,)`: own error, or disagreement.

    Args:
        found: for each member the latents `(B,C,h,w)` and the log of their expected error `(B,)`.
        member: `(B,)` int64; None for a single model.
    """
    if member is None:
        return found[0]
    latents = torch.stack([z for z, _ in found])
    spread = latents.var(0, correction=0).mean((1, 2, 3))
    return own_rows(latents, member), (spread + LEAST).log()


def disagreement_of_places(each: Sequence[Slots]) -> Tensor | None:
    """Log of the variance `(B,)` of the positions of objects, in widths of an object; None for a single model."""
    if len(each) < 2 or not each[0].positions.shape[1]:
        return None
    where = torch.stack([slots.positions for slots in each])
    there = torch.stack([slots.present for slots in each]).mean(0)
    spread = (where.var(0, correction=0).sum(-1) * there).sum(1) / there.sum(1).clamp(min=1)
    return (spread / SPREAD[False] ** 2 + LEAST).log()
