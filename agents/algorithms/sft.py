"""Supervised fine-tuning on demonstrated action chunks, with the policy's own losses (`TrainablePolicy.loss`).

SFT gives the initial policy of every method that is compared, so it is trained carefully: episodes are split into
training and validation, and the weights with the best validation score are kept. Targets are hard: label smoothing adds
about one nat of entropy to every dimension and halves the success of the sampled policy.

Example::

    demos = chunk_dataset(episodes)
    policy = VLAPolicy(VLAPolicyConfig.preset("small"))
    history = SFT(SFTConfig(epochs=40)).fit(policy, demos)
    history["best_val_loss"]

Auxiliary losses (`agents.auxiliary`) are added to the policy's own; their weights are trained and resumed with it.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from agents.algorithms.guards import require_finite_step
from agents.algorithms.parameters import component_of, learned_parameters
from agents.auxiliary.base import AuxiliaryLoss
from agents.auxiliary.training import Auxiliaries
from agents.data.demonstrations import ChunkDataset, chunk_dataset, demonstrations, episode_views
from agents.data.jitter import jittered
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
        auxiliaries: losses on the policy's future tokens, added to its own; the dataset then needs later frames.
        video: rows without actions, from which the auxiliary losses alone learn, as many in a step as demonstrations.
    """

    def __init__(
        self, config: SFTConfig | None = None, auxiliaries: Sequence[AuxiliaryLoss] = (),
        video: ChunkDataset | None = None,
    ) -> None:  # fmt: skip
        self.config = config or SFTConfig()
        self._extra = Auxiliaries(auxiliaries, video, self.config.learn)
        self._extra.reseed(self.config.seed, 3)
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
        optimizer, extra = self._new_optimizer(policy), self._extra
        extra.begin(policy)
        steps_per_epoch = math.ceil(len(train) / config.batch_size)
        total = config.epochs * steps_per_epoch
        best: dict[str, Any] = {
            "score": math.inf, "loss": math.inf, "epoch": -1, "accuracy": 0.0, "weights": None, "auxiliary": None,
        }  # fmt: skip
        average = copy.deepcopy(policy).requires_grad_(False)
        first = 0
        if checkpoint is not None and checkpoint.exists():
            meta = checkpoint.load(policy, optimizer)
            first = int(meta["epoch"]) + 1
            best = {**meta["best"], "weights": checkpoint.load_extra("best")}
            average.load_state_dict(checkpoint.load_extra("average"))
            if extra:
                extra.load_state_dict(checkpoint.load_extra("auxiliary"))
                best["auxiliary"] = checkpoint.load_extra("best_auxiliary")
            # The dropout of the finishing steps depends on this state.
            restore_random(checkpoint.load_extra("random"))
        epoch = first - 1
        stopped = bool(config.patience) and first > 0 and epoch - best["epoch"] >= config.patience
        for epoch in range(first, first if stopped else config.epochs):
            # One generator per epoch, so that a resumed run draws the same batches as an uninterrupted one.
            rng = np.random.default_rng((config.seed, epoch))
            torch.manual_seed(config.seed * 100_003 + epoch)
            extra.reseed(config.seed, epoch, 1)
            policy.train()
            losses = []
            for i, rows in enumerate(np.array_split(rng.permutation(len(train)), steps_per_epoch)):
                lr = _cosine(epoch * steps_per_epoch + i, total, config.lr)
                losses.append(self._step(policy, optimizer, train, rows, rng, lr))
                done = epoch * steps_per_epoch + i + 1
                average_weights(average, policy, min(config.ema, done / (done + 10)))
            scalars = {"epoch": float(epoch), "loss": float(np.mean(losses)), **self.evaluate(average, val)}
            scalars |= extra.scalars()
            score = scalars.get(config.select, scalars["val_loss"])
            if score < best["score"]:
                weights = copy.deepcopy(average.state_dict())
                accuracy = scalars.get("val_accuracy", math.nan)
                best = {
                    "score": score,
                    "loss": scalars["val_loss"],
                    "epoch": epoch,
                    "weights": weights,
                    "auxiliary": copy.deepcopy(extra.state_dict()) if extra else None,
                    "accuracy": accuracy,
                }
            if on_epoch is not None:  # before the checkpoint: an epoch that was not logged is repeated on resume
                on_epoch(scalars)
            if checkpoint is not None:
                numbers = {k: v for k, v in best.items() if k not in ("weights", "auxiliary")}
                meta = {"epoch": epoch, "best": numbers}
                parts = {"best": best["weights"], "average": average.state_dict(), "random": random_state()}
                if extra:
                    parts |= {"auxiliary": extra.state_dict(), "best_auxiliary": best["auxiliary"]}
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
        if extra:
            extra.load_state_dict(best["auxiliary"])
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
        trainer._extra = self._extra
        self._extra.reseed(config.seed, 0, 2)
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
            self._optimizer = self._new_optimizer(policy)
        return self._optimizer

    def _new_optimizer(self, policy: Any) -> torch.optim.AdamW:
        learned = learned_parameters(policy, self.config.learn)
        return _adamw([*learned, *self._extra.learned()], self.config.lr, self.config.weight_decay)

    def reseed(self, seed: int) -> None:
        """Restart the random stream of augmentation and sampling from `seed`, so that a resumed run repeats it."""
        self._rng = np.random.default_rng(seed)
        self._extra.reseed(seed, 3)

    def _step(
        self,
        policy: Any,
        optimizer: torch.optim.Optimizer,
        dataset: ChunkDataset,
        rows: np.ndarray,
        rng: np.random.Generator,
        lr: float,
    ) -> float:
        config, extra = self.config, self._extra
        batch = self._augmented(policy, dataset, rows, rng)
        for group in optimizer.param_groups:
            group["lr"] = lr
        losses, hidden = self._losses(policy, batch)
        first, *others = losses
        loss = losses[first]
        for name in others:
            loss = loss + config.goal_coef * losses[name]
        for name, value in losses.items():
            require_finite_step(float(value.detach()), f"loss of the component {name!r}", policy, lr)
        if extra:
            loss = loss + self._auxiliary(policy, batch, hidden, lr)
            extra.zero_grad(set_to_none=True)
        policy.zero_grad(set_to_none=True)
        loss.backward()
        if extra.video is not None:
            unlabelled = self._augmented(policy, extra.video, extra.video_rows(len(rows)), extra.rng)
            self._auxiliary(policy, unlabelled, None, lr, "video_").backward()
        norm = float(torch.nn.utils.clip_grad_norm_(policy.parameters(), config.grad_clip))
        require_finite_step(norm, "gradient norm", policy, lr)
        extra.clip(config.grad_clip)
        optimizer.step()
        extra.after_step(policy)
        return float(losses[first].detach())

    def _auxiliary(self, policy: Any, batch: Any, hidden: Any, lr: float, what: str = "") -> Tensor:
        """Sum of the auxiliary losses, all finite."""
        found = self._extra.losses(policy, batch, hidden, what)
        for name, value in found.items():
            require_finite_step(float(value.detach()), f"auxiliary loss {name!r}", policy, lr)
        return torch.stack(list(found.values())).sum()

    def _augmented(self, policy: Any, dataset: ChunkDataset, rows: np.ndarray, rng: np.random.Generator) -> Any:
        """The batch of these rows with jittered images and noisy proprioception; later frames stay as they are."""
        config = self.config
        batch = dataset.chunk_batch(rows, rng=rng, goal_noise=config.aim_noise)
        observation = batch["observation"]
        observation["image"] = jittered(observation["image"], rng, config.colour_jitter, config.noise)
        if config.state_noise:
            noise = torch.from_numpy(rng.standard_normal(observation["state"].shape).astype(np.float32))
            spread = torch.as_tensor(getattr(policy, "state_std", 1.0)).cpu()  # 1 if the policy has no statistics
            observation["state"] = observation["state"] + config.state_noise * noise * spread
        self._extra.prepare(batch)
        return batch

    def _losses(self, policy: Any, batch: Any) -> tuple[Mapping[str, Tensor], tuple[Tensor, ...] | None]:
        """The policy's own losses, and the tokens of that pass if auxiliary losses need them and it has them."""
        parts, hidden = None if self.config.learn == "all" else (component_of(self.config.learn),), None
        if self._extra and hasattr(policy, "loss_and_hidden"):
            losses, hidden = policy.loss_and_hidden(batch, parts)
        else:
            losses = policy.loss(batch, parts)
        if not isinstance(losses, Mapping) or not losses:
            raise ConfigError(
                f"{type(policy).__name__}.loss returned a {type(losses).__name__}; expected a dict of scalar losses by "
                "component, with at least one, such as {'action': loss}"
            )
        return losses, hidden

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
