"""Action heads on a language model; the interface is that of `agents.policies.heads`, with a `Context` as features.

Example::

    actions, log_probs, trace = head.sample(context, 1.0, generator)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from agents.policies.heads.bins import Bins
from agents.policies.heads.flow import FlowHead
from agents.policies.hf.config import HFVLAConfig
from agents.policies.hf.expert import ActionExpert
from worldgym.utils.devices import multinomial


class VocabularyBins(Bins):
    """Action tokens on the last `n_bins` ids of a language model's vocabulary (RT-2, OpenVLA)."""

    def __init__(self, config: HFVLAConfig, width: int) -> None:
        super().__init__(config.action_dim, config.n_bins, config.binary_dims)
        self.chunk = config.chunk
        self.slots = nn.Parameter(0.02 * torch.randn(self._count(config), width))

    @staticmethod
    def _count(config: HFVLAConfig) -> int:
        return config.chunk * config.action_dim

    def _shaped(self, logits: Tensor) -> Tensor:
        return logits.view(len(logits), self.chunk, self.action_dim, self.n_bins) + self.bin_mask


class ParallelTokens(VocabularyBins):
    """All tokens of a chunk in one pass: learned slots that attend to the prefix and to each other in both directions.

    OpenVLA-OFT (arXiv 2502.19645, section 4.1), with the output layer of the language model kept, so that each action
    has a probability.
    """

    def logits(self, features: Any, tokens: Tensor | None = None) -> Tensor:
        """See `Bins`."""
        count = len(self.slots)
        slots = self.slots.expand(len(features), -1, -1)
        hidden = features.read(slots, torch.ones(count, count, dtype=torch.bool))
        return self._shaped(features.logits(hidden))

    def sample(self, features: Any, temperature: float, generator: torch.Generator | None) -> Any:
        """See `Head`; trace `tokens (B,K,A)` int64."""
        logits = self.logits(features)
        log_probs = torch.log_softmax(logits / (temperature or 1.0), dim=-1)
        if temperature == 0:
            tokens = logits.argmax(-1)
        else:
            tokens = multinomial(log_probs.exp().flatten(0, -2), 1, generator).view(logits.shape[:-1])
        return self.actions_of(tokens), log_probs.gather(-1, tokens[..., None])[..., 0], {"tokens": tokens}


class AutoregressiveTokens(VocabularyBins):
    """One token after the other, each conditioned on those before it (RT-2; OpenVLA, arXiv 2406.09246, section 3)."""

    @staticmethod
    def _count(config: HFVLAConfig) -> int:
        return 1  # the token in front of the first action

    def logits(self, features: Any, tokens: Tensor | None = None) -> Tensor:
        """See `Bins`; `tokens` are required."""
        assert tokens is not None
        flat = tokens.flatten(1)
        begin = self.slots.expand(len(features), -1, -1)
        embeds = torch.cat([begin, features.embed(flat[:, :-1]).to(begin.dtype)], 1)
        order = torch.ones(flat.shape[1], flat.shape[1], dtype=torch.bool).tril()
        return self._shaped(features.logits(features.read(embeds, order)))

    def sample(self, features: Any, temperature: float, generator: torch.Generator | None) -> Any:
        """See `Head`; trace `tokens (B,K,A)` int64."""
        tokens, chosen = [], []
        embeds = self.slots.expand(len(features), -1, -1)
        for step in range(self.chunk * self.action_dim):
            logits = (
                features.logits(features.extend(embeds, step))[:, 0] + self.bin_mask[step % self.action_dim]
            )
            log_probs = torch.log_softmax(logits / (temperature or 1.0), dim=-1)
            if temperature == 0:
                token = log_probs.argmax(-1, keepdim=True)
            else:
                token = multinomial(log_probs.exp(), 1, generator)
            tokens.append(token)
            chosen.append(log_probs.gather(-1, token))
            embeds = features.embed(token)
        shape = (len(features), self.chunk, self.action_dim)
        drawn = torch.cat(tokens, 1).view(shape)
        return self.actions_of(drawn), torch.cat(chosen, 1).view(shape), {"tokens": drawn}


class ExpertFlow(FlowHead):
    """Flow matching with an action expert that attends to the keys and values of the language model (pi0)."""

    def __init__(self, config: HFVLAConfig, decoder: Any) -> None:
        nn.Module.__init__(self)
        self._set(config.chunk, config.action_dim, config.flow_steps, config.flow_noise)
        self.expert = ActionExpert(
            decoder,
            width=config.expert_width,
            ffn=config.expert_ffn,
            chunk=config.chunk,
            action_dim=config.action_dim,
        )

    def velocity(self, features: Any, x: Tensor, t: Tensor) -> Tensor:
        """Velocity `(B,K,A)` at `x (B,K,A)` and time `t (B,)`."""
        found: Tensor = self.expert(features, x, t)
        return found


def make_hf_head(config: HFVLAConfig, decoder: Any) -> Any:
    """The head that the config names."""
    if config.head == "flow":
        return ExpertFlow(config, decoder)
    kind = ParallelTokens if config.head == "parallel" else AutoregressiveTokens
    return kind(config, decoder.config.hidden_size)
