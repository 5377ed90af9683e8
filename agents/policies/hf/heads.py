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
from agents.policies.hf.fast import FastTokens
from agents.policies.hf.regression import Regression, Slots
from worldgym.utils.devices import multinomial


class VocabularyBins(Bins):
    """Action tokens on the last ids of a language model's vocabulary (RT-2, OpenVLA).

    Each dimension is cut into `n_bins` cells of equal size, between `action_low` and `action_high`; an action of a
    cell is its centre, in the units of the policy's actions, and at most 1 in size.
    """

    def __init__(self, config: HFVLAConfig) -> None:
        super().__init__(config.action_dim, config.n_bins, config.binary_dims)
        self.chunk = config.chunk
        low, high = (torch.tensor(ends)[:, None] for ends in config.range)
        self.register_buffer("low", low[:, 0], persistent=False)
        self.register_buffer("cell", (high - low)[:, 0] / config.n_bins, persistent=False)
        self.low: Tensor
        self.cell: Tensor
        centres = low + (torch.arange(config.n_bins) + 0.5) * (high - low) / config.n_bins
        plain = [dim for dim in range(config.action_dim) if dim not in config.binary_dims]
        self.centres[plain] = centres[plain].clamp(-1, 1)

    def tokens_of(self, actions: Any) -> Tensor:
        """Cells of `actions (...,A)`; a binary dimension uses the sign (0 counts as open)."""
        actions = torch.as_tensor(actions, dtype=torch.float32, device=self.centres.device)
        tokens = ((actions - self.low) / self.cell).floor().clamp(0, self.n_bins - 1).long()
        for dim in self.binary_dims:
            tokens[..., dim] = (actions[..., dim] >= 0).long()
        return tokens

    def _shaped(self, logits: Tensor) -> Tensor:
        return logits.view(len(logits), self.chunk, self.action_dim, self.n_bins) + self.bin_mask


class ParallelTokens(VocabularyBins):
    """All tokens of a chunk in one pass: learned slots that attend to the prefix and to each other in both directions.

    OpenVLA-OFT (arXiv 2502.19645, section 4.1), with the output layer of the language model kept, so that each action
    has a probability.
    """

    def __init__(self, config: HFVLAConfig, width: int) -> None:
        super().__init__(config)
        self.read = Slots(config, width)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *args: Any) -> None:
        if (earlier := f"{prefix}slots") in state:  # saved before slots were a module
            state[f"{prefix}read.slots"] = state.pop(earlier)
        super()._load_from_state_dict(state, prefix, *args)

    def logits(self, features: Any, tokens: Tensor | None = None) -> Tensor:
        """See `Bins`."""
        return self._shaped(features.logits(self.read(features)))


class AutoregressiveTokens(VocabularyBins):
    """One token after the other, each conditioned on those before it (RT-2; OpenVLA, arXiv 2406.09246, section 3)."""

    def __init__(self, config: HFVLAConfig, width: int) -> None:
        super().__init__(config)
        self.begin_id = config.begin_id
        if config.begin_id is None:
            self.slots = nn.Parameter(0.02 * torch.randn(1, width))

    def _begin(self, features: Any) -> Tensor:
        """The token `(B,1,D)` in front of the first action."""
        one = self.slots if self.begin_id is None else features.word(self.begin_id)[None]
        return one.expand(len(features), 1, -1)

    def logits(self, features: Any, tokens: Tensor | None = None) -> Tensor:
        """See `Bins`; `tokens` are required."""
        assert tokens is not None
        flat = tokens.flatten(1)
        begin = self._begin(features)
        embeds = torch.cat([begin, features.embed(flat[:, :-1]).to(begin.dtype)], 1)
        order = torch.ones(flat.shape[1], flat.shape[1], dtype=torch.bool).tril()
        return self._shaped(features.logits(features.read(embeds, order)))

    def sample(self, features: Any, temperature: float, generator: torch.Generator | None) -> Any:
        """See `Head`; trace `tokens (B,K,A)` int64."""
        tokens, chosen = [], []
        embeds = self._begin(features)
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
    if config.head in ("fast", "l1"):
        continuous = FastTokens if config.head == "fast" else Regression
        return continuous(config, decoder.config.hidden_size)
    tokens = ParallelTokens if config.head == "parallel" else AutoregressiveTokens
    return tokens(config, decoder.config.hidden_size)
