"""The picture after a chunk: the last picture and the first one, moved as the positions say, and a network that mends.

Objects and hand are moved by one dense flow: near a part's new position the flow is the part's displacement, elsewhere
it is zero. Two pictures are moved: the one before the chunk, and the anchor (the first frame of the episode), from
which an object that was moved many times is copied only once. This is the skip connection of Ebert et al. 2017
(section 4), with flows from positions. The transformer takes each cell from one of them, from the anchor itself, or
predicts it.

Example::

    [(after, log_error)] = network(before, anchor, features, parts, condition)
    several = network(before, anchor, features, parts, condition, members=(0, 1, 2))      # of an ensemble
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldgym.models.chunk.config import HAND, ChunkConfig
from worldgym.models.tokenizers.frame import unit_rms
from worldgym.models.video.latent_shift import FINER, LatentShift, unshuffle
from worldgym.nn import TransformerBlock, from_tokens, to_tokens

SPREAD = (2.6 / 64, 5.0 / 64)
"""Standard deviation of a part's flow, in image widths: an object, the hand."""

EDGE = 0.02
"""Weight of a part at which half of its displacement applies."""


@dataclass
class Parts:
    """Hand and objects before and after a chunk, hand first if there is one: each `(B,P,...)`.

    Args:
        before: `(B,P,2)` positions before the chunk, in image widths.
        after: `(B,P,2)` positions after it.
        first: `(B,P,2)` positions in the anchor.
        present: `(B,P)` probability that the part is in the image.
    """

    before: Tensor
    after: Tensor
    first: Tensor
    present: Tensor


def near(
    where: Tensor, present: Tensor, spread: Tensor, right: Tensor, down: Tensor, power: int = 1
) -> Tensor:
    """Weight `(B,P,h,w)` of each part at each cell: 1 at its position, 0 far from it or if the part is not there.

    A Gaussian of two coordinates is a product. Its exponents are bounded, because a CPU is slow with denormal numbers.

    Args:
        where: `(B,P,2)` positions, in image widths.
        present: `(B,P)` probability that a part is in the image.
        spread: `(P,)` standard deviation of each part, in image widths.
        right: `(w,)` centres of the columns.
        down: `(h,)` centres of the rows.
        power: exponent of the weight.
    """
    factor = -power / (2 * spread.float() ** 2)[:, None]
    across = (factor * (right.float() - where[..., :1].float()).square()).clamp(min=-25).exp()
    along = (factor * (down.float() - where[..., 1:].float()).square()).clamp(min=-25).exp()
    along = along * present[..., None].float() ** power
    return along[..., None] * across[..., None, :]


OUTPUT = ("final", "unembed", "refine", "change", "error", "take")
"""Parts of `Output`; `take` only with parts."""


class Output(nn.Module):
    """The layers that turn tokens into latents. Every member of an ensemble has its own."""

    layers: nn.ModuleList
    final: nn.Linear
    unembed: nn.Linear
    refine: nn.Conv2d
    change: nn.Conv2d
    error: nn.Linear
    take: nn.Conv2d

    def add(self, c: ChunkConfig) -> None:
        """Create the parts named in `OUTPUT`, except `take`."""
        d, p, z, warps = c.width, c.patch, c.tokenizer.latent_channels, 2 if c.parts else 0
        self.final = nn.Linear(d, 2 * d)
        self.unembed = nn.Linear(d, 64 * p * p)
        self.refine = nn.Conv2d(64 + (1 + warps) * z, 64, 3, padding=1)
        self.change = nn.Conv2d(64, z, 3, padding=1)
        self.error = nn.Linear(2 * d, 1)
        for layer in (self.change, self.final, self.error):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def add_take(self) -> None:
        """Create `take`, for a model with parts."""
        self.take = nn.Conv2d(64, 3, 3, padding=1)
        nn.init.zeros_(self.take.weight)
        nn.init.constant_(self.take.bias, -1.0)  # type: ignore[arg-type]

    def shown(
        self, c: ChunkConfig, x: Tensor, condition: Tensor, before: Tensor, anchor: Tensor, moved: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Latents `(B,C,h,w)` and the log of their expected error `(B,)`, from tokens `x (B,N,D)`."""
        shift, scale = self.final(condition)[:, None].chunk(2, -1)
        x = F.layer_norm(x, (c.width,)) * (1 + scale) + shift
        grid = from_tokens(self.unembed(x), c.patch, c.cells)
        hidden = F.silu(self.refine(torch.cat([grid, before, *moved], 1)))
        latents = before.float() + self.change(hidden).float()
        if moved:
            taken = self.take(hidden).float().sigmoid()
            for i, picture in enumerate((*moved, anchor)):
                latents = latents + taken[:, i : i + 1] * (picture.float() - before.float())
        error = self.error(torch.cat([x.mean(1), condition], -1)).float()[:, 0]
        return latents, error


class Ending(Output):
    """The last layers and the output of a further member of an ensemble; those of the first are in `Picture`."""

    def __init__(self, config: ChunkConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_layer(config) for _ in range(config.own_layers))
        self.add(config)
        if config.parts:
            self.add_take()

    def copy_from(self, picture: Picture) -> None:
        """Take over the first member's weights."""
        own = len(self.layers)
        mine = {name: value for name, value in picture.state_dict().items() if name.split(".")[0] in OUTPUT}
        for i, layer in enumerate(picture.layers[-own:]):
            mine |= {f"layers.{i}.{name}": value for name, value in layer.state_dict().items()}
        self.load_state_dict(mine)


def _layer(c: ChunkConfig) -> TransformerBlock:
    return TransformerBlock(c.width, c.heads, activation=nn.SiLU, offset=True)


class Picture(Output):
    """Predicts the latents after a chunk."""

    def __init__(self, config: ChunkConfig) -> None:
        super().__init__()
        c = self.config = config
        d, p, z = c.width, c.patch, c.tokenizer.latent_channels
        rows, columns = c.cells
        self.parts = len(c.parts)
        self.warps = 2 if self.parts else 0
        self.stem = nn.Conv2d((2 + self.warps) * z + 2 * self.parts, 64, 3, padding=1)
        self.embed = nn.Linear(64 * p * p, d)
        self.place = nn.Parameter(torch.randn(rows * columns // p**2, d) * 0.02)
        given = c.chunk * (c.action_dim + 1) + (c.chunk + 1) * c.state_dim
        self.condition = nn.Sequential(nn.Linear(given, d), nn.SiLU(), nn.Linear(d, d), nn.SiLU())
        self.modulate = nn.Linear(d, 6 * d)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        self.layers = nn.ModuleList(_layer(c) for _ in range(c.depth))
        self.add(c)
        if self.parts:  # in this order: optimizer states are saved by the number of a parameter
            self.shift = LatentShift(z)
            self.add_take()
            spread = [SPREAD[name == HAND] for name in c.parts]
            self.register_buffer("spread", torch.tensor(spread), persistent=False)
            objects = [float(name != HAND) for name in c.parts]  # the hand is not copied from the anchor
            self.register_buffer("object", torch.tensor(objects), persistent=False)
            for name, scale in (("fine", FINER), ("coarse", 1)):
                down, right = torch.meshgrid(
                    (torch.arange(rows * scale) + 0.5) / (rows * scale),
                    (torch.arange(columns * scale) + 0.5) / (columns * scale), indexing="ij",
                )  # fmt: skip
                self.register_buffer(name, torch.stack([right, down], -1), persistent=False)
        self.others = nn.ModuleList(Ending(c) for _ in range(c.members - 1))

    # -- flows -------------------------------------------------------------------------------------------------------
    def warp(self, features: Tensor, start: Tensor, after: Tensor, present: Tensor) -> Tensor:
        """Move `features (B,f,4h,4w)` by the flow that takes each part from `start` to `after (B,P,2)`."""
        # The fourth power is nearly a choice: a mean of two parts' displacements would move neither.
        sharp = near(after, present, self.spread, self.fine[0, :, 0], self.fine[:, 0, 1], power=4)
        top = sharp.amax(1).flatten(1).sqrt().sqrt()
        travel = torch.cat([after - start, torch.ones_like(after[..., :1])], 2).float()
        total = travel.transpose(1, 2) @ sharp.flatten(2)  # (B,3,hw)
        flow = total[:, :2] * (top * (1 + EDGE) / ((top + EDGE) * (total[:, 2] + 1e-30)))[:, None]
        grid = 2 * (self.fine[None] - flow.transpose(1, 2).unflatten(1, self.fine.shape[:2])) - 1
        # in float32: three times as fast on a CPU as bfloat16, whose 3 digits are too few for a position
        return F.grid_sample(features.float(), grid, align_corners=False)

    def forward(
        self,
        before: Tensor,
        anchor: Tensor,
        anchor_features: Tensor | None,
        parts: Parts | None,
        given: Tensor,
        members: Sequence[int] = (0,),
    ) -> list[tuple[Tensor, Tensor]]:
        """For each of `members`: latents after the chunk `(B,C,h,w)` float32, the log of their expected error `(B,)`.

        The error is squared and averaged over the latents. All members share one pass of the trunk.

        Args:
            before: `(B,C,h,w)` latents before the chunk.
            anchor: `(B,C,h,w)` latents of the first frame.
            anchor_features: `(B,f,4h,4w)` output of `shift.unfold(anchor)`; None without parts.
            parts: hand and objects; None without parts.
            given: `(B,G)` actions, their mask, and proprioception.
            members: members of the ensemble, from 0.
        """
        c, dtype = self.config, self.embed.weight.dtype
        before, anchor = before.to(dtype), anchor.to(dtype)
        moved: list[Tensor] = []
        maps: list[Tensor] = []
        if parts is not None and anchor_features is not None:
            features = torch.cat([self.shift.unfold(before), anchor_features.to(dtype)])
            after, present = (
                parts.after.repeat(2, 1, 1),
                torch.cat([parts.present, parts.present * self.object]),
            )
            fine = self.warp(features, torch.cat([parts.before, parts.first]), after, present)
            moved = list(
                unit_rms(self.shift.back(unshuffle(fine.to(dtype), FINER)).float()).to(dtype).chunk(2)
            )
            right, down = self.coarse[0, :, 0], self.coarse[:, 0, 1]
            both = (parts.before, parts.after)
            maps = [near(x, parts.present, self.spread, right, down).to(dtype) for x in both]
        grid = self.stem(torch.cat([before, anchor, *moved, *maps], 1))
        x = self.embed(to_tokens(grid, c.patch)) + self.place
        condition = self.condition(given.to(dtype))
        six = self.modulate(condition).unflatten(-1, (6, -1))[:, None]
        shared = c.depth - c.own_layers
        for layer in self.layers[:shared]:
            x = layer(x, modulation=layer.modulation(six))
        found = []
        for member in members:
            own: Any = self.others[member - 1] if member else self
            tokens = x
            for layer in own.layers[shared if own is self else 0 :]:
                tokens = layer(tokens, modulation=layer.modulation(six))
            found.append(own.shown(c, tokens, condition, before, anchor, moved))
        return found
