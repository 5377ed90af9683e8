"""Interface of auxiliary losses, and what a policy needs for them.

Example::

    class Still(AuxiliaryLoss):
        def losses(self, policy, batch, hidden=None):
            tokens = self.tokens(policy, batch, hidden)          # (B, M, D)
            return {"size": self.settings.weight * tokens.square().mean()}
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from worldgym.errors import ConfigError
from worldgym.protocols import ChunkBatch, Observation


@runtime_checkable
class FuturePolicy(Protocol):
    """A policy whose tokens auxiliary losses can read.

    Its last `future_tokens` tokens are learned ones, which no output reads directly. A policy that also has
    `loss_and_hidden(batch)` gives the tokens of the pass that computed its own losses, which saves a second one.
    """

    future_tokens: int
    token_width: int
    depth: int
    chunk: int

    def features(self, observation: Observation, layer: int = -1) -> Tensor:
        """`(B, N, token_width)` float32 tokens after transformer layer `layer`, counted from 0, or from the end."""
        ...


class AuxiliarySettings(Protocol):
    """What every auxiliary loss needs to know before there is a policy; the settings are a frozen dataclass."""

    @property
    def weight(self) -> float:
        """Factor of the loss; 0 keeps the tokens and leaves out the loss."""
        ...

    @property
    def layer(self) -> int | None:
        """Layer whose tokens are read; None for the usual one."""
        ...

    @property
    def token_count(self) -> int:
        """Future tokens of the policy that the loss reads."""
        ...

    @property
    def future_view(self) -> bool:
        """Whether the policy sees a later frame in training; only for control arms."""
        ...


class AuxiliaryLoss(nn.Module, ABC):
    """A loss on the future tokens of a policy, with weights of its own.

    Subclasses have a class attribute `Settings` (see `AuxiliarySettings`) and are registered in
    `worldgym.registry.AUXILIARIES`. They are trained and resumed with the policy, and not saved with it.

    Args:
        settings: of the type `Settings`.
        policy: the policy that it is for; not kept.
        first: index of the first future token that the loss reads, if several losses share the tokens of a policy.

    Raises:
        ConfigError: the policy has no, or too few, future tokens, or no such layer.
    """

    Settings: type[Any]
    name = "auxiliary"

    def __init__(self, settings: Any, policy: Any, first: int = 0) -> None:
        super().__init__()
        self.settings, self.first, self.count = settings, first, int(settings.token_count)
        have, need = getattr(policy, "future_tokens", None), first + self.count
        if have is None or not isinstance(policy, FuturePolicy):
            raise ConfigError(
                f"the auxiliary loss {self.name!r} needs a policy with future_tokens, token_width, depth and features; "
                f"a {type(policy).__name__} lacks some of them. Use a VLAPolicy, or type --type vla"
            )
        if have < need:
            raise ConfigError(
                f"the auxiliary loss {self.name!r} reads {self.count} future tokens from number {first} on, and this "
                f"policy has {have}; make it with VLAPolicyConfig(future_tokens={need})"
            )
        depth = int(policy.depth)
        layer = self.usual_layer(depth) if settings.layer is None else int(settings.layer)
        if not -depth <= layer < depth:
            raise ConfigError(
                f"layer is {layer}, and this policy has {depth} transformer layers, expected {-depth} to {depth - 1}; "
                f"type --aux-settings layer={self.usual_layer(depth)}, or leave it out"
            )
        self.layer = layer

    @staticmethod
    def usual_layer(depth: int) -> int:
        """Layer of a policy of `depth` layers that the loss reads unless the settings name one."""
        return depth - 1

    @property
    def active(self) -> bool:
        """Whether there is a loss: its weight is not 0."""
        return bool(self.settings.weight)

    def tokens(self, policy: Any, batch: ChunkBatch, hidden: Sequence[Tensor] | None) -> Tensor:
        """`(B, count, D)` float32: the future tokens of this loss.

        Args:
            policy: a `FuturePolicy`.
            batch: its rows.
            hidden: tokens `(B, N, D)` after each layer, if a pass over the batch has computed them.
        """
        own = policy.features(batch["observation"], self.layer) if not hidden else hidden[self.layer].float()
        begin = own.shape[1] - int(policy.future_tokens) + self.first
        return own[:, begin : begin + self.count]

    def begin(self, policy: Any) -> None:
        """Called once before the first step of a training, when the policy's input statistics are set."""

    def prepare(self, batch: ChunkBatch) -> None:
        """Change the observation of a training batch before any pass; only control arms do."""

    @abstractmethod
    def losses(
        self, policy: Any, batch: ChunkBatch, hidden: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Losses by name, already weighted: scalars that are finite for every batch.

        Args:
            policy: the policy in training.
            batch: with `future`, the later frames (`agents.data.future`). Actions are NaN where unknown, as in video.
            hidden: see `tokens`.
        """
        ...

    def after_step(self, policy: Any) -> None:
        """Called after every optimizer step, for targets that follow the policy."""


def check_weight(name: str, weight: float) -> None:
    """Raise a ConfigError unless `weight` is a finite number of at least 0."""
    if not math.isfinite(weight) or weight < 0:
        raise ConfigError(
            f"weight of {name} is {weight:g}, expected 0 or more; 0 keeps the tokens without the loss"
        )


def check_counts(name: str, **counts: int) -> None:
    """Raise a ConfigError unless every setting is at least 1."""
    for setting, value in counts.items():
        if value < 1:
            raise ConfigError(
                f"{setting} of {name} is {value}, expected at least 1; leave it out for the usual value"
            )
