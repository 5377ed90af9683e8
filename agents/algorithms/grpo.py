"""GRPO: group-relative policy optimisation on whole imagined trajectories, without a critic or a KL penalty.

The method follows World-Gymnast, with four changes. Chunks after success carry no gradient (World-Gymnast rewards 40
steps of drift). Invalid judgements are left out of their group (World-Gymnast counts them as failures). One update
mixes instructions. Several updates use one batch, so that the clip takes effect (World-Gymnast makes one update, with
ratio 1).

The ratio is taken per *choice*. For token heads this is one action dimension, as in World-Gymnast. The ratio of a whole
chunk of 20 tokens would be a product whose logarithm is 20 times noisier; clipping it at 0.2 would stop learning after
one small step. The clipped objective is averaged over all choices whose chunk comes before success. The policy defines
the choices (`TrainablePolicy.evaluate`). Within a chunk all components have equal weight, unless `weights` is set.

Example::

    grpo = GRPO(GRPOConfig(lr=1e-4))
    scalars = grpo.update(policy, rollouts)
    scalars["clip_fraction"], scalars["entropy"], scalars["groups_kept"]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from agents.algorithms.guards import evaluated, require_agreement, require_finite_step
from agents.algorithms.improver import OptimizerImprover
from agents.algorithms.parameters import component_of, learned_parameters
from agents.algorithms.sft import ChunkDataset
from agents.rollouts.trajectories import Rollouts
from worldgym.errors import ConfigError

TOTALS = ("clip_fraction", "approx_kl", "entropy")
"""Scalars reported for each component; those of the action have no prefix."""


@dataclass(frozen=True)
class GRPOConfig:
    """Settings of GRPO; with the defaults, a policy improved on the true reward in the pilot.

    Args:
        lr: AdamW learning rate; 3e-4 with two epochs collapsed the entropy even on the true reward.
        updates: optimizer steps per epoch on a batch of rollouts: 2, so that the second step has ratios other than 1.
        epochs: passes over a batch of rollouts.
        clip_low: the ratio is clipped below at 1 - clip_low.
        clip_high: the ratio is clipped above at 1 + clip_high; larger than clip_low, so that rare actions can grow.
        average: `token` gives every choice before success the same weight, as in World-Gymnast; `trajectory` gives
            every trajectory the same weight, so that long failures do not outweigh short successes.
        grad_clip: maximum gradient norm.
        weight_decay: AdamW weight decay.
        bc_coef: weight of an additional loss that clones demonstrations; 0 disables it.
        weights: weight of each policy component by name; 1 for components without an entry. Components weigh the same
            within a chunk, regardless of their number of choices.
        learn: `all`, or one component of the policy such as `goal`: only its weights and its choices are trained.
        kl_coef: weight of the (k3) KL divergence from the policy that sampled the rollouts; 0 disables it.
        entropy_coef: weight of an entropy bonus; 0 disables it.
        min_group: groups with fewer valid trajectories are dropped.
        micro_batch: chunks per forward pass; affects memory, not the result.
        seed: seed of the order of trajectories.
    """

    lr: float = 1.5e-4
    updates: int = 2
    epochs: int = 1
    clip_low: float = 0.2
    clip_high: float = 0.28
    average: Literal["token", "trajectory"] = "token"
    grad_clip: float = 1.0
    weight_decay: float = 0.0
    bc_coef: float = 0.0
    weights: Mapping[str, float] = field(default_factory=dict)
    learn: str = "all"
    kl_coef: float = 0.0
    entropy_coef: float = 0.0
    min_group: int = 2
    micro_batch: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate."""
        if self.lr <= 0:
            raise ConfigError(f"lr must be positive; got {self.lr}. Try 1.5e-4")
        if not 0 < self.clip_low < 1 or self.clip_high <= 0:
            raise ConfigError(
                f"need 0 < clip_low < 1 and clip_high > 0; got {self.clip_low}, {self.clip_high}"
            )
        if self.updates < 1 or self.epochs < 1 or self.micro_batch < 1 or self.min_group < 2:
            raise ConfigError("updates, epochs and micro_batch must be at least 1, min_group at least 2")
        if any(not weight >= 0 for weight in self.weights.values()):
            raise ConfigError(f"weights of components must not be negative; got {dict(self.weights)}")
        if self.average not in ("token", "trajectory"):
            raise ConfigError(f"average must be 'token' or 'trajectory'; got {self.average!r}")


def group_advantages(
    reward: Tensor, groups: Tensor, valid: Tensor, min_group: int = 2, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Advantages (R - mean) / (std + 1e-6) within each group, over its valid members only.

    With importance weights the mean is weighted, and each advantage is multiplied by its weight.

    Args:
        reward: `(N,)` float.
        groups: `(N,)` int64.
        valid: `(N,)` bool; invalid trajectories are left out of the group statistics and of the update.
        min_group: smaller groups are dropped.
        weights: `(N,)` importance weights; None for ones.

    Returns:
        advantages `(N,)` float32 and keep `(N,)` bool; groups in which all rewards are equal are not kept.
    """
    advantages = torch.zeros(len(reward), device=reward.device)
    keep = torch.zeros(len(reward), dtype=torch.bool, device=reward.device)
    for group in torch.unique(groups):
        rows = ((groups == group) & valid).nonzero().squeeze(1)
        if len(rows) < min_group:
            continue
        values = reward[rows].float()
        spread = values.std()  # unbiased, as in verl
        if float(values.max() - values.min()) < 1e-6:
            continue
        if weights is None:
            advantages[rows] = (values - values.mean()) / (spread + 1e-6)
        else:
            w = weights[rows] / weights[rows].mean()
            advantages[rows] = w * (values - (w * values).mean()) / (spread + 1e-6)
        keep[rows] = True
    return advantages, keep


class GRPO(OptimizerImprover):
    """Improver that updates a policy in place from grouped rollouts.

    Args:
        config: settings.
        demos: demonstrations for the optional cloning loss.

    Raises:
        ConfigError: `bc_coef` is positive and there are no demonstrations.
    """

    def __init__(self, config: GRPOConfig | None = None, demos: ChunkDataset | None = None) -> None:
        self.config = config or GRPOConfig()
        if self.config.bc_coef > 0 and demos is None:
            raise ConfigError("bc_coef > 0 needs demonstrations: GRPO(config, demos=chunk_dataset(episodes))")
        self.demos = demos
        self._compared = False

    @classmethod
    def for_rl(cls, lr: float, updates: int, seed: int, learn: str) -> Self:
        """GRPO with the settings of an RL run."""
        return cls(GRPOConfig(lr=lr, updates=updates, seed=seed, learn=learn))

    def make_optimizer(self, policy: Any) -> torch.optim.AdamW:
        """Create an optimizer for the trained component of `policy`."""
        config = self.config
        weights = learned_parameters(policy, config.learn)
        return torch.optim.AdamW(weights, lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.99))

    def update(self, policy: Any, rollouts: Rollouts) -> dict[str, float]:
        """Run one iteration.

        Args:
            policy: the policy that sampled `rollouts`; implements `evaluate` of `worldgym.protocols.TrainablePolicy`.
            rollouts: grouped trajectories.

        Returns:
            loss, grad_norm; for the action: clip_fraction (last update), approx_kl (last update, nats per choice) and
            entropy (nats per choice); the same with a prefix for other components, such as `goal_entropy`; ratio_max,
            groups_kept, groups, trajectories_kept, advantage_abs. If no group has both successes and failures, the
            policy does not change and `groups_kept` is 0.

        Raises:
            ConfigError: `evaluate` lacks a component, or its log-probabilities have another shape than those of `act`,
                or disagree with them at the first update.
            DivergedError: a loss or a gradient is NaN or infinite; that step is not taken.
        """
        config = self.config
        advantages, keep = group_advantages(
            rollouts.reward, rollouts.groups, rollouts.valid, config.min_group, rollouts.weights
        )
        rows = keep.nonzero().squeeze(1)
        scalars = {
            "groups": float(len(torch.unique(rollouts.groups))),
            "groups_kept": float(len(torch.unique(rollouts.groups[rows]))),
            "trajectories_kept": float(len(rows)),
            "reward": rollouts.success_rate(),
        }
        rng = np.random.default_rng((config.seed, self.iteration))
        self.iteration += 1
        if len(rows) == 0:
            names = [prefix(part) + name for part in rollouts.log_probs for name in TOTALS]
            return {**scalars, **dict.fromkeys((*names, "loss", "grad_norm"), 0.0)}
        policy.eval()  # with dropout the ratio would differ from 1 before the first update
        history = []
        for _ in range(config.epochs):
            order = rows[torch.from_numpy(rng.permutation(len(rows)))]
            for part in torch.tensor_split(order, min(config.updates, len(order))):
                history.append(self._step(policy, rollouts, advantages, part, rng))
        last, first = history[-1], history[0]
        mean = {key: float(np.mean([h[key] for h in history])) for key in ("loss", "grad_norm")}
        before = {key: value for key, value in first.items() if key.endswith("entropy")}
        moved = {"advantage_abs": float(advantages[rows].abs().mean())}
        return {**scalars, **last, **mean, **before, **moved}

    def _step(
        self,
        policy: Any,
        rollouts: Rollouts,
        advantages: Tensor,
        part: Tensor,
        rng: np.random.Generator,
    ) -> dict[str, float]:
        config, optimizer = self.config, self.optimizer(policy)
        where = rollouts.mask[part].nonzero()  # (M, 2): trajectory index within the part, chunk index
        row, chunk = part[where[:, 0]], where[:, 1]
        choices = {name: value[0, 0].numel() for name, value in rollouts.log_probs.items()}
        if not choices:
            raise ConfigError(
                f"{type(policy).__name__}.act returned no log_probs, which GRPO needs; return them by component, such "
                "as PolicyOutput(actions, {'action': log_probs}), or type --improver filtered_bc"
            )
        most = max(
            choices.values()
        )  # each choice of the finest component has weight 1; choices of other components weigh proportionally more
        if config.average == "token":
            weight = torch.full((len(row),), 1.0 / (len(row) * most), device="cpu")
        else:
            weight = 1.0 / (rollouts.lengths[row].float() * len(part) * most)
        learned = tuple(choices) if config.learn == "all" else (component_of(config.learn),)
        totals = {prefix(name) + key: 0.0 for name in choices for key in TOTALS} | {"loss": 0.0}
        ratio_max = 1.0
        optimizer.zero_grad(set_to_none=True)
        for begin in range(0, len(row), config.micro_batch):
            r, c = row[begin : begin + config.micro_batch], chunk[begin : begin + config.micro_batch]
            old = {name: value[r, c] for name, value in rollouts.log_probs.items()}
            seen, trace = rollouts.observation(r, c), rollouts.trace_at(r, c)
            now = evaluated(policy, seen, trace, old, learned, entropies=True)
            if not self._compared:  # the weights are still those that sampled the rollouts
                require_agreement(policy, {name: now.log_probs[name] for name in learned}, old)
                self._compared = True
            loss = torch.zeros((), device="cpu")  # rollouts are on the CPU; there are only a few numbers per choice
            for name in learned:
                new, entropy = now.log_probs[name].cpu(), now.entropies[name].cpu()
                w = weight[begin : begin + config.micro_batch] * (most / choices[name])
                w = w.view(-1, *[1] * (new.ndim - 1))
                part_loss, kl, binds, high = self._terms(new - old[name], advantages[r])
                terms = part_loss + config.kl_coef * kl - config.entropy_coef * entropy
                weighted = config.weights.get(name, 1.0) * (w * terms).sum()
                require_finite_step(float(weighted.detach()), f"loss of the component {name!r}", policy, config.lr)
                loss = loss + weighted
                totals[prefix(name) + "clip_fraction"] += float((w * binds).sum())
                totals[prefix(name) + "approx_kl"] += float((w * kl.detach()).sum())
                totals[prefix(name) + "entropy"] += float((w * entropy.detach()).sum())
                ratio_max = max(ratio_max, high)
            loss.backward()
            totals["loss"] += float(loss.detach())
        if config.bc_coef > 0 and self.demos is not None:
            rows = rng.integers(0, len(self.demos), min(config.micro_batch, len(self.demos)))
            bc = policy.loss(self.demos.chunk_batch(rows))["action"]
            totals["bc_loss"] = float(bc.detach())
            require_finite_step(totals["bc_loss"], "cloning loss of the component 'action'", policy, config.lr)
            (config.bc_coef * bc).backward()
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        norm = float(torch.nn.utils.clip_grad_norm_(weights, config.grad_clip))
        require_finite_step(norm, f"gradient norm of the components {', '.join(map(repr, learned))}", policy, config.lr)
        optimizer.step()
        return {**totals, "grad_norm": norm, "ratio_max": ratio_max}

    def _terms(self, log_ratio: Tensor, advantage: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        """Clipped loss, k3 divergence, clip indicator (each shaped as `log_ratio (M,...)`), and the largest ratio."""
        config = self.config
        loss, binds = clipped_objective(log_ratio, advantage, config.clip_low, config.clip_high)
        kl = torch.expm1(-log_ratio) + log_ratio  # k3 estimate of KL(old || new), always >= 0
        return loss, kl, binds, float(log_ratio.detach().max().exp())


def prefix(component: str) -> str:
    """Return the prefix of a component's scalar names; action scalars have none."""
    return "" if component == "action" else f"{component}_"


def clipped_objective(
    log_ratio: Tensor, advantage: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """PPO's pessimistic clipped loss of each choice, and whether the clip is active.

    Args:
        log_ratio: `(M,...)` new minus old log-probability.
        advantage: `(M,)`.
        clip_low: clipping distance below 1.
        clip_high: clipping distance above 1.

    Returns:
        loss and binds, each shaped as `log_ratio`; binds is 1 where the clip is active (zero gradient), else 0.
    """
    a = advantage.view(-1, *[1] * (log_ratio.ndim - 1))
    ratio = log_ratio.clamp(-20, 20).exp()
    free, clipped = ratio * a, ratio.clamp(1 - clip_low, 1 + clip_high) * a
    return -torch.minimum(free, clipped), (clipped < free).float()
