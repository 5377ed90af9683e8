"""Teacher and student, the two-phase alternative to DWL: a recurrent policy copies a teacher that saw the true state.

The student acts on its own noisy observations, and the teacher labels every visited state with the mean action that it
would take there: DAgger (Ross et al. 2011, arXiv 1011.0686) with regression, as in learning by cheating (arXiv
1912.12294). In the first rounds the teacher drives a decreasing share of the environments.

Example::

    teacher = StateActorCritic(DenoisingConfig(**env.sizes), source="privileged")
    PPO(teacher).train(env, 100_000)
    student = DenoisingActorCritic(DenoisingConfig(**env.sizes, reconstruct=None))
    distil(teacher, student, env, steps=100_000)
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agents.algorithms.ppo import StateEnv, require_finite_values, tensors
from agents.policies.denoising import Sequences
from worldgym.errors import ConfigError


@dataclass(frozen=True)
class DistilConfig:
    """Settings of `distil`.

    Args:
        horizon: steps per environment and round, also the length of backpropagation through time.
        teacher_rounds: rounds in which the teacher drives a share of the environments, which falls linearly to 0.
        memory: latest rounds that are trained on.
        epochs: passes over them per round.
        minibatches: parts of a round; whole environments are split.
        lr: learning rate of Adam.
        grad_clip: largest gradient norm.
        seed: seed of the starts, the drivers and the order.
    """

    horizon: int = 32
    teacher_rounds: int = 4
    memory: int = 4
    epochs: int = 2
    minibatches: int = 4
    lr: float = 1e-3
    grad_clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate."""
        for name in ("horizon", "memory", "epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} must be at least 1; got {getattr(self, name)}. Try DistilConfig({name}=4)"
                )
        if self.teacher_rounds < 0 or self.seed < 0:
            raise ConfigError(
                f"teacher_rounds and seed must not be negative; got {self.teacher_rounds}, {self.seed}. Try 4, 0"
            )
        if not (0 < self.lr < math.inf and 0 < self.grad_clip < math.inf):
            raise ConfigError(
                f"lr and grad_clip must be positive; got {self.lr}, {self.grad_clip}. Try 1e-3, 1.0"
            )


def distil(
    teacher: Any, student: Any, env: StateEnv, steps: int, config: DistilConfig | None = None,
    log: Callable[[dict[str, float]], None] | None = None,
) -> dict[str, float]:  # fmt: skip
    """Train `student` to predict the mean actions of `teacher`.

    Args:
        teacher: feed-forward `ActorCritic` on `privileged`, unchanged.
        student: `ActorCritic` on `actor` with `means(sequences) -> (T, B, D)`, changed in place.
        env: see `agents.algorithms.ppo.StateEnv`; it is reset with the seed of the config.
        steps: environment steps, in whole rounds.
        config: settings.
        log: called after every round with its scalars.

    Returns:
        scalars of the last round: steps, loss (mean squared error of an action dimension), success (rate of the
        episodes that ended, NaN without one), teacher (share of the environments that the teacher drove).

    Raises:
        ConfigError: `steps` is not positive, the teacher is recurrent, or environments are fewer than minibatches.
        DivergedError: the loss or a gradient is NaN or infinite.
    """
    config = config or DistilConfig()
    n = env.num_envs
    if steps < 1:
        raise ConfigError(f"steps must be at least 1; got {steps}. Try distil(..., steps=100_000)")
    if n < config.minibatches:
        raise ConfigError(
            f"{config.minibatches} minibatches need at least as many environments; got {n}. Try "
            f"DistilConfig(minibatches={n})"
        )
    if teacher.initial(1).shape[1]:
        raise ConfigError(
            f"the teacher {type(teacher).__name__} is recurrent; expected a feed-forward one. Try StateActorCritic"
        )
    optimizer = torch.optim.Adam(student.parameters(), lr=config.lr, eps=1e-5)
    obs, hidden, start = tensors(env.reset(config.seed)), student.initial(n), torch.ones(n, dtype=torch.bool)
    rounds: deque[tuple[Sequences, Tensor]] = deque(maxlen=config.memory)
    scalars: dict[str, float] = {}
    for number in range(math.ceil(steps / (n * config.horizon))):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
        share = max(0.0, 1 - number / config.teacher_rounds) if config.teacher_rounds else 0.0
        driven = (torch.rand(n, generator=generator) < share)[:, None]
        rows, first, ended, success = [], hidden, 0, 0
        student.eval()
        for _ in range(config.horizon):
            with torch.no_grad():
                wanted = teacher.act(obs, teacher.initial(n), True).action
                step = student.act(obs, hidden, False, generator)
            action = torch.where(driven, wanted, step.action)
            found, _, done, info = env.step(action.numpy())
            # The environment clips actions, so a label outside the range is the label at its border.
            rows.append({**obs, "action": action, "start": start, "wanted": wanted.clamp(-1, 1)})
            obs, start = tensors(found), torch.as_tensor(done)
            hidden = step.hidden * ~start[:, None]
            ended += int(start.sum())
            success += int(torch.as_tensor(info["success"]).sum())
        data = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        wanted_all = data.pop("wanted")
        rounds.append((Sequences(**data, hidden=first), wanted_all))
        student.train()
        losses = [
            _step(student, optimizer, batch.rows(part), wanted_of[:, part], config)
            for _ in range(config.epochs)
            for batch, wanted_of in rounds
            for part in torch.randperm(n, generator=generator).tensor_split(config.minibatches)
        ]
        student.eval()
        scalars = {
            "steps": float((number + 1) * n * config.horizon), "loss": sum(losses) / len(losses), "teacher": share,
            "success": success / ended if ended else math.nan,
        }  # fmt: skip
        if log is not None:
            log(scalars)
    return scalars


def _step(
    student: Any, optimizer: torch.optim.Optimizer, batch: Sequences, wanted: Tensor, config: DistilConfig
) -> float:
    loss = (student.means(batch) - wanted).square().mean()
    require_finite_values(loss.detach(), "loss of the student", config.lr)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(student.parameters(), config.grad_clip)
    require_finite_values(norm, "gradient norm of the student", config.lr)
    optimizer.step()
    return float(loss.detach())
