"""Train a judge on latents: logs encoded by the world model's tokenizer, and logs imagined by the world model.

The training pairs are those of `rewards.training.learned` (half successes, half near misses and wrong instructions).
Noisy latents are rescaled to unit RMS. If imagined logs are given, half of a batch comes from them: logged action
sequences imagined from their first frame, with the true labels of the logs.

A few thousand logs are too few to train a network on 8 x 8 latents from scratch: it overfitted and missed half of the
held-out successes. Therefore a judge that reads frames can be the teacher (distillation, Hinton et al. 2015). It
labels any frame with any instruction, so the number of training pairs is not limited.

Example::

    latents = encode_logs(world_model.tokenizer, arrays)
    imagined = imagine_training_latents(world_model, arrays, chosen)
    judge, report = train_latent_judge(arrays, latents, world_model, imagined=imagined)
    judge.save_pretrained("runs/latent_judge")
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rewards.models.latent import LatentJudge, LatentJudgeConfig, fingerprint
from rewards.training.imagined_logs import take_episodes
from rewards.training.learned import JudgeTrainConfig, blur, calibrate, rates
from rewards.training.negatives import PairSampler
from worldgym.errors import ConfigError
from worldgym.moved import renamed_arguments
from worldgym.protocols import judged
from worldgym.text import embed

if TYPE_CHECKING:
    from worldgym.data.reader import EpisodeArrays

_log = logging.getLogger(__name__)
LATENT_SIZES: dict[str, dict[str, Any]] = {"tiny": {"width": 16, "asked": 4}}
"""Sizes of a latent judge by preset, where they are not the defaults of its config."""


@torch.no_grad()
def encode_logs(
    tokenizer: Any,
    arrays: EpisodeArrays,
    batch: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Encode all frames of `arrays` to latents `(F,C,h,w)` float16.

    Args:
        tokenizer: tokenizer of the world model.
        arrays: logs.
        batch: number of frames encoded at once.
        progress: called with (frames done, total frames).
    """
    parts = []
    for first in range(0, len(arrays.frames), batch):
        parts.append(tokenizer.encode(torch.from_numpy(arrays.frames[first : first + batch])).half().cpu())
        if progress is not None:
            progress(min(first + batch, len(arrays.frames)), len(arrays.frames))
    return torch.cat(parts)


@torch.no_grad()
def imagine_training_latents(
    world_model: Any,
    arrays: EpisodeArrays,
    episodes: np.ndarray,
    *,
    generator: torch.Generator | None = None,
    batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[EpisodeArrays, Tensor]:
    """Imagine logged episodes as latents.

    Args:
        world_model: implements `worldgym.protocols.WorldModel` and has a `tokenizer`.
        arrays: logs from the real domain.
        episodes: `(M,)` indices.
        generator: random generator for the world model's sampling.
        batch: number of episodes imagined at once.
        progress: called with (episodes done, total episodes).

    Returns:
        arrays of these episodes (with the labels of the logs and imagined states), and latents `(F',C,h,w)` float16.
        The first latent of an episode is encoded, the others are imagined.

    Raises:
        ConfigError: the world model does not give the latents of all frames.
    """
    chosen = take_episodes(arrays, np.asarray(episodes))
    states = chosen.states.copy()
    latents = torch.zeros(0, device="cpu")
    order = np.argsort(-chosen.lengths, kind="stable")
    for begin in range(0, len(order), batch):
        rows = order[begin : begin + batch]
        first, steps = chosen.offsets[rows], int(chosen.lengths[rows[0]])
        if steps == 0:
            break
        steps_of_rows = np.minimum(first[:, None] + np.arange(steps), chosen.offsets[rows + 1][:, None] - 1)
        start = torch.from_numpy(chosen.frames[first])[:, None]
        no_actions = torch.zeros(len(rows), 0, chosen.actions.shape[1], device="cpu")
        state = world_model.begin(
            start, no_actions, generator, states=torch.from_numpy(chosen.states[first])[:, None]
        )
        _, imagined = world_model.step(state, torch.from_numpy(chosen.actions[steps_of_rows]), decode="all")
        if imagined.latents.shape[1] != steps:
            raise ConfigError(
                f"{type(world_model).__name__} gave latents of {imagined.latents.shape[1]} of {steps} frames that it "
                'imagined; a judge of latents needs a world model whose step(..., decode="all") gives all of them'
            )
        encoded = world_model.tokenizer.encode(start[:, 0])
        if not len(latents):
            latents = torch.zeros(len(chosen.frames), *encoded.shape[1:], dtype=torch.float16, device="cpu")
        for row, episode in enumerate(rows):
            inside = chosen.rows(int(episode))
            count = inside.stop - inside.start - 1
            latents[inside.start] = encoded[row].half().cpu()
            latents[inside.start + 1 : inside.stop] = imagined.latents[row, :count].half().cpu()
            states[inside.start + 1 : inside.stop] = imagined.states[row, :count].cpu().numpy()
        if progress is not None:
            progress(min(begin + batch, len(order)), len(order))
    chosen.states[:] = states
    return chosen, latents


@renamed_arguments(dreams="imagined")
def train_latent_judge(
    arrays: EpisodeArrays,
    latents: Tensor,
    tokenizer: Any,
    config: JudgeTrainConfig | None = None,
    *,
    model: LatentJudgeConfig | None = None,
    judge: LatentJudge | None = None,
    imagined: tuple[EpisodeArrays, Tensor] | None = None,
    teacher: Any | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    device: torch.device | str = "cpu",
) -> tuple[LatentJudge, dict[str, float]]:
    """Train a latent judge, set its threshold and evaluate it on held-out episodes.

    Args:
        arrays: logs from the real domain.
        latents: latents of all frames, from `encode_logs`.
        tokenizer: tokenizer that encoded the latents; the returned judge is attached to it.
        config: settings, shared with `rewards.training.learned` (those about pixels have no effect).
        model: sizes of the judge.
        judge: the judge to continue from, of the same tokenizer, instead of a new one; it is changed.
        imagined: imagined logs, from `imagine_training_latents`, of all or some of the same episodes; such an episode
            is held out if the logged episode is.
        teacher: a `LearnedJudge` to distil; it labels another `batch_size` pairs of any frame and any instruction in
            each step.
        on_step: called with (step, scalars) every 25 steps.
        device: device for training; the returned judge stays there.

    Returns:
        the judge and its held-out report: fpr, `fpr/<kind>`, tpr, balanced_accuracy, and the same for imagined logs
        under `imagined_episodes/`.

    Raises:
        ConfigError: the number of latents differs from the number of frames.
        CheckpointError: `judge` reads the latents of another tokenizer.
    """
    config = config or JudgeTrainConfig()
    if len(latents) != len(arrays.frames):
        raise ConfigError(
            f"{len(latents)} latents for {len(arrays.frames)} frames; expected one for each. Use "
            "encode_logs(tokenizer, arrays) with the same arrays"
        )
    train, held_out = split_episodes(len(arrays), config)
    sources: list[Source] = [Source(arrays, latents, train, held_out, config.near_share)]
    if imagined is not None:
        is_held_out = np.isin(imagined[0].indices, arrays.indices[held_out])
        sources.append(Source(*imagined, np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out), config.near_share))
    torch.manual_seed(config.seed)
    if judge is None:
        judge = untrained_judge(arrays, latents, tokenizer, model, sources[0].train)
    judge.attach(tokenizer)
    judge = judge.to(device)
    adam = torch.optim.AdamW(
        judge.parameters(), lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.98)
    )
    judge.train()
    recent: list[float] = []
    for step in range(config.steps):
        rng = np.random.default_rng((config.seed, step))
        torch.manual_seed(int(rng.integers(2**62)))
        share = [config.batch_size]
        if len(sources) == 2:
            count = round(config.imagined_share * config.batch_size)
            share = [config.batch_size - count, count]
        parts = [
            source.draw(source.train, count, rng)
            for source, count in zip(sources, share, strict=True)
            if count
        ]
        inputs, states = torch.cat([d.latents for d in parts]), torch.cat([d.states for d in parts])
        labels = torch.cat([d.labels for d in parts])
        texts = [text for part in parts for text in part.texts]
        if teacher is not None:
            more = sources[0].distilled(teacher, config.batch_size, rng)
            inputs, states = torch.cat([inputs, more.latents]), torch.cat([states, more.states])
            labels, texts = torch.cat([labels, more.labels]), texts + more.texts
        inputs, states, labels = blur(inputs, config.latent_noise).to(device), states.to(device), labels.to(device)
        if judge.reads.state:
            states = states + judge.state_std * config.state_noise * torch.randn_like(states)
        warm = min(1.0, (step + 1) / max(1, min(100, config.steps // 10)))
        for group in adam.param_groups:
            group["lr"] = config.lr * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        logit = judge(inputs, torch.from_numpy(embed(texts)).to(device), states)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, labels)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        adam.step()
        recent.append(float(loss.detach()))
        if on_step is not None and (step % 25 == 24 or step == config.steps - 1):
            on_step(step, {"loss": float(np.mean(recent[-25:])), "lr": adam.param_groups[0]["lr"]})
    report = calibrated_report(judge, sources, config)
    _log.info("latent judge: held-out %s", {k: round(v, 4) for k, v in report.items()})
    return judge, report


def split_episodes(count: int, config: JudgeTrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training episodes and of the held-out ones, of `count` episodes."""
    order = np.random.default_rng(config.seed).permutation(count)
    held_out = min(max(1, round(config.val_fraction * count)), count - 1)
    return order[held_out:], order[:held_out]


def untrained_judge(
    arrays: EpisodeArrays, latents: Tensor, tokenizer: Any, model: LatentJudgeConfig | None, pairs: PairSampler
) -> LatentJudge:
    """A new judge for latents `(F,C,h,w)` of the frames of `arrays`, whose inputs are standardised.

    Args:
        arrays: logs.
        latents: their latents.
        tokenizer: tokenizer that encoded them.
        model: sizes of the judge.
        pairs: the training pairs, whose instructions are standardised.
    """
    judge = LatentJudge(
        LatentJudgeConfig(**{
            **vars(model or LatentJudgeConfig()), "channels": latents.shape[1], "grid": tuple(latents.shape[2:]),
            "tokenizer": fingerprint(tokenizer),
        })
    )  # fmt: skip
    embeddings = torch.from_numpy(embed(sorted({t for texts in pairs.texts.values() for t in texts})))
    judge.text_mean.copy_(embeddings.mean(0))
    judge.text_std.copy_(embeddings.std(0, correction=0).clamp_min(0.01))
    if judge.reads.state:
        judge.state_mean.copy_(torch.from_numpy(arrays.states.mean(0)))
        judge.state_std.copy_(torch.from_numpy(arrays.states.std(0)).clamp_min(1e-4))
    return judge


def calibrated_report(judge: LatentJudge, sources: list[Source], config: JudgeTrainConfig) -> dict[str, float]:
    """Set the threshold on held-out pairs of `sources` (logs, then imagined logs), and return the held-out rates."""
    judge.eval()
    results = [source.judge(judge, config.val_pairs, config.seed, 10**9) for source in sources]
    judge.set_threshold(
        calibrate(np.concatenate([s[0] for s in results]), np.concatenate([s[1] for s in results]), config.max_fpr)
    )
    report: dict[str, float] = {}
    for prefix, source in zip(("", "imagined_episodes/"), sources, strict=False):
        result = source.judge(judge, config.val_pairs, config.seed, 10**9 + 1)
        report |= {prefix + key: value for key, value in rates(*result, judge.threshold).items()}
    report["threshold"] = judge.threshold
    return report


class _Drawn(NamedTuple):
    """A batch of pairs: latents `(N,C,h,w)`, N instructions, proprioception `(N,S)`, labels `(N,)`, N kinds."""

    latents: Tensor
    texts: list[str]
    states: Tensor
    labels: Tensor
    kinds: list[str]


class Source:
    """Latents with labels, split into training pairs (`train`) and held-out pairs (`held`)."""

    def __init__(
        self, arrays: EpisodeArrays, latents: Tensor, train: np.ndarray, held_out: np.ndarray, near_share: float
    ) -> None:
        self.arrays, self.latents = arrays, latents
        self.train, self.held = PairSampler(arrays, train, near_share), PairSampler(arrays, held_out)

    def draw(self, pairs: PairSampler, count: int, rng: np.random.Generator) -> _Drawn:
        """Draw `count` pairs with their true labels."""
        rows, texts, labels, kinds = pairs.sample(count, rng)
        states = torch.from_numpy(self.arrays.states[rows])
        return _Drawn(self.latents[rows].float(), texts, states, torch.from_numpy(labels), kinds)

    def distilled(self, teacher: Any, count: int, rng: np.random.Generator) -> _Drawn:
        """Draw `count` frames, half of them solved, with instructions of any goal; `teacher` gives the labels."""
        rows = self.train.any_rows(count, rng)
        texts = [self.train.any_words(int(row), rng) for row in rows]
        frames, states = (
            torch.from_numpy(self.arrays.frames[rows]),
            torch.from_numpy(self.arrays.states[rows]),
        )
        labels = judged(teacher, frames[:, None], texts, states).p_success
        return _Drawn(self.latents[rows].float(), texts, states, labels, [])

    def judge(
        self, judge: LatentJudge, count: int, seed: int, salt: int
    ) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Logits, labels and kinds of `count` held-out pairs."""
        pairs = self.draw(self.held, count, np.random.default_rng((seed, salt)))
        raw = judge.score(pairs.latents[:, None], pairs.texts, pairs.states, latents=pairs.latents).raw
        return np.asarray(raw, np.float32), pairs.labels.numpy(), pairs.kinds
