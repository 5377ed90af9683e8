"""VLA-JEPA (Sun et al. 2026, arXiv 2602.10098): future tokens as latent actions that explain the next frames.

The policy sees the current frame only. The hidden states of its future tokens, k for each of S steps, are latent
actions. A block-causal predictor reads step i as [latent actions_i | features of frame_i] and predicts the features of
frame_{i+1}:

    L = weight * mean | predictor(a_0..a_i, z_0..z_i) - stop(z_{i+1}) |        z_i = encoder(o_{t + i * stride})

All z are features of recorded frames (teacher forcing). The predictor could not tell where the scene goes without the
latent actions, so the policy has to put it there. Its output is the change from one frame to the next, unlike the
paper's: predicting whole features, it took hundreds of steps to learn that most cells stay as they are.

In the published code, contexts and targets come from one pass of V-JEPA 2 over all frames. That encoder attends in
both directions of time, so a context has seen its target, and the latent actions are needed less. Here every frame is
encoded by itself (`agents.auxiliary.encoder`). The control arms put such a leak back: `leak="context"` gives the
predictor the features of the target frame beside those of the context, and `leak="policy"` shows the last target frame
to the policy in training, and the current frame in its place afterwards.

Example::

    loss = VlaJepa(VlaJepaSettings(steps=3), policy)
    loss.losses(policy, demos.chunk_batch(rows))     # {"prediction": ...}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from agents.auxiliary.base import AuxiliaryLoss, check_counts, check_weight
from agents.auxiliary.encoder import FrozenEncoder
from agents.data.future import future_of
from worldgym.errors import ConfigError
from worldgym.nn import Expert, Segment, SequenceLayout, Transformer, TransformerConfig, block_causal
from worldgym.pretrained import DEFAULT
from worldgym.protocols import ChunkBatch

LEAKS = ("none", "context", "policy")


@dataclass(frozen=True)
class VlaJepaSettings:
    """Settings of VLA-JEPA.

    Args:
        weight: factor of the loss, 0.1 in the paper; 0 leaves the tokens without a loss.
        steps: frames that are predicted, S; 3 in the paper.
        stride: environment steps between two frames; the paper's encoder joins two frames.
        tokens_per_step: latent-action tokens k of a step; 8 in the paper.
        layer: layer whose tokens are read, counted from 0 or from the end; None for the last one, before the final
            norm, as in the paper.
        encoder: world model whose tokenizer gives the features; a bundled checkpoint or a folder.
        width: width of the predictor; 1024 in the paper.
        depth: layers of the predictor; 12 in the paper.
        heads: attention heads of the predictor; 8 in the paper.
        leak: `none`; `context` or `policy` are control arms that see the future in training.

    Raises:
        ConfigError: an invalid value.
    """

    weight: float = 0.1
    steps: int = 3
    stride: int = 2
    tokens_per_step: int = 4
    layer: int | None = None
    encoder: str = DEFAULT
    width: int = 128
    depth: int = 4
    heads: int = 4
    leak: Literal["none", "context", "policy"] = "none"

    def __post_init__(self) -> None:
        """Validate."""
        check_weight("vla_jepa", self.weight)
        check_counts(
            "vla_jepa", steps=self.steps, stride=self.stride, tokens_per_step=self.tokens_per_step, width=self.width,
            depth=self.depth, heads=self.heads,
        )  # fmt: skip
        if self.leak not in LEAKS:
            raise ConfigError(f"leak of vla_jepa is {self.leak!r}, expected one of {', '.join(LEAKS)}")
        if self.width % self.heads or (self.width // self.heads) % 8:
            raise ConfigError(
                f"width of vla_jepa is {self.width} for {self.heads} heads; expected a multiple of 8 channels a head, "
                "such as width=128, heads=4"
            )

    @property
    def token_count(self) -> int:
        """Future tokens of the policy."""
        return self.steps * self.tokens_per_step

    @property
    def future_view(self) -> bool:
        """Whether the policy sees a later frame in training."""
        return self.leak == "policy"

    @property
    def offsets(self) -> tuple[int, ...]:
        """Environment steps from the current frame to the S + 1 frames."""
        return tuple(i * self.stride for i in range(self.steps + 1))


class Predictor(nn.Module):
    """Latent actions and features of the frames so far -> features of the next frame, for all steps in one pass.

    Args:
        settings: sizes.
        action_width: width of the policy's tokens.
        grid: rows and columns of a frame's tokens.
        width: channels of a frame's tokens.
    """

    def __init__(
        self, settings: VlaJepaSettings, action_width: int, grid: tuple[int, int], width: int
    ) -> None:
        super().__init__()
        self.grid, seen = grid, width * (2 if settings.leak == "context" else 1)
        frame, d = grid[0] * grid[1], settings.width
        head = d // settings.heads
        rest = head // 4 // 2 * 2  # rotated by time and by place: block, row, column
        self.layout = SequenceLayout(
            tuple(
                segment
                for i in range(settings.steps)
                for segment in (Segment("action", i, settings.tokens_per_step), Segment("frame", i, frame))
            )
        )
        self.steps = settings.steps
        self.actions, self.frames = nn.Linear(action_width, d), nn.Linear(seen, d)
        self.roles = nn.Parameter(0.02 * torch.randn(2, d))
        experts = (Expert("tokens", d, roles=("action", "frame")),)
        axes = (head - 2 * rest, rest, rest)
        self.net = Transformer(TransformerConfig(experts, settings.depth, settings.heads, axes=axes))
        self.out = nn.Linear(d, width)
        with torch.no_grad():  # begins near the prediction that nothing moves
            self.out.weight.mul_(0.1)
            self.out.bias.zero_()
        self.register_buffer("where", self.layout.positions({"frame": grid}), persistent=False)
        self.where: Tensor

    def forward(self, actions: Tensor, frames: Tensor) -> Tensor:
        """Predict the features of the next frame of every step, as those of the present frame plus a change.

        It is block-causal: step i sees nothing of later steps.

        Args:
            actions: `(B, S * k, action_width)` latent actions, by step.
            frames: `(B, S, P, C)` features of the frames 0 to S - 1 (2 C with the leak into the context).

        Returns:
            `(B, S, P, C)` features of the frames 1 to S.
        """
        acted = self.actions(actions).unflatten(1, (self.steps, -1)) + self.roles[0]
        seen = self.frames(frames) + self.roles[1]
        x = torch.cat([acted, seen], 2).flatten(1, 2)
        hidden = self.net(x, self.layout, block_causal(), positions=self.where).tokens["tokens"]
        mine = hidden.unflatten(1, (self.steps, -1))[:, :, acted.shape[2] :]
        predicted: Tensor = frames[..., : self.out.out_features] + self.out(mine)
        return predicted


class VlaJepa(AuxiliaryLoss):
    """Prediction of frozen features of later frames from latent actions.

    Args:
        settings: of this loss.
        policy: a `FuturePolicy`; with `leak="policy"` one made with `future_view`.
        first: index of the first future token.
        encoder: the frozen encoder; None loads that of the settings.

    Raises:
        ConfigError: the policy lacks what the loss needs, or its frames do not fit the encoder.
    """

    Settings = VlaJepaSettings
    name = "vla_jepa"

    def __init__(
        self, settings: VlaJepaSettings, policy: Any, first: int = 0, *, encoder: FrozenEncoder | None = None
    ) -> None:
        super().__init__(settings, policy, first)
        if settings.future_view and not getattr(policy.config, "future_view", False):
            raise ConfigError(
                "leak=policy needs a policy that reads a later frame; make it with VLAPolicyConfig(future_view=True)"
            )
        self.encoder = encoder or FrozenEncoder.load(settings.encoder, policy.config.size, policy.device)
        self.predictor = Predictor(settings, int(policy.token_width), self.encoder.grid, self.encoder.width)
        self.to(policy.device)

    def prepare(self, batch: ChunkBatch) -> None:
        """Show the last target frame to the policy, with `leak="policy"` alone."""
        if self.settings.future_view:
            frames, _ = future_of(batch, self.name).at(self.settings.offsets[-1])
            batch["observation"]["image_future"] = frames["image"]  # type: ignore[typeddict-unknown-key]

    def losses(
        self, policy: Any, batch: ChunkBatch, hidden: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """`prediction`: weighted mean absolute error of the predicted features, over the frames that exist.

        Rows of video and rows with actions have the same loss.
        """
        actions = self.tokens(policy, batch, hidden)
        features, known = self.features(batch)
        features, there = features.to(actions.device), known[:, 1:].to(actions.device).float()
        predicted = self.predictor(actions, self.context(features))
        error = (predicted - features[:, 1:]).abs().mean((2, 3))
        return {"prediction": self.settings.weight * (error * there).sum() / there.sum().clamp_min(1)}

    def features(self, batch: ChunkBatch) -> tuple[Tensor, Tensor]:
        """`(B, S + 1, P, C)` features of the frames, and `(B, S + 1)` bool, whether the episode has that frame."""
        future = future_of(batch, self.name)
        return future.features(self.encoder.name, self.encoder, self.settings.offsets)

    def context(self, features: Tensor) -> Tensor:
        """`(B, S, P, C)` features that the predictor reads; `(B, S, P, 2 C)`, with the targets, if they leak."""
        if self.settings.leak == "context":
            return torch.cat([features[:, :-1], features[:, 1:]], -1)
        return features[:, :-1]
