"""Training of a state-only ensemble on logged episodes, by forecasts that feed back their own samples.

RWM (arXiv 2501.10100) and RWM-U (arXiv 2504.16680): a batch of windows with a history of up to H pairs, a forecast of K
steps, and the loss `sum_k alpha^k NLL_k`. The likelihood replaces the release's squared error of samples, which is
smallest at a standard deviation of zero. Every member trains on its own subset of the episodes, which is drawn once
(bootstrap). Whole episodes are left out, because the steps of one episode are almost the same data.

Example::

    model = StateEnsemble(StateEnsembleConfig.preset("small").for_data(episodes))
    train_states(model, episodes, StateTrainingConfig(steps=2000), "runs/states")     # Ctrl-C; the same call continues
    model = StateEnsemble.from_pretrained("runs/states")
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldgym.errors import ConfigError, DatasetError
from worldgym.models.states import StateEnsemble, StateEpisode, check_episodes, gaussian_nll
from worldgym.training.loop import LoopConfig, TrainingLoop


@dataclass(frozen=True)
class StateTrainingConfig:
    """Settings of the training.

    Args:
        steps: optimizer updates.
        batch_size: windows per update; all members get the same windows, weighted by their bootstrap masks.
        lr: peak learning rate.
        alpha: weight of a forecast step relative to the one before it, in (0, 1].
        bootstrap: probability that a member trains on an episode, in (0, 1]; 1 gives every member all episodes.
        reward_weight: weight of the squared error of the reward, in units of its variance.
        event_weight: weight of the cross-entropies of success and termination.
        seed: seed of the masks, the windows and the samples.
        ema: decay of the averaged weights, which are the result.
        log_every: steps between log lines and TensorBoard points.
        save_seconds: seconds between checkpoints.

    Raises:
        ConfigError: a value is out of range.
    """

    steps: int = 2000
    batch_size: int = 64
    lr: float = 1e-3
    alpha: float = 1.0
    bootstrap: float = 0.8
    reward_weight: float = 1.0
    event_weight: float = 1.0
    seed: int = 0
    ema: float = 0.998
    log_every: int = 50
    save_seconds: float = 180.0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}, expected at least 1; try batch_size=64")
        for name, usual in (("alpha", 1.0), ("bootstrap", 0.8)):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}, expected above 0 and at most 1; try {name}={usual}"
                )
        for name in ("reward_weight", "event_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(
                    f"{name} is {getattr(self, name)}, expected a number of at least 0; try {name}=1"
                )


class StateLogs(NamedTuple):
    """N episodes as tensors, padded with zeros to the longest, T steps.

    Args:
        states: `(N,T+1,S)`.
        actions: `(N,T,A)`.
        reward: `(N,T)`.
        success: `(N,T)` in {0, 1}.
        terminated: `(N,T)` in {0, 1}.
        lengths: `(N,)` int64, steps of each episode.
    """

    states: Tensor
    actions: Tensor
    reward: Tensor
    success: Tensor
    terminated: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, episodes: Sequence[StateEpisode]) -> StateLogs:
        """Stack checked episodes.

        Raises:
            DatasetError: see `worldgym.models.states.check_episodes`.
        """
        check_episodes(episodes)
        columns: list[Tensor] = []
        for name in ("states", "actions", "reward", "success", "terminated"):
            rows = [torch.from_numpy(np.asarray(e.get(name, e["success"]), np.float32)) for e in episodes]
            columns.append(nn.utils.rnn.pad_sequence(rows, batch_first=True))
        return cls(*columns, lengths=torch.tensor([len(e["actions"]) for e in episodes]))

    def fingerprint(self) -> str:
        """SHA-256 of the data, 16 hex digits."""
        digest = hashlib.sha256()
        for column in self:
            digest.update(str(tuple(column.shape)).encode() + column.numpy().tobytes())
        return digest.hexdigest()[:16]


def bootstrap_masks(members: int, episodes: int, probability: float, seed: int) -> Tensor:
    """Episodes that each member trains on, `(members, episodes)` bool; drawn from the seed alone.

    A member without an episode gets one at random, and an episode without a member goes to one at random.
    """
    rng = np.random.default_rng((seed, 4723))
    masks = rng.random((members, episodes)) < probability
    for m in np.flatnonzero(~masks.any(1)):
        masks[m, rng.integers(episodes)] = True
    for n in np.flatnonzero(~masks.any(0)):
        masks[rng.integers(members), n] = True
    return torch.from_numpy(masks)


def state_loss(
    model: StateEnsemble,
    logs: StateLogs,
    masks: Tensor,
    rows: Tensor,
    first: Tensor,
    settings: StateTrainingConfig,
    generator: torch.Generator | None,
) -> tuple[Tensor, dict[str, float]]:
    """Loss of the windows whose forecasts start at step `first (B,)` of the episodes `rows (B,)`.

    `sum_k alpha^k NLL_k / sum_k alpha^k`, where NLL_k is the mean over dimensions that change, over windows that reach
    step k and over members, plus the errors of reward, success and termination with the same weights.

    Args:
        model: the ensemble.
        logs: the data.
        masks: `(E,N)` bool from `bootstrap_masks`.
        rows: episodes, int64.
        first: first steps of the forecasts, int64; the history is what the episode has before it, at most H - 1 pairs.
        settings: weights of the loss.
        generator: noise of the samples that are fed back; None feeds back the means.
    """
    c, device = model.config, model.device
    past = min(c.history - 1, int(first.max()))
    steps = min(c.forecast, logs.actions.shape[1] - int(first.min()))
    before = first[:, None] + torch.arange(-past, 1)
    ahead = first[:, None] + torch.arange(steps)
    inside = ahead < logs.lengths[rows, None]
    ahead = ahead.clamp_max(logs.actions.shape[1] - 1)
    at = lambda column, t: column[rows[:, None], t].to(device)  # noqa: E731
    pairs = torch.cat([before[:, :-1].clamp_min(0), ahead], 1)
    valid = (before[:, :-1] >= 0).to(device)
    made = model.forecast(
        at(logs.states, before.clamp_min(0)), at(logs.actions, pairs), past, generator, valid=valid
    )
    weight = (masks[:, rows].to(device) & inside.T[:, None].to(device)).float()  # (K, E, B)
    weight = weight * settings.alpha ** torch.arange(steps, device=device)[:, None, None]
    total = weight.sum().clamp_min(1e-9)
    mean_of = lambda values: (values * weight).sum() / total  # noqa: E731
    moving = model.step_std > 0
    scale = model.step_std[moving]
    after = at(logs.states, ahead + 1).transpose(0, 1)[:, None]  # (K, 1, B, S)
    change = ((after - made.before)[..., moving]) / scale
    parts = {}
    if bool(moving.any()):
        nll = gaussian_nll(made.mean[..., moving], made.log_std[..., moving], change)
        parts["nll"] = mean_of(nll.mean(-1))
    reward = (at(logs.reward, ahead).T[:, None] - c.reward_mean) / c.reward_std
    parts["reward"] = settings.reward_weight * mean_of((made.reward - reward).square())
    for name in ("success", "terminated"):
        target = at(getattr(logs, name), ahead).T[:, None].expand_as(made.reward)
        event = F.binary_cross_entropy_with_logits(getattr(made, name), target, reduction="none")
        parts[name] = settings.event_weight * mean_of(event)
    return torch.stack(list(parts.values())).sum(), {
        name: float(value.detach()) for name, value in parts.items()
    }


def train_states(
    model: StateEnsemble, episodes: Sequence[StateEpisode], settings: StateTrainingConfig, out: Path | str
) -> dict[str, float]:
    """Train an ensemble in place and save it in `out`; a checkpoint in `out` is continued.

    Args:
        model: the ensemble; its config must hold the statistics of data like these. Afterwards it has the averaged
            weights and is in evaluation mode.
        episodes: logged episodes, see `worldgym.models.states.StateEpisode`.
        settings: settings of the training.
        out: folder of the run, for config, weights, checkpoint and TensorBoard.

    Returns:
        the averaged losses of the last steps.

    Raises:
        DatasetError: an episode has other shapes.
        ConfigError: `out` holds a run with other settings or data.
        CheckpointError: the checkpoint in `out` is damaged.
    """
    logs, c = StateLogs.of(episodes), model.config
    dims = (logs.states.shape[2], logs.actions.shape[2])
    if dims != (c.state_dim, c.action_dim):
        raise DatasetError(
            f"the episodes have {dims[0]} state and {dims[1]} action dimensions, expected {c.state_dim} and "
            f"{c.action_dim} as in the model; make its config with StateEnsembleConfig.preset(...).for_data(episodes)"
        )
    masks = bootstrap_masks(c.members, len(logs.lengths), settings.bootstrap, settings.seed)
    steps = logs.lengths.cumsum(0)

    def loss(module: nn.Module, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        drawn = torch.randint(int(steps[-1]), (settings.batch_size,), generator=generator)
        rows = torch.searchsorted(steps, drawn, right=True)
        first = drawn - (steps[rows] - logs.lengths[rows])
        return state_loss(module, logs, masks, rows, first, settings, generator)

    loop = TrainingLoop(
        model,
        LoopConfig(
            steps=settings.steps, lr=settings.lr, warmup=min(100, settings.steps // 10), weight_decay=1e-4,
            ema=settings.ema, seed=settings.seed, log_every=settings.log_every, save_seconds=settings.save_seconds,
        ),
        out,
        loss,
        tag="states",
        identity={
            "model": c.to_dict(), "data": logs.fingerprint(), "batch_size": settings.batch_size,
            "alpha": settings.alpha, "bootstrap": settings.bootstrap, "reward_weight": settings.reward_weight,
            "event_weight": settings.event_weight,
        },
    )  # fmt: skip
    metrics = loop.run()
    model.load_state_dict(loop.ema_model.state_dict())
    model.eval()
    model.save_pretrained(out)
    return metrics
