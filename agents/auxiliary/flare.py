"""FLARE (Zheng et al. 2025, arXiv 2505.15659): future tokens that agree with an encoding of the future.

M learned tokens stand in the policy's sequence. After one layer, an MLP of their hidden states is aligned with M tokens
of the frame at the end of the chunk, as in section 3.2 of the paper:

    L = weight * mean_m (1 - cos(MLP(h_layer[fut_m]), stop(g(o_{t+H})_m)))

The target g is an image encoder and a Q-former (M learned queries that read the image tokens). The paper trains g
before the policy, so that its tokens know about actions, and then lets it follow the policy's encoder with an average
of decay 0.995. Here there is no training before: beside the policy, a small head predicts the demonstrated chunk from
the Q-former's tokens of the *current* frame. That trains the Q-former and the head and nothing else, and g has the
averaged weights of the policy's encoder and of this Q-former. The head also reads proprioception, so that the tokens
need to hold what the image alone shows. With `target="frozen"` the encoder is the tokenizer of a
world model instead.

Example::

    loss = Flare(FlareSettings(tokens=8), policy)
    loss.losses(policy, demos.chunk_batch(rows))     # {"alignment": ..., "target_action": ...}
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from agents.auxiliary.base import AuxiliaryLoss, check_counts, check_weight
from agents.auxiliary.encoder import FrozenEncoder
from agents.data.future import FutureFrames, future_of
from worldgym.errors import ConfigError
from worldgym.nn import TransformerBlock
from worldgym.pretrained import DEFAULT
from worldgym.protocols import ChunkBatch

TARGETS = ("ema", "frozen")
HEAD_DIM = 32
"""Channels of a head of the Q-former's attention."""


@dataclass(frozen=True)
class FlareSettings:
    """Settings of FLARE.

    Args:
        weight: factor of the alignment (the paper's lambda, 0.2); 0 leaves the tokens without a loss, the control arm
            (and what the released GR00T N1.5 is).
        tokens: future tokens M; the paper has 32 beside 16 actions.
        layer: layer whose tokens are aligned, counted from 0 or from the end; None for three quarters of the depth, as
            the paper's 6 of 8.
        target: image encoder of the target: `ema` is an average of the policy's own, `frozen` the tokenizer of a world
            model.
        rho: decay of the averaged weights of the target; the paper finds 0.995 better than 0.99.
        encoder: world model whose tokenizer is the frozen encoder; a bundled checkpoint or a folder.
        former_layers: layers of the Q-former.
        former_width: width of its tokens.
        standardise: standardise the Q-former's tokens over the rows of a batch, each of their dimensions by itself. Of
            tokens that no training shaped before, 99 % are the same for all frames, and a constant aligns with them.

    Raises:
        ConfigError: an invalid value.
    """

    weight: float = 0.2
    tokens: int = 8
    layer: int | None = None
    target: Literal["ema", "frozen"] = "ema"
    rho: float = 0.995
    encoder: str = DEFAULT
    former_layers: int = 2
    former_width: int = 64
    standardise: bool = True

    def __post_init__(self) -> None:
        """Validate."""
        check_weight("flare", self.weight)
        check_counts(
            "flare", tokens=self.tokens, former_layers=self.former_layers, former_width=self.former_width
        )
        if self.former_width % HEAD_DIM:
            raise ConfigError(
                f"former_width of flare is {self.former_width}, expected a multiple of {HEAD_DIM}; try 64"
            )
        if not 0 <= self.rho <= 1:
            raise ConfigError(f"rho of flare is {self.rho:g}, expected 0 to 1; try 0.995")
        if self.target not in TARGETS:
            raise ConfigError(f"target of flare is {self.target!r}, expected one of {', '.join(TARGETS)}")

    @property
    def token_count(self) -> int:
        """Future tokens of the policy."""
        return self.tokens

    @property
    def future_view(self) -> bool:
        """The policy never sees the future."""
        return False


class QFormer(nn.Module):
    """Learned queries that read the tokens of an image (BLIP-2, Li et al. 2023, section 3.1).

    Args:
        source: width of the image tokens.
        width: D of its own tokens.
        count: number of queries M.
        layers: transformer layers.
    """

    def __init__(self, source: int, width: int, count: int, layers: int) -> None:
        super().__init__()
        self.inputs = nn.Sequential(nn.Linear(source, width), nn.LayerNorm(width))
        self.queries = nn.Parameter(0.02 * torch.randn(1, count, width))
        self.blocks = nn.ModuleList(
            TransformerBlock(width, width // HEAD_DIM, affine=True, memory=True) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Tensor) -> Tensor:
        """`(B,P,source)` -> `(B,M,D)`."""
        memory = self.inputs(image)
        x = self.queries.expand(len(image), -1, -1)
        for block in self.blocks:
            x = block(x, memory)
        out: Tensor = self.norm(x)
        return out


class Flare(AuxiliaryLoss):
    """The alignment of the future tokens, and the training of its target.

    Args:
        settings: of this loss.
        policy: a `FuturePolicy`, and with `target="ema"` one with `image_tokens(observation)`; the target starts as a
            copy of it.
        first: index of the first future token.
        encoder: the frozen encoder; None loads that of the settings.

    Raises:
        ConfigError: the policy lacks what the loss needs, or its frames do not fit the encoder.
    """

    Settings = FlareSettings
    name = "flare"

    def __init__(
        self, settings: FlareSettings, policy: Any, first: int = 0, *, encoder: FrozenEncoder | None = None
    ) -> None:
        super().__init__(settings, policy, first)
        width, inner = int(policy.token_width), settings.former_width
        action_dim, self.state_dim = int(policy.config.action_dim), int(policy.config.state_dim)
        self.frozen: FrozenEncoder | None = None
        self.target_encoder: nn.Module | None = None
        if settings.target == "frozen":
            self.frozen = encoder or FrozenEncoder.load(settings.encoder, policy.config.size, policy.device)
            source = self.frozen.width
        elif not hasattr(policy, "image_tokens"):
            raise ConfigError(
                f"target=ema needs a policy with image_tokens(observation), and a {type(policy).__name__} has none; "
                "type --aux-settings target=frozen"
            )
        else:
            source = width  # the policy's image tokens
            self.target_encoder = copy.deepcopy(policy).requires_grad_(False).eval()
        self.projector = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, inner))
        self.former = QFormer(source, inner, self.count, settings.former_layers)
        self.action_head = nn.Sequential(
            nn.Linear(self.count * inner + self.state_dim, 2 * inner), nn.GELU(),
            nn.Linear(2 * inner, policy.chunk * action_dim),
        )  # fmt: skip
        self.target_former = copy.deepcopy(self.former).requires_grad_(False).eval()
        self.horizon = int(policy.chunk)
        self.to(policy.device)

    @staticmethod
    def usual_layer(depth: int) -> int:
        """Three quarters of the depth: the paper's 6 of 8, counted from 0."""
        return max(0, round(0.75 * depth) - 1)

    def begin(self, policy: Any) -> None:
        """Take over the policy's weights and input statistics into the target."""
        if self.target_encoder is not None:
            self.target_encoder.load_state_dict(policy.state_dict())

    def losses(
        self, policy: Any, batch: ChunkBatch, hidden: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Alignment of the future tokens; with known actions, also the loss that makes the target aware of them.

        Returns:
            `alignment`: weighted, mean over tokens and over the rows that have a later frame. `target_action`: mean
            squared error of the chunk predicted from the current frame, over known actions; it reaches the Q-former
            and its head alone.
        """
        future = future_of(batch, self.name)
        found = {"alignment": self._alignment(policy, batch, future, hidden)}
        actions = torch.as_tensor(np.asarray(batch["actions"])).to(policy.device)
        known = ~actions.isnan()
        if bool(known.any()):
            now = self._standardised(self.former(self._image(batch, future, 0))).flatten(1)
            if self.state_dim:
                state = torch.as_tensor(batch["observation"]["state"], dtype=torch.float32, device=now.device)
                now = torch.cat([now, policy.normalise_state(state)], 1)
            error = (self.action_head(now).view_as(actions) - actions.nan_to_num()).square() * known
            found["target_action"] = error.sum() / known.sum()
        return found

    def _alignment(
        self, policy: Any, batch: ChunkBatch, future: FutureFrames, hidden: Sequence[Tensor] | None
    ) -> Tensor:
        ours = self.projector(self.tokens(policy, batch, hidden))
        target = self.target(batch, future)
        there = torch.from_numpy(future.index(self.horizon)[0] > future.position).to(ours.device).float()
        away = (1 - nn.functional.cosine_similarity(ours, target, dim=-1)).mean(1)
        loss: Tensor = self.settings.weight * (away * there).sum() / there.sum().clamp_min(1)
        return loss

    @torch.no_grad()
    def target(self, batch: ChunkBatch, future: FutureFrames) -> Tensor:
        """`(B,M,D)` encoding of the frames at the end of the chunk, or at the end of the episode if that is earlier."""
        return self._standardised(self.target_former(self._image(batch, future, self.horizon)))

    def _standardised(self, tokens: Tensor) -> Tensor:
        """`(B,M,D)` tokens with mean 0 and standard deviation 1 over the rows, if the settings ask for it.

        Raises:
            ConfigError: a single row, which would become zero.
        """
        if not self.settings.standardise:
            return tokens
        if len(tokens) < 2:
            raise ConfigError(
                "flare standardises its targets over the rows of a batch, and got 1 row; try --batch-size 128, or "
                "--aux-settings standardise=false"
            )
        return (tokens - tokens.mean(0)) / (tokens.std(0, correction=0) + 1e-4)

    @torch.no_grad()
    def _image(self, batch: ChunkBatch, future: FutureFrames, offset: int) -> Tensor:
        """`(B,P,source)` tokens of the frames `offset` steps later, by the target's image encoder."""
        device = self.target_former.queries.device
        if self.frozen is not None:
            features, _ = future.features(self.frozen.name, self.frozen, (offset,))
            return features[:, 0].to(device)
        frames, _ = future.at(offset)
        seen: Any = {**batch["observation"], **frames}
        assert self.target_encoder is not None
        tokens: Tensor = self.target_encoder.image_tokens(seen)
        return tokens.to(device)

    def after_step(self, policy: Any) -> None:
        """Move the target towards the policy and the Q-former by 1 - rho."""
        if self.target_encoder is not None:
            _follow(self.target_encoder, policy, self.settings.rho)
        _follow(self.target_former, self.former, self.settings.rho)


@torch.no_grad()
def _follow(target: nn.Module, source: nn.Module, rho: float) -> None:
    """Move the weights of `target` towards those of `source` by 1 - rho; buffers (input statistics) are copied."""
    followed: list[Any] = list(target.parameters())
    torch._foreach_lerp_(followed, list(source.parameters()), 1 - rho)
    for kept, new in zip(target.buffers(), source.buffers(), strict=True):
        kept.copy_(new)
