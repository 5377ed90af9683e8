"""Frames within a chunk, from those at its two ends and from positions: a small network in place of a pass per frame.

Policies and judges read the frame at the end of a chunk. Videos also show the frames before it. Both ends are known by
then, and so is the path of the hand, so a convolutional network interpolates the latents. Objects are placed on the
straight line between their positions at the ends.

Example::

    latents = between(before, after, path, hand, parts)        # (B, k-1, C, h, w)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldgym.models.chunk.config import HAND, ChunkConfig
from worldgym.models.chunk.picture import SPREAD, near
from worldgym.models.tokenizers.frame import ResidualBlock


class Between(nn.Module):
    """Predicts the latents of the frames within a chunk.

    Args:
        config: config of the model; `between_width` is the width of the convolutions.
    """

    def __init__(self, config: ChunkConfig) -> None:
        super().__init__()
        assert config.between_width is not None
        z, w, s = config.tokenizer.latent_channels, config.between_width, config.state_dim
        self.parts = len(config.parts)
        self.hand = config.parts.index(HAND) if HAND in config.parts else None
        self.stem = nn.Conv2d(2 * z + 3 * self.parts + (0 if self.hand is None else 6), w, 3, padding=1)
        self.condition = nn.Sequential(nn.Linear(1 + 3 * s, w), nn.SiLU(), nn.Linear(w, 2 * w))
        self.block = ResidualBlock(w)
        self.out = nn.Conv2d(w, z + 1, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]
        rows, columns = config.cells
        self.register_buffer("right", (torch.arange(columns) + 0.5) / columns, persistent=False)
        self.register_buffer("down", (torch.arange(rows) + 0.5) / rows, persistent=False)
        spread = torch.tensor([SPREAD[name == HAND] for name in config.parts])
        # wide enough that an object between two cells is seen by both
        self.register_buffer("spread", spread.clamp(min=0.5 / min(rows, columns)), persistent=False)

    def maps(self, where: Tensor, present: Tensor) -> Tensor:
        """`(N,P',h,w)`: where the parts at `where (N,P,2)` are, and the hand's offset from each cell in cells."""
        shown = near(where, present, self.spread, self.right, self.down)
        if self.hand is None:
            return shown
        h, w = len(self.down), len(self.right)
        hand = where[:, self.hand]
        right = (self.right - hand[:, :1])[:, None, :].expand(-1, h, -1) * w
        down = (self.down - hand[:, 1:])[:, :, None].expand(-1, -1, w) * h
        offset = torch.stack([right, down], 1)
        return torch.cat([shown, offset.clamp(-2, 2)], 1)

    def forward(
        self,
        before: Tensor,
        after: Tensor,
        path: Tensor,
        start: Tensor | None,
        end: Tensor | None,
        present: Tensor | None,
        hand: Tensor | None,
    ) -> Tensor:
        """Latents `(B,k-1,C,h,w)` float32, not normalised.

        Args:
            before: `(B,C,h,w)` latents before the chunk.
            after: `(B,C,h,w)` latents after it.
            path: `(B,k+1,S)` normalised proprioception before the chunk and after each action, k >= 2.
            start: `(B,P,2)` positions of the parts before the chunk, in image widths; None without parts.
            end: `(B,P,2)` positions after it.
            present: `(B,P)` probability that a part is in the image.
            hand: `(B,k+1,2)` the hand along the path, in image widths; None without a hand.
        """
        k = path.shape[1] - 1
        share = torch.arange(1, k, device=path.device) / k  # (k-1,)
        given = torch.cat(
            [
                share[None, :, None].expand(len(path), -1, 1), path[:, :1].expand(-1, k - 1, -1), path[:, 1:-1],
                path[:, -1:].expand(-1, k - 1, -1),
            ], -1,
        )  # fmt: skip
        ends = [before[:, None].expand(-1, k - 1, -1, -1, -1), after[:, None].expand(-1, k - 1, -1, -1, -1)]
        shown = [x.flatten(0, 1) for x in ends]
        if start is not None and end is not None and present is not None:
            now = start[:, None] + share[None, :, None, None] * (end - start)[:, None]
            if self.hand is not None and hand is not None:
                now = now.clone()
                now[:, :, self.hand] = hand[:, 1:-1]
            fixed = [
                self.maps(x, present)[:, None].expand(-1, k - 1, -1, -1, -1).flatten(0, 1)
                for x in (start, end)
            ]
            shown += [*fixed, self.maps(now.flatten(0, 1), present.repeat_interleave(k - 1, 0))]
        x = torch.cat(shown, 1).contiguous(memory_format=torch.channels_last)
        scale, shift = self.condition(given.flatten(0, 1))[..., None, None].chunk(2, 1)
        x = self.block(F.silu(self.stem(x) * (1 + scale) + shift))
        out = self.out(F.silu(x)).float()
        # starts from the nearer end; the network corrects
        weight = torch.sigmoid(out[:, :1] + (12 * (share - 0.5)).repeat(len(path))[:, None, None, None])
        first, last = (x.flatten(0, 1).float() for x in ends)
        return (first + weight * (last - first) + out[:, 1:]).unflatten(0, (len(path), k - 1))
