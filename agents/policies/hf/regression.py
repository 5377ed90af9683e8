"""Continuous actions by regression on the hidden states of action slots: the L1 head of OpenVLA-OFT.

Kim, Finn, Liang 2025 (arXiv 2502.19645), section 4.1: the slots of a chunk are read in one pass, the hidden states of
the A slots of an action are put side by side, and a residual MLP maps them to the action. Maximum likelihood of a
Laplace distribution is the least absolute error, so the head also has exact log-probabilities around its prediction.

Example::

    policy = HFVLAPolicy.from_vlm("models/openvla-oft", specs, unnorm_key="libero_spatial_no_noops")
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from agents.policies.heads.base import Head
from agents.policies.hf.config import HFVLAConfig
from worldgym.utils.devices import rand


class Slots(nn.Module):
    """The slots of an action chunk behind the prefix, and their hidden states.

    Args:
        config: `slots` is `learned` (an embedding for each slot, in front of which the prefix does not look) or `oft`
            (zero embeddings and a last token, all tokens attend to all; the state in front of a slot is read).
        width: D of the language model.
    """

    def __init__(self, config: HFVLAConfig, width: int) -> None:
        super().__init__()
        self.count, self.begin_id, self.end_id = (
            config.chunk * config.action_dim,
            config.begin_id,
            config.end_id,
        )
        self.published = config.slots == "oft"
        if not self.published:
            self.slots = nn.Parameter(0.02 * torch.randn(self.count, width))

    def forward(self, features: Any) -> Tensor:
        """Hidden states `(B, K A, D)`."""
        if not self.published:
            both = torch.ones(self.count, self.count, dtype=torch.bool)
            hidden: Tensor = features.read(self.slots.expand(len(features), -1, -1), both)
            return hidden
        prefix = features.prefix.embeds
        zeros = prefix.new_zeros(1, self.count, prefix.shape[-1])
        end = features.word(self.end_id)[None].to(prefix.dtype)
        # The first slot is read at the token in front of it: the one that begins the actions, or the prefix's last.
        begin = [] if self.begin_id is None else [features.word(self.begin_id)[None].to(prefix.dtype)]
        embeds = torch.cat([*begin, zeros, end], 1).expand(len(features), -1, -1)
        found: Tensor = features.read_all(embeds, before=0 if begin else 1)
        return found[:, : self.count]


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(x)  # type: ignore[no-any-return]


class ResidualMLP(nn.Module):
    """LayerNorm, a linear layer, residual blocks, LayerNorm, a linear layer; names are those of published files.

    Args:
        inputs: width of the input.
        width: width of the blocks.
        outputs: width of the output.
        blocks: number of blocks.
    """

    def __init__(self, inputs: int, width: int, outputs: int, blocks: int = 2) -> None:
        super().__init__()
        self.layer_norm1, self.fc1 = nn.LayerNorm(inputs), nn.Linear(inputs, width)
        self.mlp_resnet_blocks = nn.ModuleList(_Block(width) for _ in range(blocks))
        self.layer_norm2, self.fc2 = nn.LayerNorm(width), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., inputs)` to `(..., outputs)`."""
        x = torch.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        out: Tensor = self.fc2(self.layer_norm2(x))
        return out


class Regression(Head):
    """Regressed actions with a Laplace distribution around them.

    Args:
        config: `l1_scale` is the scale of the distribution, in units of the head's actions: those between
            `action_low` and `action_high`, mapped to [-1, 1].
        width: D of the language model.
    """

    def __init__(self, config: HFVLAConfig, width: int) -> None:
        super().__init__()
        self.chunk, self.action_dim = config.chunk, config.action_dim
        self.slots = Slots(config, width)
        self.model = ResidualMLP(width * config.action_dim, width, config.action_dim)
        low, high = (torch.tensor(ends) for ends in config.range)
        self.register_buffer("centre", (low + high) / 2, persistent=False)
        self.register_buffer("reach", (high - low) / 2, persistent=False)
        self.centre: Tensor
        self.reach: Tensor
        self.scale = config.l1_scale

    def mean(self, features: Any) -> Tensor:
        """`(B,K,A)`, in units of the head."""
        hidden = self.slots(features)
        found: Tensor = self.model(hidden.reshape(len(hidden), self.chunk, -1))
        return found.float()

    def actions_of(self, drawn: Tensor) -> Tensor:
        """Actions of the policy, in [-1, 1]."""
        return (self.centre + self.reach * drawn).clamp(-1, 1)

    def _log_prob(self, drawn: Tensor, mean: Tensor, heat: Tensor | float) -> Tensor:
        scale = self.scale * torch.as_tensor(heat, device=mean.device)
        return -(drawn - mean).abs() / scale - (2 * scale).log()

    def sample(
        self, features: Any, temperature: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """See `Head`; trace `drawn (B,K,A)`, in units of the head and not cut."""
        mean = self.mean(features)
        drawn = mean
        if temperature:
            u = (rand(mean.shape, generator, mean.device) - 0.5).clamp(-0.4999999, 0.4999999)
            drawn = mean - self.scale * temperature * u.sign() * torch.log1p(-2 * u.abs())
        return self.actions_of(drawn), self._log_prob(drawn, mean, temperature or 1.0), {"drawn": drawn}

    def evaluate(
        self, features: Any, trace: Mapping[str, Tensor], temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Head`; each `(B,K,A)`."""
        heat = torch.where(temperature == 0, 1.0, temperature).view(-1, 1, 1)
        mean = self.mean(features)
        entropy = (1 + math.log(2 * self.scale) + heat.log()).expand_as(mean)
        return self._log_prob(trace["drawn"], mean, heat), entropy

    def loss(self, features: Any, actions: Tensor, known: Tensor) -> Tensor:
        """Mean absolute error, in units of the head."""
        wanted = (actions - self.centre) / self.reach
        return (wanted - self.mean(features)).abs()[known].mean()
