"""Supervised fine-tuning on demonstrated action chunks, with the policy's own losses (`TrainablePolicy.loss`).

SFT gives the initial policy of every method that is compared, so it is trained carefully: episodes are split into
training and validation, and the weights with the best validation score are kept. Targets are hard: label smoothing adds
about one nat of entropy to every dimension and halves the success of the sampled policy.

Example::

    demos = chunk_dataset(episodes)
    policy = VLAPolicy(VLAPolicyConfig.preset("small"))
    history = SFT(SFTConfig(epochs=40)).fit(policy, demos)
    history["best_val_loss"]
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from agents.algorithms.guards import require_finite_step
from agents.algorithms.parameters import component_of, learned_parameters
from agents.data.demonstrations import ChunkDataset, chunk_dataset, demonstrations, episode_views
from worldgym.errors import ConfigError, DivergedError
from worldgym.utils.devices import random_state, restore_random
from worldgym.utils.train_state import TrainState

__all__ = ["SFT", "ChunkDataset", "SFTConfig", "chunk_dataset", "demonstrations", "episode_views"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SFTConfig:
    """Settings of supervised fine-tuning.

    Args:
        epochs: maximum number of passes over the data.
        batch_size: frames per step.
        lr: peak AdamW learning rate; after a short warm-up it decays by a cosine to a twentieth.
        weight_decay: AdamW weight decay.
        val_fraction: fraction of the episodes held out for validation.
        select: validation score by which the best weights are chosen (lowest wins). `val_loss` penalises confidence and
            reaches its minimum long before the predicted goals are best; `val_goal_error` is the distance between
            predicted and true goal, in metres.
        patience: stop after this many epochs without a better score; 0 never stops early.
        colour_jitter: strength of brightness, contrast and channel jitter; no shifts, which would change the label.
        noise: standard deviation of pixel noise, in [0,1] units.
        state_noise: noise on normalised proprioception, so that the policy also relies on the image.
        goal_coef: loss weight of predicting the next keyframe of the hand, relative to the action loss; applies to
            every component other than `action`.
        aim_noise: noise on the true goal position that the action head is conditioned on in training, in standard
            deviations of proprioception.
        learn: `all`, or one component of the policy such as `goal` (only where to move). The other weights and the
            input statistics then stay as they are, and rows without a known goal are skipped.
        ema: decay of the averaged weights, which are validated and kept. With a few thousand frames, the weights after
            a single step are noisy.
        finish_steps: extra steps at `finish_lr` on all demonstrations, validation episodes included, after the best
            weights were found; the average of the weights over these steps is kept. Without them, any method that
            continues cloning has an advantage in a comparison.
        finish_lr: constant learning rate of the extra steps.
        grad_clip: maximum gradient norm.
        seed: seed of split, order and augmentation.
    """

    epochs: int = 60
    batch_size: int = 128
    lr: float = 8e-4
    weight_decay: float = 0.02
    val_fraction: float = 0.1
    select: Literal["val_loss", "val_goal_error"] = "val_goal_error"
    patience: int = 12
    colour_jitter: float = 0.1
    noise: float = 0.02
    state_noise: float = 0.05
    goal_coef: float = 1.0
    aim_noise: float = 0.1
    learn: str = "all"
    ema: float = 0.99
    finish_steps: int = 0
    finish_lr: float = 3e-4
    grad_clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate."""
        if self.epochs < 1 or self.batch_size < 1:
            raise ConfigError(
                f"epochs and batch_size must be at least 1; got {self.epochs}, {self.batch_size}"
            )
        if self.select not in ("val_loss", "val_goal_error"):
            raise ConfigError(f"select must be 'val_loss' or 'val_goal_error'; got {self.select!r}")
        if not 0 < self.val_fraction < 1:
            raise ConfigError(f"val_fraction must lie in (0, 1); got {self.val_fraction}. Try 0.1")
        if self.patience < 0 or self.finish_steps < 0:
            raise ConfigError(
                f"patience and finish_steps must not be negative; got {self.patience}, {self.finish_steps}"
            )
        if not self.lr > 0 or not 0 <= self.ema < 1:
            raise ConfigError(
                f"lr must be positive and ema in [0, 1); got {self.lr}, {self.ema}. Try 8e-4, 0.99"
            )


class SFT:
    """Supervised trainer. Its `update` is also the behaviour-cloning control.

    Args:
        config: settings.
    """

    def __init__(self, config: SFTConfig | None = None) -> None:
        self.config = config or SFTConfig()
        self._optimizer: torch.optim.AdamW | None = None
        self._rng = np.random.default_rng(self.config.seed)

    def fit(
        self,
        policy: Any,
        dataset: ChunkDataset,
        *,
        on_epoch: Callable[[dict[str, float]], None] | None = None,
        checkpoint: TrainState | None = None,
    ) -> dict[str, float]:
        """Train until the best validation score (see `select`) and leave those weights in `policy`.

        Args:
            policy: changed in place; its state normalisation is set from the training episodes.
            dataset: from `chunk_dataset`.
            on_epoch: called with scalars after every epoch.
            checkpoint: training state, saved after every epoch; an existing one is resumed.

        Returns:
            best_score, best_val_loss, best_epoch, epochs, val_accuracy (fraction of correct bins), frames.

        Raises:
            DivergedError: a loss or a gradient is NaN or infinite, or no epoch has a finite validation score.
        """
        config = self.config
        if len(np.unique(dataset.episode)) > 1:
            train, val = dataset.split(config.val_fraction, config.seed)
        else:
            _log.warning(
                "only one demonstration: no episode is held out, and validation uses the training frames"
            )
            train = val = dataset
        if config.learn == "all":
            for name, values in (("set_state_stats", train.states), ("set_text_stats", train.instructions)):
                if hasattr(policy, name):  # only policies that standardise their inputs
                    getattr(policy, name)(values)
        optimizer = _adamw(learned_parameters(policy, config.learn), config.lr, config.weight_decay)
        steps_per_epoch = math.ceil(len(train) / config.batch_size)
        total = config.epochs * steps_per_epoch
        best: dict[str, Any] = {
            "score": math.inf,
            "loss": math.inf,
            "epoch": -1,
            "weights": None,
            "accuracy": 0.0,
        }
        average = copy.deepcopy(policy).requires_grad_(False)
        first = 0
        if checkpoint is not None and checkpoint.exists():
            meta = checkpoint.load(policy, optimizer)
            first = int(meta["epoch"]) + 1
            best = {**meta["best"], "weights": checkpoint.load_extra("best")}
            average.load_state_dict(checkpoint.load_extra("average"))
            # The dropout of the finishing steps depends on this state.
            restore_random(checkpoint.load_extra("random"))
        epoch = first - 1
        stopped = bool(config.patience) and first > 0 and epoch - best["epoch"] >= config.patience
        for epoch in range(first, first if stopped else config.epochs):
            # One generator per epoch, so that a resumed run draws the same batches as an uninterrupted one.
            rng = np.random.default_rng((config.seed, epoch))
            torch.manual_seed(config.seed * 100_003 + epoch)
            policy.train()
            losses = []
            for i, rows in enumerate(np.array_split(rng.permutation(len(train)), steps_per_epoch)):
                lr = _cosine(epoch * steps_per_epoch + i, total, config.lr)
                losses.append(self._step(policy, optimizer, train, rows, rng, lr))
                done = epoch * steps_per_epoch + i + 1
                average_weights(average, policy, min(config.ema, done / (done + 10)))
            scalars = {"epoch": float(epoch), "loss": float(np.mean(losses)), **self.evaluate(average, val)}
            score = scalars.get(config.select, scalars["val_loss"])
            if score < best["score"]:
                weights = copy.deepcopy(average.state_dict())
                accuracy = scalars.get("val_accuracy", math.nan)
                best = {
                    "score": score,
                    "loss": scalars["val_loss"],
                    "epoch": epoch,
                    "weights": weights,
                    "accuracy": accuracy,
                }
            if on_epoch is not None:  # before the checkpoint: an epoch that was not logged is repeated on resume
                on_epoch(scalars)
            if checkpoint is not None:
                meta = {"epoch": epoch, "best": {k: v for k, v in best.items() if k != "weights"}}
                parts = {"best": best["weights"], "average": average.state_dict(), "random": random_state()}
                checkpoint.save(policy, optimizer, meta, **parts)
            if config.patience and epoch - best["epoch"] >= config.patience:
                _log.info("early stop after epoch %d, best was %d", epoch, best["epoch"])
                break
        if best["weights"] is None:
            raise DivergedError(
                f"no epoch had a finite {config.select}; the policy is not usable. Train again with a lower learning "
                f"rate (now --lr {config.lr:g})"
            )
        policy.load_state_dict(best["weights"])
        if config.finish_steps:
            self._finish(policy, dataset)
        policy.eval()
        return {
            "best_score": best["score"],
            "best_val_loss": best["loss"],
            "best_epoch": float(best["epoch"]),
            "epochs": float(epoch + 1),
            "val_accuracy": best["accuracy"],
            "frames": float(len(train)),
        }

    def _finish(self, policy: Any, dataset: ChunkDataset) -> None:
        config = dataclasses.replace(self.config, lr=self.config.finish_lr, weight_decay=0.0)
        _log.info("%d more steps around the best weights, whose average is kept", self.config.finish_steps)
        trainer, average = SFT(config), copy.deepcopy(policy).requires_grad_(False)
        for done in range(1, config.finish_steps + 1):
            trainer.update(policy, dataset)
            average_weights(average, policy, min(config.ema, done / (done + 10)))
        policy.load_state_dict(average.state_dict())

    def update(self, policy: Any, rollouts: ChunkDataset, *, steps: int = 1) -> dict[str, float]:
        """Take `steps` cloning steps at the constant learning rate; the optimizer is kept between calls."""
        size = min(self.config.batch_size, len(rollouts))
        rows = self._rng.integers(0, len(rollouts), steps * size)
        return {"loss": float(np.mean(self.steps(policy, rollouts, rows, steps)))}

    def steps(self, policy: Any, dataset: ChunkDataset, rows: np.ndarray, count: int) -> list[float]:
        """Take `count` steps over the given `rows`, split evenly; returns the loss of the first component per step."""
        optimizer = self.optimizer(policy)
        policy.train()
        parts = np.array_split(rows, count)
        losses = [self._step(policy, optimizer, dataset, part, self._rng, self.config.lr) for part in parts]
        policy.eval()
        return losses

    def optimizer(self, policy: Any) -> torch.optim.AdamW:
        """Return the optimizer of `policy` for `update` and `steps`, created on first use."""
        if self._optimizer is None:
            learned = learned_parameters(policy, self.config.learn)
            self._optimizer = _adamw(learned, self.config.lr, self.config.weight_decay)
        return self._optimizer

    def reseed(self, seed: int) -> None:
        """Restart the random stream of augmentation and sampling from `seed`, so that a resumed run repeats it."""
        self._rng = np.random.default_rng(seed)

    def _step(
        self,
        policy: Any,
        optimizer: torch.optim.Optimizer,
        dataset: ChunkDataset,
        rows: np.ndarray,
        rng: np.random.Generator,
        lr: float,
    ) -> float:
        config = self.config
        batch = dataset.chunk_batch(rows, rng=rng, goal_noise=config.aim_noise)
        observation = batch["observation"]
        observation["image"] = _jitter(observation["image"], rng, config.colour_jitter, config.noise)
        if config.state_noise:
            noise = torch.from_numpy(rng.standard_normal(observation["state"].shape).astype(np.float32))
            spread = torch.as_tensor(getattr(policy, "state_std", 1.0)).cpu()  # 1 if the policy has no statistics
            observation["state"] = observation["state"] + config.state_noise * noise * spread
        for group in optimizer.param_groups:
            group["lr"] = lr
        losses = policy.loss(batch, None if config.learn == "all" else (component_of(config.learn),))
        if not isinstance(losses, Mapping) or not losses:
            raise ConfigError(
                f"{type(policy).__name__}.loss returned a {type(losses).__name__}; expected a dict of scalar losses by "
                "component, with at least one, such as {'action': loss}"
            )
        first, *others = losses
        loss = losses[first]
        for name in others:
            loss = loss + config.goal_coef * losses[name]
        for name, value in losses.items():
            require_finite_step(float(value.detach()), f"loss of the component {name!r}", policy, lr)
        policy.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(policy.parameters(), config.grad_clip))
        require_finite_step(norm, "gradient norm", policy, lr)
        optimizer.step()
        return float(losses[first].detach())

    @staticmethod
    @torch.no_grad()
    def evaluate(policy: Any, dataset: ChunkDataset, batch_size: int = 256) -> dict[str, float]:
        """Validation scores without dropout: the policy's own `metrics` if it has them, else its losses.

        Returns:
            val_loss, and the other metrics of the policy; means over rows.
        """
        policy.eval()
        totals: dict[str, float] = {}
        for begin in range(0, len(dataset), batch_size):
            rows = np.arange(begin, min(begin + batch_size, len(dataset)))
            batch = dataset.chunk_batch(rows)
            if hasattr(policy, "metrics"):
                found = policy.metrics(batch)
            else:
                found = {"val_loss": float(sum(policy.loss(batch).values()))}
            for name, value in found.items():
                totals[name] = totals.get(name, 0.0) + value * len(rows)
        return {name: value / max(1, len(dataset)) for name, value in totals.items()}


def _adamw(parameters: list[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.AdamW:
    decayed = [p for p in parameters if p.ndim > 1]
    plain = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


@torch.no_grad()
def average_weights(average: Any, policy: Any, decay: float) -> None:
    """Move `average` towards `policy` by 1 - decay; buffers (state and text statistics) are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(policy.parameters()), 1 - decay)
    for kept, new in zip(average.buffers(), policy.buffers(), strict=True):
        kept.copy_(new)


def _cosine(step: int, total: int, peak: float) -> float:
    warm = min(1.0, (step + 1) / max(1, min(100, total // 10)))
    return peak * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total))))


def _jitter(image: Tensor, rng: np.random.Generator, strength: float, noise: float) -> Tensor:
    """Random brightness, contrast and channel gains per row, plus pixel noise; `(B,H,W,3)` uint8 in and out."""
    if not strength and not noise:
        return image
    batch = image.shape[0]
    gain = torch.from_numpy(rng.uniform(1 - strength, 1 + strength, (batch, 1, 1, 3)).astype(np.float32))
    shift = torch.from_numpy(rng.uniform(-strength, strength, (batch, 1, 1, 1)).astype(np.float32))
    x = image.float() * gain + 127.5 * shift
    if noise:
        x = x + 255 * noise * torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32))
    return x.round().clamp(0, 255).to(torch.uint8)
