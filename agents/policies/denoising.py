"""Policies on states: denoising world-model learning (DWL, arXiv 2408.14472), its controls, and a feed-forward teacher.

A robot's sensors are noisy and late, a simulator knows the true state. DWL encodes the history of the sensors with a
GRU into a latent z; the actor acts on z, and a decoder predicts the true state from z in training. There is no official
code. The form of the loss, the mean L2 norm (not its square) of the error plus 0.002 times the mean |z|, follows a
third-party implementation on rsl_rl.

The arms of a comparison differ only in the loss: `reconstruct="privileged"` is DWL, `"own"` reconstructs the noisy
observation itself, `None` is plain recurrent PPO. All have the same encoder, actor and privileged critic, with the
same initial weights.

Example::

    policy = DenoisingActorCritic(DenoisingConfig(actor=14, privileged=13, reconstruct="privileged"), seed=0)
    step = policy.act({"actor": torch.zeros(8, 14)}, policy.initial(8), deterministic=True)
    step.action.shape   # (8, 4)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from worldgym.errors import ConfigError

RECONSTRUCT = ("privileged", "own", None)
SOURCES = ("privileged", "actor")


class Step(NamedTuple):
    """Result of `ActorCritic.act` for N rows.

    Args:
        action: `(N, D)`, not clipped, because `log_prob` is that of the unclipped action.
        log_prob: `(N,)`, nats.
        value: `(N,)`, the critic's value of the observation.
        hidden: `(N, H)`, recurrent state after this observation.
    """

    action: Tensor
    log_prob: Tensor
    value: Tensor
    hidden: Tensor


@dataclass(frozen=True)
class Sequences:
    """T consecutive steps of B environments, in order, so that a recurrent policy can repeat them.

    Args:
        actor: `(T, B, A)` observations of the actor.
        privileged: `(T, B, P)` observations of the critic.
        action: `(T, B, D)` actions that were taken.
        start: `(T, B)` bool, the observation is the first of an episode: the recurrent state is zero before it.
        hidden: `(B, H)` recurrent state before the first step.
    """

    actor: Tensor
    privileged: Tensor
    action: Tensor
    start: Tensor
    hidden: Tensor

    def rows(self, rows: Tensor) -> Sequences:
        """The sequences of the environments `rows` (int)."""
        parts = {f.name: getattr(self, f.name)[:, rows] for f in fields(self)[:-1]}
        return Sequences(**parts, hidden=self.hidden[rows])


class SequenceEvaluation(NamedTuple):
    """Result of `ActorCritic.evaluate`.

    Args:
        log_prob: `(T, B)` log-probabilities of the actions taken, nats.
        entropy: `(T, B)`, nats.
        value: `(T, B)` values.
        auxiliary: scalar loss of the policy, already weighted; 0 without one.
        scalars: parts of the auxiliary loss, for the log.
    """

    log_prob: Tensor
    entropy: Tensor
    value: Tensor
    auxiliary: Tensor
    scalars: dict[str, float]


class ActorCritic(Protocol):
    """A policy with a critic, an `nn.Module` that PPO can train."""

    def initial(self, rows: int) -> Tensor:
        """Recurrent state `(rows, H)` at the start of an episode, zeros; H is 0 for a feed-forward policy."""
        ...

    def act(
        self, obs: Mapping[str, Tensor], hidden: Tensor, deterministic: bool = False,
        generator: torch.Generator | None = None,
    ) -> Step:  # fmt: skip
        """Choose actions. The caller sets rows of `hidden` to zero at the start of an episode.

        Args:
            obs: `actor (N, A)` and `privileged (N, P)`. Without `privileged` the value is zero.
            hidden: `(N, H)`.
            deterministic: take the mean action.
            generator: random generator of the sample.
        """
        ...

    def value(self, obs: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
        """Value `(N,)` of an observation, given the recurrent state before it."""
        ...

    def evaluate(self, batch: Sequences) -> SequenceEvaluation:
        """Evaluate the actions of sequences under the current weights, with gradients."""
        ...


@dataclass(frozen=True)
class DenoisingConfig:
    """Settings of `DenoisingActorCritic` and `StateActorCritic`.

    Args:
        actor: length A of the actor's observation.
        privileged: length P of the true state.
        action: number of action dimensions D.
        reconstruct: target of the decoder: `privileged` (DWL), `own` (the actor's observation), or None (no decoder).
        denoise: weight of the whole denoising loss beside the loss of PPO.
        sparsity: weight of the mean |z| in it.
        latent: length of z.
        hidden: width of the GRU.
        width: width of the two hidden layers of actor, critic and decoder.
        log_std: initial log standard deviation of the actions.
    """

    actor: int
    privileged: int
    action: int = 4
    reconstruct: Literal["privileged", "own"] | None = "privileged"
    denoise: float = 1.0
    sparsity: float = 0.002
    latent: int = 32
    hidden: int = 128
    width: int = 128
    log_std: float = -0.7

    def __post_init__(self) -> None:
        """Validate."""
        if self.reconstruct not in RECONSTRUCT:
            raise ConfigError(
                f"reconstruct must be 'privileged', 'own' or None; got {self.reconstruct!r}. Try "
                "reconstruct='privileged'"
            )
        for name in ("actor", "privileged", "action", "latent", "hidden", "width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}. Try {name}=32")
        for name in ("denoise", "sparsity"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must not be negative; got {getattr(self, name)}. Try {name}=0.002")


def denoising_loss(predicted: Tensor, target: Tensor, z: Tensor, sparsity: float) -> tuple[Tensor, Tensor]:
    """Reconstruction error, the mean of ||predicted - target||_2, and loss, the error plus sparsity x mean |z|.

    Args:
        predicted: `(..., P)` output of the decoder.
        target: `(..., P)`; no gradient flows into it.
        z: `(..., Z)` latents.
        sparsity: weight of the mean |z|.

    Returns:
        loss and error, scalars.
    """
    error = torch.linalg.vector_norm(predicted - target.detach(), dim=-1).mean()
    return error + sparsity * z.abs().mean(), error


class GaussianActorCritic(nn.Module, ABC):
    """Base of policies with Gaussian actions around `actor(features)` and a critic on the privileged state.

    Subclasses build `actor` and `critic` and define `step_features` and `sequence_features`.
    """

    source = "actor"
    hidden_size = 0
    actor: nn.Module
    critic: nn.Module
    log_std: nn.Parameter

    def initial(self, rows: int) -> Tensor:
        """Zeros `(rows, H)`."""
        return torch.zeros(rows, self.hidden_size)

    @abstractmethod
    def step_features(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(N, F)` of one observation `(N, .)`, and the next recurrent state `(N, H)`."""

    @abstractmethod
    def sequence_features(self, batch: Sequences) -> Tensor:
        """Features `(T, B, F)` of sequences."""

    def auxiliary(self, features: Tensor, batch: Sequences) -> tuple[Tensor, dict[str, float]]:
        """Loss beside that of PPO, and its parts for the log."""
        return features.new_zeros(()), {}

    def act(
        self, obs: Mapping[str, Tensor], hidden: Tensor, deterministic: bool = False,
        generator: torch.Generator | None = None,
    ) -> Step:  # fmt: skip
        """See `ActorCritic`."""
        features, after = self.step_features(obs[self.source], hidden)
        mean, std = self.actor(features), self.log_std.exp()
        noise = torch.zeros_like(mean) if deterministic else torch.randn(mean.shape, generator=generator)
        action = mean + std * noise
        log_prob = _gaussian(mean, std).log_prob(action).sum(-1)
        value = self.value(obs, hidden) if "privileged" in obs else log_prob.new_zeros(len(mean))
        return Step(action, log_prob, value, after)

    def value(self, obs: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
        """Value `(N,)` of the privileged state; the recurrent state isn't used."""
        return self.critic(obs["privileged"]).squeeze(-1)

    def evaluate(self, batch: Sequences) -> SequenceEvaluation:
        """See `ActorCritic`."""
        features = self.sequence_features(batch)
        policy = _gaussian(self.actor(features), self.log_std.exp())
        loss, scalars = self.auxiliary(features, batch)
        value = self.critic(batch.privileged).squeeze(-1)
        return SequenceEvaluation(
            policy.log_prob(batch.action).sum(-1), policy.entropy().sum(-1), value, loss, scalars
        )

    def means(self, batch: Sequences) -> Tensor:
        """Mean actions `(T, B, D)` of sequences, with gradients."""
        return self.actor(self.sequence_features(batch))


class DenoisingActorCritic(GaussianActorCritic):
    """Recurrent policy on noisy observations with an optional decoder of the true state.

    Args:
        config: settings.
        seed: seed of the initial weights; the same for every value of `reconstruct`.
    """

    def __init__(self, config: DenoisingConfig, seed: int = 0) -> None:
        super().__init__()
        self.config, self.hidden_size = config, config.hidden
        c = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = nn.GRUCell(c.actor, c.hidden)
            self.latent = nn.Linear(c.hidden, c.latent)
            self.actor = mlp((c.latent, c.width, c.width, c.action), last=0.01)
            self.critic = mlp((c.privileged, c.width, c.width, 1))
            self.log_std = nn.Parameter(torch.full((c.action,), c.log_std))
            # Built last, so that the other weights are the same in all arms.
            target = {"privileged": c.privileged, "own": c.actor, None: 0}[c.reconstruct]
            self.decoder = mlp((c.latent, c.width, c.width, target)) if target else None

    def step_features(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Latent z `(N, Z)` and the GRU's state `(N, H)`."""
        after = self.encoder(x, hidden)
        return self.latent(after), after

    def sequence_features(self, batch: Sequences) -> Tensor:
        """Latents `(T, B, Z)`; the GRU's state is zero before the first observation of an episode."""
        hidden, states = batch.hidden, []
        keep = (~batch.start).to(batch.actor.dtype)[..., None]
        for x, kept in zip(batch.actor, keep, strict=True):
            hidden = self.encoder(x, hidden * kept)
            states.append(hidden)
        return self.latent(torch.stack(states))

    def auxiliary(self, features: Tensor, batch: Sequences) -> tuple[Tensor, dict[str, float]]:
        """Denoising loss of the latents, weighted; zero without a decoder."""
        if self.decoder is None:
            return features.new_zeros(()), {}
        target = batch.privileged if self.config.reconstruct == "privileged" else batch.actor
        loss, error = denoising_loss(self.decoder(features), target, features, self.config.sparsity)
        return self.config.denoise * loss, {"reconstruction": float(error.detach())}


class StateActorCritic(GaussianActorCritic):
    """Feed-forward policy: the oracle and teacher on the privileged state, or a memoryless one on the sensors.

    Args:
        config: settings; the GRU's, the latent's and the decoder's aren't used.
        source: observation of the actor, `privileged` or `actor`.
        seed: seed of the initial weights.

    Raises:
        ConfigError: unknown source.
    """

    def __init__(self, config: DenoisingConfig, source: str = "privileged", seed: int = 0) -> None:
        super().__init__()
        if source not in SOURCES:
            raise ConfigError(
                f"unknown source {source!r}; expected one of {', '.join(SOURCES)}. Try source='privileged'"
            )
        self.config, self.source = config, source
        c = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            seen = c.privileged if source == "privileged" else c.actor
            self.actor = mlp((seen, c.width, c.width, c.action), last=0.01)
            self.critic = mlp((c.privileged, c.width, c.width, 1))
            self.log_std = nn.Parameter(torch.full((c.action,), c.log_std))

    def step_features(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The observation itself."""
        return x, hidden

    def sequence_features(self, batch: Sequences) -> Tensor:
        """The observations themselves."""
        return batch.privileged if self.source == "privileged" else batch.actor


def _gaussian(mean: Tensor, std: Tensor) -> torch.distributions.Normal:
    # Not validated: torch's check takes time, and PPO's own check of the actions raises the error of this project.
    return torch.distributions.Normal(mean, std, validate_args=False)


def mlp(widths: Sequence[int], last: float = 1.0) -> nn.Sequential:
    """ELU network through `widths`; orthogonal weights with gain sqrt(2), and `last` in the last layer."""
    layers: list[nn.Module] = []
    for i, (into, out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        linear = nn.Linear(into, out)
        nn.init.orthogonal_(linear.weight, last if i == len(widths) - 2 else 2**0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ELU()]
    return nn.Sequential(*layers[:-1])
