"""Training a small open_clip model to be a judge: contrast by what is fulfilled, not by what is named.

CLIP's batch contrast takes every other caption as false, but "reach the red cube" is true of a frame in which that cube
has just been pushed. So the pairs are those of `rewards.training.negatives`, whose labels are known: a frame with
words that are fulfilled in it, against near misses and words of another object, place or verb. What is learned is
what is scored
later: the cosine with the goal's sentence less that with the baseline's, through a logistic (the pairwise loss of
SigLIP, Zhai et al. 2023, equation 1, on known pairs).

A few thousand logs hold too few pairs for a network that begins with nothing: a vision transformer had learned little
of them after a quarter of an hour. So the pictures go through a small residual network, and a judge that reads frames
may teach (distillation, Hinton et al. 2015): it says of each frame how likely a dozen sentences are fulfilled in it,
and one look at the frame teaches all of them.

Example::

    judge, report = train_open_clip(arrays, world_model.tokenizer, JudgeTrainConfig(steps=2000))
    report["balanced_accuracy"]
    judge.save_pretrained("runs/clip_judge")
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rewards.models.open_clip import OpenClipJudge
from rewards.training.learned import JudgeTrainConfig, augment, calibrate, rates, reconstruct
from rewards.training.negatives import PairSampler
from worldgym.errors import ConfigError
from worldgym.protocols import judged

if TYPE_CHECKING:
    from worldgym.data.reader import EpisodeArrays

_log = logging.getLogger(__name__)

SMALL: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 24, "head_width": 64},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 48, "heads": 2, "layers": 2},
}  # fmt: skip
"""open_clip's `model_cfg` of the small model: a small residual network on 64 px, a text transformer of two layers."""
ASKED = 12
"""Sentences of which a teacher speaks, a frame."""


def train_open_clip(
    arrays: EpisodeArrays,
    tokenizer: Any | None = None,
    config: JudgeTrainConfig | None = None,
    *,
    description: Mapping[str, Any] = SMALL,
    teacher: Any | None = None,
    lessons: int = 12_000,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    device: torch.device | str = "cpu",
) -> tuple[OpenClipJudge, dict[str, float]]:
    """Train, fit scale and threshold, report.

    Args:
        arrays: Real's logs.
        tokenizer: of a world model; half of the frames are seen through it. None shows true frames only.
        config: settings.
        description: open_clip's `model_cfg`.
        teacher: a judge that reads frames; what it says of `lessons` frames is learned as well.
        lessons: frames of which it speaks.
        on_step: called with (step, scalars) every 25 steps.
        device: where the judge is trained; the result stays there.

    Returns:
        the judge and its held-out report: fpr, `fpr/<kind>`, tpr, balanced_accuracy.

    Raises:
        DependencyError: open_clip is not installed.
        ConfigError: fewer than two episodes.
    """
    config = config or JudgeTrainConfig()
    if len(arrays) < 2:
        raise ConfigError(f"need at least 2 episodes to hold one out; got {len(arrays)}")
    order = np.random.default_rng(config.seed).permutation(len(arrays))
    held = min(max(1, round(config.val_fraction * len(order))), len(order) - 1)
    train, val = PairSampler(arrays, order[held:], config.near_share), PairSampler(arrays, order[:held])
    torch.manual_seed(config.seed)
    judge = OpenClipJudge.from_description(description).to(device)
    model = judge.model.train()
    words = _Words(judge, [text for texts in train.texts.values() for text in texts])
    taught = None if teacher is None else _ask(teacher, arrays, train, lessons, config.seed)
    fit = nn.Parameter(torch.tensor([math.log(10.0), -1.0], device=device))  # log of the scale, offset
    groups: list[dict[str, Any]] = [
        {"params": list(model.parameters())},
        {"params": [fit], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.98))
    recent: list[float] = []
    for step in range(config.steps):
        rng = np.random.default_rng((config.seed, step))
        torch.manual_seed(int(rng.integers(2**62)))
        rows, own, labels, _ = train.sample(config.batch_size, rng)
        asked, labels = [[text] for text in own], labels[:, None]
        if taught is not None:
            more = rng.integers(0, len(taught.rows), config.batch_size)
            rows = np.concatenate([rows, taught.rows[more]])
            asked += [taught.texts[i] for i in more]
        frames = augment(torch.from_numpy(arrays.frames[rows]), rng, config)
        if tokenizer is not None:
            half = torch.from_numpy(rng.permutation(len(frames))[: len(frames) // 2])
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            frames[half] = reconstruct(tokenizer, frames[half], config.latent_noise, generator)
        warm = min(1.0, (step + 1) / max(1, min(100, config.steps // 10)))
        for group in adam.param_groups:
            group["lr"] = config.lr * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        with torch.autocast(judge.device.type, torch.bfloat16):
            seen = model.encode_image(judge.pixels(frames))  # type: ignore[operator]
            against, where = words.vectors(asked)
        seen = nn.functional.normalize(seen.float(), dim=-1)
        parts = [(seen[: len(own)], where[: len(own)], torch.from_numpy(labels))]
        if taught is not None:
            parts.append((seen[len(own) :], where[len(own) :], taught.said[torch.from_numpy(more)]))
        loss = torch.zeros((), device=device)
        for pictures, which, true in parts:
            count, true = true.shape[1], true.to(device)
            asked_here = torch.tensor([w[:count] for w in which], device="cpu")
            nearer = torch.einsum("bd,bkd->bk", pictures, against[asked_here])
            loss = loss + nn.functional.binary_cross_entropy_with_logits(fit[0].exp() * nearer + fit[1], true)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        recent.append(float(loss.detach()))
        if on_step is not None and (step % 25 == 24 or step == config.steps - 1):
            on_step(step, {"loss": float(np.mean(recent[-25:])), "lr": adam.param_groups[0]["lr"]})
    model.eval()
    judge = judge.with_config(scale=float(fit[0].detach().exp()), offset=float(fit[1].detach()))
    logits, labels, _ = _held_out(judge, arrays, val, config, 10**9)
    judge = judge.with_config(threshold=calibrate(logits, labels, config.max_fpr))
    logits, labels, kinds = _held_out(judge, arrays, val, config, 10**9 + 1)
    report = {**rates(logits, labels, kinds, judge.threshold), "threshold": judge.threshold}
    _log.info("open_clip judge: held-out %s", {k: round(v, 4) for k, v in report.items()})
    return judge, report


class _Words:
    """Sentences, tokenised once.

    Args:
        judge: whose model reads them.
        sentences: all that will be asked.
    """

    def __init__(self, judge: OpenClipJudge, sentences: list[str]) -> None:
        self.judge, known = judge, sorted(set(sentences))
        goal = judge.config.goal
        tokens = judge.tokenizer(
            [goal.replace("{instruction}", text) for text in known] + [judge.config.baseline]
        )
        self.tokens: Tensor = tokens.to(judge.device)
        self.number = {text: i for i, text in enumerate(known)}

    def vectors(self, asked: list[list[str]]) -> tuple[Tensor, list[list[int]]]:
        """Goal minus baseline `(N,D)` of the N sentences that occur, with gradients; which of them is asked where."""
        numbers = [[self.number[text] for text in texts] for texts in asked]
        occur = sorted({n for row in numbers for n in row})
        place = {n: i for i, n in enumerate(occur)}
        read = self.judge.model.encode_text(self.tokens[[*occur, -1]]).float()  # type: ignore[operator]
        words = nn.functional.normalize(read, dim=-1)
        return words[:-1] - words[-1], [[place[n] for n in row] for row in numbers]


class _Lessons(NamedTuple):
    """Frames `(N,)`, the `ASKED` sentences asked of each, and how likely the teacher thinks them, `(N,ASKED)`."""

    rows: np.ndarray
    texts: list[list[str]]
    said: Tensor


def _ask(teacher: Any, arrays: EpisodeArrays, pairs: PairSampler, count: int, seed: int) -> _Lessons:
    """What `teacher` says of `count` frames."""
    rng = np.random.default_rng((seed, 10**9 + 7))
    rows = pairs.any_rows(count, rng)
    texts = [[pairs.any_words(int(row), rng) for _ in range(ASKED)] for row in rows]
    said = []
    for first in range(0, count, 64):
        part = np.repeat(rows[first : first + 64], ASKED)
        frames, states = torch.from_numpy(arrays.frames[part]), torch.from_numpy(arrays.states[part])
        words = [text for asked in texts[first : first + 64] for text in asked]
        said.append(judged(teacher, frames[:, None], words, states).p_success.cpu().float().view(-1, ASKED))
    return _Lessons(rows, texts, torch.cat(said))


def _held_out(
    judge: OpenClipJudge, arrays: EpisodeArrays, pairs: PairSampler, config: JudgeTrainConfig, salt: int
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Logits, labels and kinds of held-out pairs."""
    rows, texts, labels, kinds = pairs.sample(config.val_pairs, np.random.default_rng((config.seed, salt)))
    said = []
    for first in range(0, len(rows), 256):
        part = slice(first, first + 256)
        said += judge.score(torch.from_numpy(arrays.frames[rows[part]])[:, None], texts[part]).raw
    c = judge.config
    return c.scale * np.asarray(said, np.float32) + c.offset, labels, kinds
