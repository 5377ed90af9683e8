"""Train and calibrate the learned judge, only on logs from the real domain.

Half of every batch is reconstructed by the tokenizer with latent noise, so that the frames that a world model decodes
are in the training distribution. With `imagined` (logs imagined by the world model) the judge is also trained on the
errors that accumulate over forty imagined steps. The threshold is then set on held-out episodes. Without imagined logs
it bounds the false positive rate, because a failure that is judged a success trains the policy to fail. With imagined
logs it balances precision and recall of imagined success.

Example::

    judge, report = train_judge(dataset.load_arrays(), tokenizer=world_model.tokenizer, steps=1500)
    report["fpr"], report["accuracy"]
    judge.save_pretrained("runs/judge")
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rewards.models.learned import LearnedJudge, LearnedJudgeConfig, to_float
from rewards.training.imagined_logs import balanced_threshold, episode_verdicts, precision_recall
from rewards.training.mining import HardFrames
from rewards.training.negatives import KINDS, PairSampler
from worldgym.errors import ConfigError
from worldgym.moved import renamed_arguments
from worldgym.text import embed
from worldgym.utils.devices import rand, randn
from worldgym.utils.train_state import TrainState

if TYPE_CHECKING:
    from worldgym.data.reader import EpisodeArrays

_log = logging.getLogger(__name__)


IMAGINED_KEYS = ("imagined_episodes/precision", "imagined_episodes/recall")


@renamed_arguments(dream_share="imagined_share")
@dataclass(frozen=True)
class JudgeTrainConfig:
    """Settings of judge training.

    Args:
        steps: optimizer steps.
        batch_size: pairs per step, half of them positive.
        lr: peak learning rate of AdamW, with cosine decay to zero.
        weight_decay: weight decay of AdamW.
        val_fraction: share of the episodes held out for calibration and the report.
        latent_noise: largest standard deviation of noise on unit-RMS latents.
        colour_jitter: strength of brightness and channel jitter.
        noise: standard deviation of pixel noise, in [0,1] units.
        state_noise: standard deviation of noise on proprioception, as a share of its standard deviation in the logs. It
            makes the judge robust to the world model's errors in predicted proprioception.
        max_fpr: upper bound of the false positive rate at the threshold, on hard negatives of held-out episodes.
        imagined_share: share of a batch that comes from imagined logs, if these are given.
        hard_share: share of a batch that consists of hard examples (`rewards.training.mining`), mined with the judge
            from which training continues.
        near_share: share of near misses among the training negatives; 0 excludes them, for ablations. The report always
            includes near misses.
        val_pairs: number of pairs for calibration, and again for the report.
        checkpoint_every: steps between checkpoints.
        seed: random seed of the split, the pairs and the weights.

    Raises:
        ConfigError: a value is not allowed.
    """

    steps: int = 1500
    batch_size: int = 128
    lr: float = 1.2e-3
    weight_decay: float = 0.02
    val_fraction: float = 0.1
    latent_noise: float = 0.3
    colour_jitter: float = 0.08
    noise: float = 0.02
    state_noise: float = 0.02
    max_fpr: float = 0.04
    imagined_share: float = 0.5
    hard_share: float = 0.0
    near_share: float = 0.3
    val_pairs: int = 3000
    checkpoint_every: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate."""
        if self.steps < 1 or self.batch_size < 2 or self.val_pairs < 2 or self.checkpoint_every < 1:
            raise ConfigError(
                "steps and checkpoint_every must be at least 1, batch_size and val_pairs at least 2; got "
                f"{self.steps}, {self.checkpoint_every}, {self.batch_size}, {self.val_pairs}"
            )
        if not 0 <= self.near_share <= 0.75:
            raise ConfigError(
                f"near_share is {self.near_share}; expected a number in [0, 0.75], because other negatives need 0.25"
            )
        if not 0 < self.val_fraction < 1 or not 0 < self.max_fpr < 1:
            raise ConfigError(
                f"val_fraction and max_fpr must lie in (0, 1); got {self.val_fraction}, {self.max_fpr}"
            )


def reconstruct(tokenizer: Any, frames: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Encode and decode `frames (N,H,W,3)` u8, with latent noise of a random strength up to `noise` for each frame."""
    decoded: Tensor = tokenizer.decode(blur(tokenizer.encode(frames), noise, generator))
    return decoded.to(frames.device)


def blur(latents: Tensor, noise: float, generator: torch.Generator | None = None) -> Tensor:
    """Add noise to `latents (N,C,h,w)`, of a random strength up to `noise` for each row; their RMS is preserved."""
    sigma = noise * rand((len(latents), 1, 1, 1), generator, latents.device)
    noisy = latents + sigma * randn(latents.shape, generator, latents.device)
    # The decoder was trained on unit-RMS latents only, so the RMS is restored.
    power = latents.square().mean(1, keepdim=True) / noisy.square().mean(1, keepdim=True).clamp_min(1e-6)
    return noisy * power.sqrt()


@renamed_arguments(dreams="imagined")
def train_judge(
    arrays: EpisodeArrays,
    tokenizer: Any | None = None,
    config: JudgeTrainConfig | None = None,
    *,
    model: LearnedJudgeConfig | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    checkpoint: TrainState | None = None,
    init_policy: Any | None = None,
    imagined: EpisodeArrays | None = None,
    judge: LearnedJudge | None = None,
    device: torch.device | str = "cpu",
    **overrides: Any,
) -> tuple[LearnedJudge, dict[str, float]]:
    """Train a judge, set its threshold and evaluate it on held-out episodes.

    Args:
        arrays: logs from the real domain.
        tokenizer: an object with `encode((N,H,W,3) u8) -> latents` and `decode(latents) -> (N,H,W,3) u8`; None trains
            on true frames only.
        config: settings of the training.
        model: sizes of the judge.
        on_step: called with (step, scalars) every 25 steps.
        checkpoint: training state to save to and to resume from.
        init_policy: a trained policy with `encoder_state()`; the judge is initialised from its encoder. Without it, the
            judge needed 400 steps to exceed chance level, with it 50.
        imagined: imagined logs, from `rewards.training.imagined_logs.imagine_training_logs`, of all or some of the same
            episodes; an imagined episode is held out if the logged episode is.
        judge: a trained judge from which training continues, instead of a new one; it is modified in place.
        device: device for training; the returned judge stays there.
        **overrides: replace single settings, e.g. `steps=500`.

    Returns:
        the judge with its threshold set, and the held-out report of `evaluate_judge`. Keys with the prefix `imagined/`
        are measured on frames reconstructed by the tokenizer. `imagined_episodes/precision` and
        `imagined_episodes/recall` are of one half of the held-out imagined episodes; the other half sets the threshold.

    Raises:
        ConfigError: too few episodes, too few held-out imagined episodes, or `hard_share` without `judge`.
    """
    config = config or JudgeTrainConfig()
    if overrides:
        config = dataclasses.replace(config, **overrides)
    if len(arrays) < 2:
        raise ConfigError(f"need at least 2 episodes, one of them held out; got {len(arrays)}. Collect more episodes")
    order = np.random.default_rng(config.seed).permutation(len(arrays))
    held_out = min(max(1, round(config.val_fraction * len(order))), len(order) - 1)
    train, val = PairSampler(arrays, order[held_out:], config.near_share), PairSampler(arrays, order[:held_out])
    imagined_pairs = held_out_imagined = None
    if imagined is not None:
        is_held_out = np.isin(imagined.indices, arrays.indices[order[:held_out]])
        imagined_pairs = PairSampler(imagined, np.flatnonzero(~is_held_out), config.near_share)
        held_out_imagined = np.flatnonzero(is_held_out)
        if len(held_out_imagined) < 2:
            raise ConfigError(
                f"got {len(held_out_imagined)} imagined episodes of held-out logs; expected at least 2, to set a "
                "threshold. Imagine more episodes"
            )
    torch.manual_seed(config.seed)
    hard = None
    if config.hard_share:
        if judge is None:
            raise ConfigError(
                f"hard_share is {config.hard_share}, but there is no trained judge to mine hard examples with; pass "
                "judge=, the judge to go on from"
            )
        hard = HardFrames.mine(judge.to(device).eval(), arrays, order[held_out:], np.random.default_rng(config.seed))
    if judge is None:
        judge = LearnedJudge(model)
        if init_policy is not None:  # the policy's encoder includes the statistics of embeddings
            judge.init_from_policy(init_policy)
        else:
            judge.set_text_stats([text for texts in train.texts.values() for text in texts])
        if judge.reads.state:
            judge.set_state_stats(arrays.states)
    judge = judge.to(device)
    optimizer = torch.optim.AdamW(
        judge.parameters(), lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.98)
    )
    first = 0
    if checkpoint is not None and checkpoint.exists():
        first = int(checkpoint.load(judge, optimizer)["step"]) + 1
    judge.train()
    recent: list[float] = []
    for step in range(first, config.steps):
        rng = np.random.default_rng((config.seed, step))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        torch.manual_seed(int(rng.integers(2**62)))
        imagined_count = 0 if imagined_pairs is None else round(config.imagined_share * config.batch_size)
        hard_count = 0 if hard is None else round(config.hard_share * config.batch_size)
        rows, texts, labels, _ = train.sample(max(1, config.batch_size - imagined_count - hard_count), rng)
        if hard is not None:
            hard_rows, more_texts, more_labels = hard.sample(hard_count, rng)
            rows, texts, labels = (
                np.concatenate([rows, hard_rows]), texts + more_texts, np.concatenate([labels, more_labels])
            )  # fmt: skip
        frames, states = augment(torch.from_numpy(arrays.frames[rows]), rng, config), arrays.states[rows]
        if tokenizer is not None:
            half = torch.from_numpy(rng.permutation(len(frames))[: len(frames) // 2])
            frames[half] = reconstruct(tokenizer, frames[half], config.latent_noise, generator)
        if imagined_pairs is not None and imagined is not None and imagined_count:
            more, more_texts, more_labels, _ = imagined_pairs.sample(imagined_count, rng)
            frames = torch.cat([frames, augment(torch.from_numpy(imagined.frames[more]), rng, config)])
            texts, labels = texts + more_texts, np.concatenate([labels, more_labels])
            states = np.concatenate([states, imagined.states[more]])
        for group in optimizer.param_groups:
            warm = min(1.0, (step + 1) / max(1, min(100, config.steps // 10)))
            group["lr"] = config.lr * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        state = None
        if judge.reads.state:
            state_noise = config.state_noise * rng.standard_normal(states.shape, dtype=np.float32)
            state = torch.from_numpy(states).to(device) + judge.state_std * torch.from_numpy(state_noise).to(device)
        logit = judge(to_float(frames.to(device)), torch.from_numpy(embed(texts)).to(device), state)
        true = torch.from_numpy(labels).to(device)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, true)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        recent.append(float(loss.detach()))
        if on_step is not None and (step % 25 == 24 or step == config.steps - 1):
            on_step(step, {"loss": float(np.mean(recent[-25:])), "lr": optimizer.param_groups[0]["lr"]})
        if checkpoint is not None and step % config.checkpoint_every == config.checkpoint_every - 1:
            checkpoint.save(judge, optimizer, {"step": step})
    judge.eval()
    pairs = val.sample(config.val_pairs, np.random.default_rng((config.seed, 10**9)))
    logits, labels = _logits(judge, arrays, pairs), pairs[2]
    if tokenizer is not None:
        all_logits = np.concatenate([logits, _logits(judge, arrays, pairs, tokenizer, config.latent_noise)])
        judge.set_threshold(calibrate(all_logits, np.concatenate([labels, labels]), config.max_fpr))
    else:
        judge.set_threshold(calibrate(logits, labels, config.max_fpr))
    imagined_report = {}
    if imagined is not None and held_out_imagined is not None:
        middle = len(held_out_imagined) // 2
        judge.set_threshold(balanced_threshold(*episode_verdicts(judge, imagined, held_out_imagined[:middle])))
        imagined_verdicts = episode_verdicts(judge, imagined, held_out_imagined[middle:])
        imagined_report = dict(
            zip(IMAGINED_KEYS, precision_recall(*imagined_verdicts, judge.threshold), strict=True)
        )
    pairs = val.sample(config.val_pairs, np.random.default_rng((config.seed, 10**9 + 1)))
    report = imagined_report | evaluate_judge(judge, arrays, pairs)
    if tokenizer is not None:
        measured = evaluate_judge(judge, arrays, pairs, tokenizer=tokenizer, noise=config.latent_noise)
        report.update({f"imagined/{key}": value for key, value in measured.items()})
    _log.info("judge: held-out %s", {k: round(v, 4) for k, v in report.items()})
    return judge, report


def require_proprioception(judge: Any, arrays: EpisodeArrays, name: str) -> None:
    """Raise a ConfigError unless `judge`, given as `name`, reads the proprioception of `arrays`, or none."""
    dims, there = judge.config.state_dim, arrays.states.shape[1]
    if dims not in (0, there):
        raise ConfigError(
            f"{name} reads {dims} dimensions of proprioception, but the dataset has {there}; leave that judge out"
        )


def calibrate(logits: np.ndarray, labels: np.ndarray, max_fpr: float) -> float:
    """Find the lowest threshold, at least 0.5, at which the false positive rate is at most `max_fpr`.

    Args:
        logits: `(N,)` logits of success.
        labels: `(N,)` true labels, 0 or 1.
        max_fpr: largest share of negatives at or above the threshold.
    """
    negatives = np.sort(logits[labels < 0.5])[::-1]
    if len(negatives) == 0:
        return 0.5
    allowed = math.floor(max_fpr * len(negatives))  # number of negatives that may lie above the threshold
    cut = negatives[allowed] if allowed < len(negatives) else -np.inf
    probability = 1 / (1 + math.exp(-float(np.clip(cut, -30, 30)))) + 1e-6
    return float(min(max(0.5, probability), 0.995))


@torch.no_grad()
def _logits(
    judge: LearnedJudge, arrays: EpisodeArrays, pairs: tuple, tokenizer: Any | None = None, noise: float = 0.0
) -> np.ndarray:
    rows, texts = pairs[0], pairs[1]
    out = []
    generator = torch.Generator().manual_seed(0)
    for begin in range(0, len(rows), 256):
        frames = torch.from_numpy(arrays.frames[rows[begin : begin + 256]])
        if tokenizer is not None:
            frames = reconstruct(tokenizer, frames, noise, generator)
        states = torch.from_numpy(arrays.states[rows[begin : begin + 256]])
        out += judge.score(frames[:, None], texts[begin : begin + 256], states).raw
    return np.asarray(out, np.float32)


def evaluate_judge(
    judge: LearnedJudge,
    arrays: EpisodeArrays,
    pairs: tuple[np.ndarray, list[str], np.ndarray, list[str]],
    *,
    tokenizer: Any | None = None,
    noise: float = 0.0,
) -> dict[str, float]:
    """Evaluate a judge on pairs from `PairSampler.sample`.

    Args:
        judge: the judge.
        arrays: logs that the pairs index.
        pairs: frame indices, instructions, labels and kinds.
        tokenizer: if given, frames are reconstructed by it.
        noise: latent noise of the reconstruction.

    Returns:
        fpr, `fpr/<kind>` for every kind of negative, tpr, accuracy, balanced_accuracy, threshold, pairs (their number).
    """
    logits = _logits(judge, arrays, pairs, tokenizer, noise)
    return {
        **rates(logits, pairs[2], pairs[3], judge.threshold),
        "threshold": judge.threshold,
        "pairs": float(len(logits)),
    }


def rates(logits: np.ndarray, labels: np.ndarray, kinds: list[str], threshold: float) -> dict[str, float]:
    """Compute fpr, `fpr/<kind>` for every kind of negative that occurs, tpr, accuracy and balanced_accuracy.

    Args:
        logits: `(N,)` logits of success.
        labels: `(N,)` true labels, 0 or 1.
        kinds: N kinds, see `rewards.training.negatives.KINDS`.
        threshold: probability at which a logit counts as success.
    """
    positive, true, kind = 1 / (1 + np.exp(-logits)) >= threshold, labels > 0.5, np.asarray(kinds)
    report = {"fpr": float(positive[~true].mean())}
    report |= {f"fpr/{name}": float(positive[kind == name].mean()) for name in KINDS[1:] if (kind == name).any()}
    report |= {"tpr": float(positive[true].mean()), "accuracy": float((positive == true).mean())}
    return {**report, "balanced_accuracy": (report["tpr"] + 1 - report["fpr"]) / 2}


def augment(frames: Tensor, rng: np.random.Generator, config: JudgeTrainConfig) -> Tensor:
    """Apply colour jitter and pixel noise to `frames (B,H,W,3)` uint8."""
    jitter, shape = config.colour_jitter, (len(frames), 1, 1, 3)
    gain = torch.from_numpy(rng.uniform(1 - jitter, 1 + jitter, shape).astype(np.float32))
    shift = torch.from_numpy(rng.uniform(-jitter, jitter, (len(frames), 1, 1, 1)).astype(np.float32))
    x = frames.float() * gain + 127.5 * shift
    if config.noise:
        x = x + 255 * config.noise * torch.from_numpy(rng.standard_normal(frames.shape, dtype=np.float32))
    return x.round().clamp(0, 255).to(torch.uint8)
