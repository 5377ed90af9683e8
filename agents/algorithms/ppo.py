"""PPO for policies on states: feed-forward or recurrent actors, with a critic that may see more than the actor.

The clipped objective is that of Schulman et al. 2017 (arXiv 1707.06347, equation 7), advantages are those of Schulman
et al. 2016 (arXiv 1506.02438, equation 16), and the learning rate may follow the KL divergence as in rsl_rl. A policy
adds its own loss, such as the denoising loss of DWL (`agents.policies.denoising`), so that every arm of a comparison
runs this same code.

`StateEnv` is the interface of the environments: the tabletop's states (`envs.tabletop.states.StateTabletop`) or a
learned model of them.

Example::

    policy = DenoisingActorCritic(DenoisingConfig(**env.sizes), seed=0)
    ppo = PPO(policy, PPOConfig(seed=0))
    ppo.train(env, steps=200_000, log=rows.append)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from agents.policies.denoising import ActorCritic, SequenceEvaluation, Sequences, Step
from worldgym.errors import ConfigError, DivergedError

__all__ = [
    "PPO", "ActorCritic", "PPOConfig", "SequenceEvaluation", "Sequences", "StateEnv", "Step", "advantages", "tensors",
]  # fmt: skip

Log = Callable[[dict[str, float]], None]
Rollout = tuple[Sequences, dict[str, Tensor], dict[str, float]]
LR_RANGE = (1e-5, 1e-2)
"""Range of the KL-adaptive learning rate, as in rsl_rl."""


class StateEnv(Protocol):
    """A batch of N environments whose observations are vectors. Arrays are NumPy or CPU torch, float32 or bool.

    An observation is a dict: `actor` `(N, A)`, what the policy may use when it is deployed, and `privileged` `(N, P)`,
    what only the critic and training losses may use. Both are normalised to about [-1, 1].

    Attributes:
        num_envs: N.
        sizes: `{"actor": A, "privileged": P}`.
        action_dim: D, the number of action dimensions; actions lie in [-1, 1] and are clipped by the environment.
    """

    num_envs: int
    sizes: dict[str, int]
    action_dim: int

    def reset(self, seed: int) -> dict[str, Any]:
        """Start episode 0 of every environment. The same seed gives the same starts and the same noise.

        Returns:
            the observation, `{"actor": (N, A), "privileged": (N, P)}`.
        """
        ...

    def step(self, actions: Any) -> tuple[dict[str, Any], Any, Any, dict[str, Any]]:
        """Take one step; an environment whose episode ends starts the next one within the same call.

        Args:
            actions: `(N, D)` float32 NumPy array.

        Returns:
            observation: as in `reset`; where `done`, the first observation of the next episode.
            reward: `(N,)` of this step.
            done: `(N,)` bool, the episode ended with this step.
            info: a dict with
                `terminated` `(N,)` bool, subset of `done`: the episode ended in a state without a future (success);
                    where `done & ~terminated` a time limit ended it, and PPO bootstraps from the value;
                `final` `{"actor": (N, A), "privileged": (N, P)}`: the observation after this step and before the next
                    episode began; equals the returned observation where not `done`;
                `success` `(N,)` bool: the episode that ended here was successful; False where not `done`.
        """
        ...


@dataclass(frozen=True)
class PPOConfig:
    """Settings of PPO.

    Args:
        horizon: steps per environment between updates, T; also the length of backpropagation through time.
        epochs: passes over the data of an update.
        minibatches: parts of a pass; whole environments are split, so it must not exceed their number.
        lr: learning rate of Adam, the first one if `kl` is positive.
        kl: wanted KL divergence in the last epoch of an update; above twice its value the learning rate is divided by
            1.5, below half of it multiplied by 1.5, as in rsl_rl, which does so in every minibatch. 0 keeps it.
        clip: clipping range of the probability ratio.
        gamma: discount per step.
        gae: lambda of generalised advantage estimation.
        entropy: weight of the entropy bonus.
        value: weight of the value loss.
        grad_clip: largest gradient norm.
        seed: seed of the starts, the sampled actions and the order of minibatches.
    """

    horizon: int = 32
    epochs: int = 4
    minibatches: int = 4
    lr: float = 1e-3
    kl: float = 0.01
    clip: float = 0.2
    gamma: float = 0.99
    gae: float = 0.95
    entropy: float = 0.005
    value: float = 1.0
    grad_clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate."""
        for names, low, high, allowed in _RANGES:
            for name in names:
                value = getattr(self, name)
                if not low <= value <= high:
                    raise ConfigError(
                        f"{name} must be {allowed}; got {value}. Try PPOConfig({name}={type(self).__dict__[name]})"
                    )


_RANGES = (
    (("horizon", "epochs", "minibatches"), 1, 10**9, "at least 1"),
    (("gamma", "gae"), 0, 1, "in [0, 1]"),
    (("lr", "clip", "grad_clip"), 1e-12, 1e12, "positive"),
    (("kl", "entropy", "value", "seed"), 0, 1e12, "at least 0"),
)


_LOSSES = ("surrogate", "value_loss", "entropy", "clip_fraction")


def advantages(
    reward: Tensor, value: Tensor, after: Tensor, done: Tensor, terminated: Tensor, gamma: float, gae: float
) -> Tensor:
    """Generalised advantages `(T, B)` (arXiv 1506.02438, equation 16). A time limit bootstraps, a success does not.

    Args:
        reward: `(T, B)`.
        value: `(T, B)` values of the observations.
        after: `(T, B)` values of the observations after the step, before a next episode began.
        done: `(T, B)` bool, the episode ended with the step.
        terminated: `(T, B)` bool, it ended without a future.
        gamma: discount.
        gae: lambda.
    """
    delta = reward + gamma * after * ~terminated - value
    out, carry = torch.empty_like(delta), torch.zeros_like(delta[0])
    for t in range(len(delta) - 1, -1, -1):
        out[t] = carry = delta[t] + gamma * gae * ~done[t] * carry
    return out


class PPO:
    """Proximal policy optimisation.

    Every update draws its randomness from (seed, number of the update), and the environment continues between calls of
    `train`, so that two calls give the same weights as one call with the sum of the steps. On one thread the result is
    the same in every run.

    Args:
        policy: an `ActorCritic`, changed in place.
        config: settings.
    """

    def __init__(self, policy: Any, config: PPOConfig | None = None) -> None:
        self.policy, self.config = policy, config or PPOConfig()
        self.optimizer = torch.optim.Adam(policy.parameters(), lr=self.config.lr, eps=1e-5)
        self.updates = 0
        self._env: Any = None
        self._obs: dict[str, Tensor] = {}
        self._hidden, self._start = torch.zeros(0), torch.zeros(0)

    @property
    def lr(self) -> float:
        """The current learning rate."""
        return float(self.optimizer.param_groups[0]["lr"])

    def train(self, env: StateEnv, steps: int, log: Log | None = None) -> dict[str, float]:
        """Train for at least `steps` environment steps, summed over environments, in whole updates.

        Args:
            env: see `StateEnv`; the one of the last call continues, another one is reset with the seed of the config.
            steps: environment steps.
            log: called after every update with its scalars.

        Returns:
            scalars of the last update: steps, success (rate of the episodes that ended, NaN without one), episodes,
            reward (per step), kl (last epoch), clip_fraction, surrogate, value_loss, entropy, lr, and the policy's own.

        Raises:
            ConfigError: `steps` is not positive, or there are fewer environments than minibatches.
            DivergedError: a loss, a gradient, a reward or an observation is NaN or infinite.
        """
        config = self.config
        if steps < 1:
            raise ConfigError(f"steps must be at least 1; got {steps}. Try train(env, steps=100_000)")
        if env.num_envs < config.minibatches:
            raise ConfigError(
                f"{config.minibatches} minibatches need at least as many environments; got {env.num_envs}. Try "
                f"PPOConfig(minibatches={env.num_envs})"
            )
        if env is not self._env:
            self._env, self._obs = env, tensors(env.reset(config.seed))
            self._hidden = self.policy.initial(env.num_envs)
            self._start = torch.ones(env.num_envs, dtype=torch.bool)
        scalars: dict[str, float] = {}
        for _ in range(math.ceil(steps / (env.num_envs * config.horizon))):
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.updates)
            self.policy.eval()
            batch, data, scalars = self._collect(env, generator)
            self.policy.train()
            scalars |= self._improve(batch, data, generator)
            self.policy.eval()
            self.updates += 1
            scalars["steps"] = float(self.updates * env.num_envs * config.horizon)
            if log is not None:
                log(scalars)
        return scalars

    @torch.no_grad()
    def _collect(self, env: StateEnv, generator: torch.Generator) -> Rollout:
        """T steps of every environment: sequences, `(T, N)` data of the losses, and scalars."""
        config, first_hidden = self.config, self._hidden
        rows: list[dict[str, Tensor]] = []
        ended = success = 0
        for _ in range(config.horizon):
            step = self.policy.act(self._obs, self._hidden, False, generator)
            require_finite_values(step.action, "actions", self.lr)
            obs, reward, done, info = env.step(step.action.numpy())
            now, over = tensors(obs), torch.tensor(np.asarray(done))
            rows.append({
                **self._obs, "action": step.action, "start": self._start, "log_prob": step.log_prob,
                "value": step.value, "after": self.policy.value(tensors(info["final"]), step.hidden), "done": over,
                "terminated": torch.tensor(np.asarray(info["terminated"])),
                "reward": torch.tensor(np.asarray(reward), dtype=torch.float32),
            })  # fmt: skip
            self._obs, self._start, self._hidden = now, over, step.hidden * ~over[:, None]
            ended += int(over.sum())
            success += int(torch.as_tensor(info["success"]).sum())
        data = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        for name in ("actor", "privileged", "reward", "value", "log_prob"):
            require_finite_values(data[name], f"{name} of a rollout", self.lr)
        gain = advantages(
            data["reward"], data["value"], data["after"], data["done"], data["terminated"], config.gamma, config.gae
        )
        data |= {"advantage": (gain - gain.mean()) / (gain.std() + 1e-8), "return": gain + data["value"]}
        batch = Sequences(data["actor"], data["privileged"], data["action"], data["start"], first_hidden)
        scalars = {
            "success": success / ended if ended else math.nan, "episodes": float(ended),
            "reward": float(data["reward"].mean()),
        }  # fmt: skip
        return batch, data, scalars

    def _improve(self, batch: Sequences, data: dict[str, Tensor], generator: torch.Generator) -> dict[str, float]:
        """Epochs of clipped updates; means of the losses."""
        config, total = self.config, dict[str, float]()
        count = config.epochs * config.minibatches
        for _ in range(config.epochs):
            order, divergences = torch.randperm(data["reward"].shape[1], generator=generator), []
            for rows in order.tensor_split(config.minibatches):
                now = self.policy.evaluate(batch.rows(rows))
                change = now.log_prob - data["log_prob"][:, rows]
                ratio, gain = change.exp(), data["advantage"][:, rows]
                surrogate = -torch.min(ratio * gain, ratio.clamp(1 - config.clip, 1 + config.clip) * gain).mean()
                value_loss = (now.value - data["return"][:, rows]).square().mean()
                entropy = now.entropy.mean()
                loss = surrogate + config.value * value_loss - config.entropy * entropy + now.auxiliary
                require_finite_values(loss.detach(), "loss", self.lr)
                # The estimator of J. Schulman, "Approximating KL divergence": not negative, and of low variance.
                divergences.append(float((ratio.detach() - 1 - change.detach()).mean()))
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                norm = nn.utils.clip_grad_norm_(self.policy.parameters(), config.grad_clip)
                require_finite_values(norm, "gradient norm", self.lr)
                self.optimizer.step()
                clip_fraction = ((ratio.detach() - 1).abs() > config.clip).float().mean()
                parts = dict(zip(_LOSSES, (surrogate, value_loss, entropy, clip_fraction), strict=True))
                for name, value in {**now.scalars, **parts}.items():
                    total[name] = total.get(name, 0.0) + float(torch.as_tensor(value).detach()) / count
        total["kl"] = sum(divergences) / config.minibatches  # of the last epoch
        self._adapt(total["kl"])
        return {**total, "lr": self.lr}

    def _adapt(self, kl: float) -> None:
        wanted, lr = self.config.kl, self.lr
        if wanted and kl > 2 * wanted:
            lr = max(LR_RANGE[0], lr / 1.5)
        elif wanted and 0 < kl < wanted / 2:
            lr = min(LR_RANGE[1], lr * 1.5)
        for group in self.optimizer.param_groups:
            group["lr"] = lr


def tensors(obs: Mapping[str, Any]) -> dict[str, Tensor]:
    """An observation of a `StateEnv` as float32 tensors."""
    # Copied, because an environment may write the next observation into the same array.
    return {name: torch.tensor(np.asarray(obs[name]), dtype=torch.float32) for name in ("actor", "privileged")}


def require_finite_values(values: Tensor, what: str, lr: float) -> None:
    """Raise DivergedError if a value is NaN or infinite."""
    if not bool(torch.isfinite(values).all()):
        count = int((~torch.isfinite(values)).sum())
        raise DivergedError(
            f"{count} of {values.numel()} values of the {what} are NaN or infinite; expected finite numbers. The step "
            f"was not taken. Train again with a lower learning rate (now {lr:g}), such as PPOConfig(lr={lr / 10:g}); "
            "if the first update fails, look at the rewards and observations of the environment"
        )
