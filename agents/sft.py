"""Supervised fine-tuning: cross-entropy on the bins of demonstrated action chunks.

The starting point of every arm, so it has to be an honest one: episodes are split into training and validation,
and the weights with the lowest validation loss are kept. Targets are hard: smoothing them puts about one nat of
entropy in every dimension and halves the success of the sampled policy.

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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from agents.demos import ChunkDataset, chunk_dataset, demonstrations, episode_views
from agents.pointer import Pointing, learned_pointer
from agents.vla import PolicyForward, VLAPolicy
from worldgym.errors import ConfigError
from worldgym.protocols import Observation
from worldgym.utils.train_state import TrainState

__all__ = ["SFT", "ChunkDataset", "SFTConfig", "bc_loss", "chunk_dataset", "demonstrations", "episode_views"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SFTConfig:
    """Settings of supervised fine-tuning.

    Args:
        epochs: at most so many passes.
        batch_size: frames per step.
        lr: peak AdamW learning rate, cosine to a twentieth after a short warm-up.
        weight_decay: AdamW weight decay.
        val_fraction: share of the episodes held out.
        select: held-out score whose lowest weights are kept. `val_loss` punishes confidence and is lowest long
            before the policy points best; `val_goal_error` is how far off it points, in metres.
        patience: stop after so many epochs without a better score; 0 never stops early.
        colour_jitter: strength of brightness, contrast and channel jitter; no shifts, which would change the label.
        noise: standard deviation of pixel noise, in [0,1] units.
        state_noise: noise on normalised proprioception, so that the policy looks at the image too.
        goal_coef: weight of predicting the hand's next keyframe beside the actions.
        aim_noise: noise on the true place that acting is trained with, in spreads of proprioception.
        learn: `all`, or `pointer`: only where to go, while acting and the inputs' statistics stay as they are; rows of
            unknown goals are skipped.
        ema: decay of the averaged weights, which are the ones that are validated and kept: at a few thousand frames the
            weights after any single step are noisy.
        finish_steps: steps at `finish_lr` on all demonstrations, those held out included, after the best weights were
            found; the average of the weights on the way is kept. Without it, any arm that goes on cloning looks good.
        finish_lr: constant learning rate of the finish.
        grad_clip: gradient norm bound.
        seed: of split, order and augmentation.
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
    learn: Literal["all", "pointer"] = "all"
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
        if self.learn not in ("all", "pointer") or self.select not in ("val_loss", "val_goal_error"):
            raise ConfigError(
                "learn must be 'all' or 'pointer' and select 'val_loss' or 'val_goal_error'; got "
                f"{self.learn!r} and {self.select!r}"
            )
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


def bc_loss(policy: VLAPolicy, observation: Observation, actions: np.ndarray | Tensor) -> Tensor:
    """Mean cross-entropy of one action dimension, nats, against the nearest bins of `actions (B,K,A)`.

    Unknown actions (NaN) are left out.
    """
    known = ~torch.isnan(torch.as_tensor(actions))
    chosen = policy.token_log_probs(observation, policy.tokens_of(torch.as_tensor(actions).nan_to_num()))[0]
    return -(chosen if known.all() else chosen[known]).mean()


class SFT:
    """Supervised trainer; also the BC-only control, through `update`.

    Args:
        config: settings.
    """

    def __init__(self, config: SFTConfig | None = None) -> None:
        self.config = config or SFTConfig()
        self._optimizer: torch.optim.AdamW | None = None
        self._rng = np.random.default_rng(self.config.seed)

    def fit(
        self,
        policy: VLAPolicy,
        dataset: ChunkDataset,
        *,
        on_epoch: Callable[[dict[str, float]], None] | None = None,
        checkpoint: TrainState | None = None,
    ) -> dict[str, float]:
        """Train to the best held-out score (see `select`) and leave those weights in `policy`.

        Args:
            policy: changed in place; its state normalisation is set from the training episodes.
            dataset: from `chunk_dataset`.
            on_epoch: called with scalars after every epoch.
            checkpoint: where to save after every epoch and to resume from.

        Returns:
            best_score, best_val_loss, best_epoch, epochs, val_accuracy (share of right bins), frames.
        """
        config = self.config
        if len(np.unique(dataset.episode)) > 1:
            train, val = dataset.split(config.val_fraction, config.seed)
        else:
            _log.warning(
                "one demonstration: nothing is held out, and scores are of the frames that are learned"
            )
            train = val = dataset
        select = config.select if policy.config.goal_dims else "val_loss"
        if config.learn == "all":
            policy.set_state_stats(train.states)
            policy.set_text_stats(train.instructions)
        optimizer = _adamw(
            policy if config.learn == "all" else learned_pointer(policy), config.lr, config.weight_decay
        )
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
            # Dropout of the finish follows from it.
            torch.set_rng_state(checkpoint.load_extra("random")["torch"])
        epoch = first - 1
        stopped = bool(config.patience) and first > 0 and epoch - best["epoch"] >= config.patience
        for epoch in range(first, first if stopped else config.epochs):
            # One generator an epoch, so that a resumed run sees what an uninterrupted one would have seen.
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
            if scalars[select] < best["score"]:
                weights = copy.deepcopy(average.state_dict())
                accuracy = scalars["val_accuracy"]
                best = {
                    "score": scalars[select],
                    "loss": scalars["val_loss"],
                    "epoch": epoch,
                    "weights": weights,
                    "accuracy": accuracy,
                }
            if on_epoch is not None:  # before the checkpoint: an epoch that was not noted is done again
                on_epoch(scalars)
            if checkpoint is not None:
                meta = {"epoch": epoch, "best": {k: v for k, v in best.items() if k != "weights"}}
                random = {"torch": torch.get_rng_state()}
                parts = {"best": best["weights"], "average": average.state_dict(), "random": random}
                checkpoint.save(policy, optimizer, meta, **parts)
            if config.patience and epoch - best["epoch"] >= config.patience:
                _log.info("early stop after epoch %d, best was %d", epoch, best["epoch"])
                break
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

    def _finish(self, policy: VLAPolicy, dataset: ChunkDataset) -> None:
        config = dataclasses.replace(self.config, lr=self.config.finish_lr, weight_decay=0.0)
        trainer, average = SFT(config), copy.deepcopy(policy).requires_grad_(False)
        for done in range(1, config.finish_steps + 1):
            trainer.update(policy, dataset)
            average_weights(average, policy, min(config.ema, done / (done + 10)))
        policy.load_state_dict(average.state_dict())

    def update(self, policy: VLAPolicy, rollouts: ChunkDataset, *, steps: int = 1) -> dict[str, float]:
        """Take `steps` cloning steps at the constant learning rate; the optimizer lives on between calls."""
        size = min(self.config.batch_size, len(rollouts))
        rows = self._rng.integers(0, len(rollouts), steps * size)
        return {"loss": float(np.mean(self.steps(policy, rollouts, rows, steps)))}

    def steps(self, policy: VLAPolicy, dataset: ChunkDataset, rows: np.ndarray, count: int) -> list[float]:
        """`count` steps over chosen `rows`, split evenly; returns each step's loss (nats a dimension; a place)."""
        optimizer = self.optimizer(policy)
        policy.train()
        parts = np.array_split(rows, count)
        losses = [self._step(policy, optimizer, dataset, part, self._rng, self.config.lr) for part in parts]
        policy.eval()
        return losses

    def optimizer(self, policy: VLAPolicy) -> torch.optim.AdamW:
        """The optimizer of `policy` for `update` and `steps`, made at first use."""
        if self._optimizer is None:
            learned = policy if self.config.learn == "all" else learned_pointer(policy)
            self._optimizer = _adamw(learned, self.config.lr, self.config.weight_decay)
        return self._optimizer

    def reseed(self, seed: int) -> None:
        """Augmentation and draws follow from `seed` from now on, so that a resumed run repeats them."""
        self._rng = np.random.default_rng(seed)

    def _step(
        self,
        policy: VLAPolicy,
        optimizer: torch.optim.Optimizer,
        dataset: ChunkDataset,
        rows: np.ndarray,
        rng: np.random.Generator,
        lr: float,
    ) -> float:
        observation, actions = dataset.batch(rows)
        observation["image"] = _jitter(
            observation["image"], rng, self.config.colour_jitter, self.config.noise
        )
        if self.config.state_noise:
            noise = torch.from_numpy(rng.standard_normal(observation["state"].shape).astype(np.float32))
            observation["state"] = observation["state"] + self.config.state_noise * noise * policy.state_std
        for group in optimizer.param_groups:
            group["lr"] = lr
        if not policy.config.goal_dims:
            chosen = self._chosen(policy, policy.run(observation), actions)
            self._descend(optimizer, policy, -chosen.mean())
            return -float(chosen.detach().mean())
        known = ~torch.from_numpy(np.isnan(dataset.goals[rows]).any(1))  # imitation may lack the path
        wanted = policy.normalise_state(torch.from_numpy(np.nan_to_num(dataset.goals[rows])))
        wanted = wanted[:, : policy.config.goal_dims]
        if self.config.learn == "pointer":
            density = policy.pointer.log_density(policy.point(observation), wanted[:, :2])
            loss = -(density * known).sum() / max(1, int(known.sum()))
            return self._descend(optimizer, policy, loss)
        jitter = torch.from_numpy(rng.standard_normal((len(rows), 2)).astype(np.float32))
        aim = wanted[:, :2] + self.config.aim_noise * jitter
        if not bool(known.all()):
            pointing = policy.point(observation)
            own = policy.pointer.likeliest(pointing).detach()
            aim = torch.where(known[:, None], aim, own)
        out = policy.run(observation, aim=aim)
        chosen = self._chosen(policy, out, actions)
        loss = -chosen.mean()
        if self.config.goal_coef and bool(known.any()):
            goal = out.goal[known], Pointing(*(part[known] for part in out.pointing))
            goal_loss = policy.goal_loss(PolicyForward(out.logits, *goal), wanted[known])
            loss = loss + self.config.goal_coef * float(known.float().mean()) * goal_loss
        self._descend(optimizer, policy, loss)
        return -float(chosen.detach().mean())

    @staticmethod
    def _chosen(policy: VLAPolicy, out: PolicyForward, actions: np.ndarray) -> Tensor:
        """Log-probabilities of the demonstrated tokens; actions that are unknown (NaN) are left out."""
        known = ~np.isnan(actions)
        tokens = policy.tokens_of(np.nan_to_num(actions))
        chosen = torch.log_softmax(out.logits, dim=-1).gather(-1, tokens[..., None])
        return chosen if known.all() else chosen[..., 0][torch.from_numpy(known)]

    def _descend(self, optimizer: torch.optim.Optimizer, policy: VLAPolicy, loss: Tensor) -> float:
        policy.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), self.config.grad_clip)
        optimizer.step()
        return float(loss.detach())

    @staticmethod
    @torch.no_grad()
    def evaluate(policy: VLAPolicy, dataset: ChunkDataset, batch_size: int = 256) -> dict[str, float]:
        """Held-out scores without dropout.

        Returns:
            val_loss (joint negative log-likelihood of place and actions, nats a dimension), val_accuracy (share of
            right bins), val_entropy, val_place_loss (nats), val_goal_error (metres between true and pointed place);
            the last two only for policies with goals.
        """
        policy.eval()
        if not policy.config.goal_dims:
            return _evaluate_actions(policy, dataset, batch_size)
        loss = right = entropy = miss = place = 0.0
        for begin in range(0, len(dataset), batch_size):
            rows = np.arange(begin, min(begin + batch_size, len(dataset)))
            observation, actions = dataset.batch(rows)
            goals = torch.from_numpy(dataset.goals[rows])
            wanted = policy.normalise_state(goals)[:, :2]
            pointing = policy.point(observation)
            pointed = policy.pointer.likeliest(pointing)
            out = policy.run(observation, aim=wanted)
            log_probs = torch.log_softmax(out.logits, dim=-1)
            off = (pointed - wanted) * policy.state_std[:2]
            miss += float(off.norm(dim=-1).mean()) * len(rows)
            place -= float(policy.pointer.log_density(pointing, wanted).mean()) * len(rows)
            tokens = policy.tokens_of(actions)
            loss -= float(log_probs.gather(-1, tokens[..., None]).mean()) * len(rows)
            right += float((log_probs.argmax(-1) == tokens).float().mean()) * len(rows)
            entropy -= float((log_probs.exp() * log_probs).sum(-1).mean()) * len(rows)
        n = max(1, len(dataset))
        tokens_a_chunk = policy.chunk * policy.config.action_dim
        return {
            "val_loss": (loss + place / tokens_a_chunk) / n,
            "val_accuracy": right / n,
            "val_entropy": entropy / n,
            "val_place_loss": place / n,
            "val_goal_error": miss / n,
        }


def _evaluate_actions(policy: VLAPolicy, dataset: ChunkDataset, batch_size: int) -> dict[str, float]:
    """Held-out scores of actions alone; unknown ones (NaN) are left out."""
    loss = right = entropy = count = 0.0
    for begin in range(0, len(dataset), batch_size):
        observation, actions = dataset.batch(np.arange(begin, min(begin + batch_size, len(dataset))))
        known = torch.from_numpy(~np.isnan(actions))
        log_probs = torch.log_softmax(policy.run(observation).logits, dim=-1)
        tokens = policy.tokens_of(np.nan_to_num(actions))
        loss -= float(log_probs.gather(-1, tokens[..., None])[..., 0][known].sum())
        right += float((log_probs.argmax(-1) == tokens)[known].sum())
        entropy -= float((log_probs.exp() * log_probs).sum(-1)[known].sum())
        count += float(known.sum())
    n = max(1.0, count)
    return {"val_loss": loss / n, "val_accuracy": right / n, "val_entropy": entropy / n}


def _adamw(policy: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    decayed = [p for p in policy.parameters() if p.ndim > 1]
    plain = [p for p in policy.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


@torch.no_grad()
def average_weights(average: VLAPolicy, policy: VLAPolicy, decay: float) -> None:
    """Move `average` towards `policy` by 1 - decay; statistics of states and words are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(policy.parameters()), 1 - decay)
    for kept, new in zip(average.buffers(), policy.buffers(), strict=True):
        kept.copy_(new)


def _cosine(step: int, total: int, peak: float) -> float:
    warm = min(1.0, (step + 1) / max(1, min(100, total // 10)))
    return peak * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total))))


def _jitter(image: Tensor, rng: np.random.Generator, strength: float, noise: float) -> Tensor:
    """Brightness, contrast and channel gains a row, plus pixel noise; `(B,H,W,3)` uint8 in and out."""
    if not strength and not noise:
        return image
    batch = image.shape[0]
    gain = torch.from_numpy(rng.uniform(1 - strength, 1 + strength, (batch, 1, 1, 3)).astype(np.float32))
    shift = torch.from_numpy(rng.uniform(-strength, strength, (batch, 1, 1, 1)).astype(np.float32))
    x = image.float() * gain + 127.5 * shift
    if noise:
        x = x + 255 * noise * torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32))
    return x.round().clamp(0, 255).to(torch.uint8)
