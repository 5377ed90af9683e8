"""Logs for training a chunk world model: latents, proprioception and positions.

Example::

    data = ChunkEpisodes.encode(model, arrays)
    index, mask, _, _ = data.episodes.draw(batch=96, length=40, generator=generator)
    given = labels(model, data, index, mask, k=5)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldgym.models.chunk.world_model import ChunkWorldModel
from worldgym.training.pictures import Pictures
from worldgym.training.world_model import LatentEpisodes


@dataclass
class ChunkEpisodes:
    """Encoded logs with positions.

    Args:
        episodes: latents, actions and proprioception.
        where: `(F,P,2)` positions of the parts in image widths; None without a probe.
        present: `(F,P)` probability that a part is in the image; None without a probe.
        counts: `(M,E)` how often each episode is in the sample of each member of an ensemble; None for a single model.
    """

    episodes: LatentEpisodes
    where: Tensor | None
    present: Tensor | None
    counts: Tensor | None = None

    @staticmethod
    def encode(model: ChunkWorldModel, arrays: Any) -> ChunkEpisodes:
        """Encode logs with the model's tokenizer, and locate the parts with its probe."""
        episodes = LatentEpisodes.encode(model.tokenizer, arrays, model.canvas)
        if model.locator is None:
            return ChunkEpisodes(episodes, None, None)
        pictures = Pictures.of(arrays, model.canvas)
        parts = [model.locate(pictures[i : i + 512]) for i in range(0, len(pictures), 512)]
        return ChunkEpisodes(episodes, torch.cat([p for p, _ in parts]), torch.cat([p for _, p in parts]))


def bootstrap(members: int, sources: np.ndarray, seed: int = 0) -> Tensor | None:
    """How often each episode is in the bootstrap sample of each member, `(M,E)` float32; None for one member.

    Each member draws as many recorded episodes as there are, with replacement. The counts weigh the losses, so that all
    members learn from the same batches.

    Args:
        members: M.
        sources: `(E,)` number of the recorded episode that each episode is, or is an augmented copy of.
        seed: seed of the samples.
    """
    if members < 2:
        return None
    _, source = np.unique(sources, return_inverse=True)
    each = int(source.max()) + 1
    drawn = np.random.default_rng((seed, 77)).multinomial(each, np.full(each, 1 / each), size=members)
    return torch.from_numpy(drawn[:, source].astype(np.float32))


@dataclass
class Labels:
    """True proprioception and positions in B windows of n chunks of k actions.

    Args:
        states: `(B,n k+1,S)` normalised.
        last: `(B,S)` change before the first frame, normalised.
        before: `(B,A)` action before the first frame; zeros at the start of an episode.
        actions: `(B,n k,A)`.
        mask: `(B,n k)` bool, real frames.
        where: `(B,n+1,P,2)` positions at the ends of chunks.
        present: `(B,n+1,P)` bool.
        counts: `(M,B)` how often the episode of each window is in the sample of each member; None for a single model.
    """

    states: Tensor
    last: Tensor
    before: Tensor
    actions: Tensor
    mask: Tensor
    where: Tensor
    present: Tensor
    counts: Tensor | None = None


def labels(model: ChunkWorldModel, data: ChunkEpisodes, index: Tensor, mask: Tensor, k: int) -> Labels:
    """Labels of the windows with frames `index (B,n k+1)`."""
    e = data.episodes
    begin = torch.from_numpy(np.asarray(e.offsets)[:-1])
    episode = torch.searchsorted(begin, index[:, 0].contiguous(), right=True) - 1
    first = begin[episode]
    inside = (index[:, 0] > first)[:, None]
    acted = torch.where(inside, e.actions[(index[:, 0] - 1).clamp(min=0)], torch.zeros(1, model.action_dim))
    states = model.normalise_state(e.states[index].to(model.device))
    earlier = model.normalise_state(e.states[torch.maximum(index[:, 0] - 1, first)].to(model.device))
    ends, parts = index[:, ::k], len(model.config.parts)
    counts = None if data.counts is None else data.counts[:, episode].to(model.device)
    where = torch.zeros(*ends.shape, parts, 2) if data.where is None else data.where[ends]
    present = torch.zeros(*ends.shape, parts) if data.present is None else data.present[ends]
    return Labels(
        states, states[:, 0] - earlier, acted.to(model.device), e.actions[index[:, :-1]].to(model.device),
        mask.to(model.device), where.to(model.device), present.to(model.device) > 0.5, counts,
    )  # fmt: skip
