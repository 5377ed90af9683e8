"""Predicts where the hand moves next: from image, instruction and proprioception to a distribution over positions.

This is a separate part because most errors of a policy on a table with several objects concern *where* it moves, which
is only two numbers. The head predicts a distribution over 256 image cells, each with its own position. Supervised
training fits it as a mixture density, which commits to one object where regression would average between two. RL
updates it as one choice among the objects, with a far less noisy gradient than that of the twenty action tokens that
follow from the choice.

Example::

    pointer = GoalHead(config)
    pointing = pointer(image, text, state)                    # scores (B, 256), places (B, 256, 2)
    aim = pointer.likeliest(pointing)                         # (B, 2) standardised x, y
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from agents.policies.layers import FiLMBlock
from agents.policies.vla_config import VLAPolicyConfig
from worldgym.utils.devices import autocast, multinomial

WIDTH = 64  # dimension of the dot product between text and image features
REACH = 0.25  # standardised distance within which cells count as one position: about 2 cm on a table of half a metre
MIN_LOG_SIGMA = -2.0


class GoalProposals(NamedTuple):
    """Output of a goal head.

    Args:
        scores: `(B,M)` unnormalised log-probability of each of M = h w cells.
        places: `(B,M,2)` x, y proposed by each cell, standardised as proprioception.
    """

    scores: Tensor
    places: Tensor


class NoGoalHead(nn.Module):
    """Replaces `GoalHead` if proprioception has no known position columns: one cell that depends on no input.

    It has the methods of `GoalHead`; probabilities are 1 and positions are zeros.
    """

    def forward(self, image: Tensor, text: Tensor, state: Tensor) -> GoalProposals:
        """One cell per row."""
        return GoalProposals(image.new_zeros(len(image), 1), image.new_zeros(len(image), 1, 2))

    def likeliest(self, pointing: GoalProposals) -> Tensor:
        """`(B,2)` zeros."""
        return pointing.places[:, 0]

    def sample(
        self, pointing: GoalProposals, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """`(B,2)` zeros; uses no random numbers."""
        return pointing.places[:, 0]

    def log_prob(self, pointing: GoalProposals, place: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
        """`(B,)` zeros."""
        return pointing.scores[:, 0]

    def log_density(self, pointing: GoalProposals, wanted: Tensor) -> Tensor:
        """`(B,)` zeros."""
        return pointing.scores[:, 0]


class GoalHead(nn.Module):
    """Image, text and proprioception -> mixture of positions.

    Args:
        config: sizes of the policy.
    """

    def __init__(self, config: VLAPolicyConfig) -> None:
        super().__init__()
        c1, c2, _ = config.stem
        width = config.width
        self.side, self.bf16 = tuple(-(-side // 4) for side in config.size), config.bf16
        self.text = nn.Sequential(nn.Linear(config.text_dim, width), nn.GELU(), nn.Linear(width, width))
        self.conv1 = nn.Conv2d(5, c1, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(c1, c2, 3, stride=2, padding=1)
        self.block2 = FiLMBlock(c2, width)
        self.block3 = FiLMBlock(c2, width)
        self.query = nn.Sequential(
            nn.Linear(width + config.state_dim, width), nn.GELU(), nn.Linear(width, WIDTH)
        )
        self.keys = nn.Conv2d(c2, WIDTH, 1)
        self.nudge = nn.Conv2d(c2, 2, 1)
        self.drop = nn.Dropout(config.dropout)
        for parameter in self.nudge.parameters():
            nn.init.zeros_(parameter)
        # Initial x, y of a pixel in the standardised workspace: +x is right, +y is up (front camera). SFT adapts it.
        self.warp = nn.Linear(2, 2)
        with torch.no_grad():
            self.warp.weight.copy_(torch.tensor([[2.5, 0.0], [0.0, -2.5]]))
            self.warp.bias.zero_()
        self.log_sigma = nn.Parameter(torch.tensor(-0.7))
        rows, columns = ((torch.arange(side) + 0.5) / side * 2 - 1 for side in self.side)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        self.register_buffer("cells", torch.stack([x, y], -1).flatten(0, 1), persistent=False)
        self.cells: Tensor

    def forward(self, image: Tensor, text: Tensor, state: Tensor) -> GoalProposals:
        """Score all cells and propose a position for each.

        Args:
            image: `(B,5,H,W)` float, colours in [-1, 1] and pixel coordinates.
            text: `(B,E)` standardised embedding.
            state: `(B,S)` normalised proprioception.
        """
        with autocast(image.device, self.bf16):
            words = self.text(text)
            x = nn.functional.gelu(self.conv1(image.contiguous(memory_format=torch.channels_last)))
            x = self.block3(self.block2(nn.functional.gelu(self.conv2(x)), words), words)
            query = self.query(torch.cat([self.drop(words), state.to(words.dtype)], -1))
            keys, nudge = self.keys(x), self.nudge(x)
        with torch.autocast(image.device.type, enabled=False):  # bf16 has 3 digits, too few: one pixel is 1/32
            scores = (query.float()[:, None] @ keys.float().flatten(2)).squeeze(1) * WIDTH**-0.5
            offset = 0.5 * torch.tanh(nudge.float().flatten(2).transpose(1, 2))
            return GoalProposals(scores, self.warp(self.cells) + offset)

    def best(self, pointing: GoalProposals) -> Tensor:
        """`(B,)` centre cell of the most likely position; probabilities of nearby cells with one position add up."""
        share = pointing.scores.softmax(-1).unflatten(-1, (1, *self.side))
        return nn.functional.avg_pool2d(share, 3, 1, 1).flatten(1).argmax(-1)

    def around(self, pointing: GoalProposals, cell: Tensor) -> Tensor:
        """`(B,2)` consensus position of the cells near `cell (B,)`: two mean-shift steps."""
        place = pointing.places.gather(1, cell[:, None, None].expand(-1, 1, 2))
        for _ in range(2):
            near = (pointing.places - place).square().sum(-1) / (2 * REACH**2)
            place = (pointing.scores - near).softmax(-1)[:, None] @ pointing.places
        return place.squeeze(1)

    def likeliest(self, pointing: GoalProposals) -> Tensor:
        """`(B,2)` most likely position, which a greedy policy moves to."""
        return self.around(pointing, self.best(pointing))

    def sample(
        self, pointing: GoalProposals, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """`(B,2)` positions: draws a cell (log-probabilities divided by `temperature`), then takes its `around`.

        Exploration therefore tries the candidate objects, each at its centre.
        """
        share = (pointing.scores / temperature).softmax(-1)
        return self.around(pointing, multinomial(share, 1, generator).squeeze(1))

    def log_prob(self, pointing: GoalProposals, place: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
        """`(B,)` log-probability of drawing a cell that proposes `place (B,2)`; `temperature` may be `(B,1)`.

        All cells around an object propose the same position, so their probabilities add up. The contribution of a cell
        falls off with the distance of its position from `place`, as a Gaussian of width `REACH`.
        """
        near = (pointing.places - place[:, None]).square().sum(-1) / (2 * REACH**2)
        return torch.logsumexp((pointing.scores / temperature).log_softmax(-1) - near, -1)

    def log_density(self, pointing: GoalProposals, wanted: Tensor) -> Tensor:
        """`(B,)` log-density of the mixture of Gaussians at `wanted (B,2)`; supervised training maximises it."""
        log_sigma = self.log_sigma.clamp(min=MIN_LOG_SIGMA)
        squared = (pointing.places - wanted[:, None]).square().sum(-1)
        bump = -squared / (2 * (2 * log_sigma).exp()) - 2 * log_sigma - math.log(2 * math.pi)
        return torch.logsumexp(pointing.scores.log_softmax(-1) + bump, -1)


def distinct(
    scores: Tensor, count: int, same: Tensor, generator: torch.Generator | None
) -> tuple[list[int], Tensor]:
    """Draw `count` of M choices without replacement of their neighbourhoods.

    Args:
        scores: `(M,)` unnormalised log-probabilities.
        count: number of draws. If the probability of all places that remain is below one in a thousand, the drawn
            places are available again.
        same: `(M,M)` bool, whether two choices are the same place; a drawn place is not drawn again.
        generator: source of the Gumbel noise.

    Returns:
        the drawn choices, and their weights `(count,)` with mean 1.
    """
    log_p = scores.double().log_softmax(-1)
    noise = torch.rand(len(scores), generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    perturbed = log_p - (-noise.log()).log()
    open_ = torch.ones(len(scores), dtype=torch.bool)
    drawn: list[int] = []
    share: list[float] = []
    rounds = [0]
    for _ in range(count):
        if float(log_p[open_].exp().sum()) < 1e-3 or not bool(open_.any()):
            open_[:] = True
            rounds.append(len(drawn))
        best = int(torch.where(open_, perturbed, torch.full_like(perturbed, -torch.inf)).argmax())
        drawn.append(best)
        share.append(float(torch.logsumexp(log_p[same[best] & open_], 0)))
        open_ &= ~same[best]
    weights = torch.ones(count, dtype=torch.float64)
    if len(rounds) == 1 and bool(open_.any()):
        # Probability of a place to be among the `count` largest, given the next largest value (Kool et al. 2020).
        last = float(torch.where(open_, perturbed, torch.full_like(perturbed, -torch.inf)).max())
        inside = 1 - torch.exp(-torch.exp(torch.tensor(share, dtype=torch.float64) - last))
        weights = torch.tensor(share, dtype=torch.float64).exp() / inside.clamp(min=1e-6)
    else:  # every place was drawn: each counts by its probability, divided among its draws
        weights = torch.tensor(share, dtype=torch.float64).exp()
    return drawn, (weights * count / weights.sum()).float()
