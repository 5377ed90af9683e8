"""Train a small open_clip model as a judge, on pairs labelled by whether the frame fulfils the instruction.

CLIP's contrastive loss treats every other caption of the batch as false. But "reach the red cube" is true of a frame in
which this cube has just been pushed. Therefore training uses the labelled pairs of `rewards.training.negatives`: frames
with instructions that they fulfil, near misses, and frames with the instruction of another object, place or task. The
loss is computed on the quantity that is scored later: the cosine with the goal sentence minus the cosine with the
baseline sentence, through a logistic function (the pairwise loss of SigLIP, Zhai et al. 2023, equation 1, on pairs with
known labels).

A few thousand logs contain too few pairs to train a vision transformer from scratch: it had learned little after a
quarter of an hour. Therefore the image encoder is a small residual network, and a judge that reads frames can be the
teacher (distillation, Hinton et al. 2015). The teacher labels each frame with a dozen instructions, so that one forward
pass of the image encoder is trained on all of them.

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
from worldgym.utils.devices import autocast

if TYPE_CHECKING:
    from worldgym.data.reader import EpisodeArrays

_log = logging.getLogger(__name__)

SMALL: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 24, "head_width": 64},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 48, "heads": 2, "layers": 2},
}  # fmt: skip
"""open_clip's `model_cfg` of the small model: a residual network on 64 px and a text transformer of two layers."""
ASKED = 12
"""Number of instructions that the teacher labels per frame."""


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
    """Train an open_clip judge, fit its scale and threshold, and evaluate it on held-out episodes.

    Args:
        arrays: logs from the real domain.
        tokenizer: tokenizer of a world model, which reconstructs half of the training frames; None trains on true
            frames only.
        config: settings of the training.
        description: open_clip's `model_cfg` of the model.
        teacher: a judge that reads frames, to distil; the model is also trained on its labels.
        lessons: number of frames that the teacher labels.
        on_step: called with (step, scalars) every 25 steps.
        device: device for training; the returned judge stays there.

    Returns:
        the judge and its held-out report: fpr, `fpr/<kind>`, tpr, balanced_accuracy.

    Raises:
        DependencyError: open_clip is not installed.
        ConfigError: fewer than two episodes.
    """
    config = config or JudgeTrainConfig()
    if len(arrays) < 2:
        raise ConfigError(f"need at least 2 episodes, one of them held out; got {len(arrays)}. Collect more episodes")
    order = np.random.default_rng(config.seed).permutation(len(arrays))
    held_out = min(max(1, round(config.val_fraction * len(order))), len(order) - 1)
    train, val = PairSampler(arrays, order[held_out:], config.near_share), PairSampler(arrays, order[:held_out])
    torch.manual_seed(config.seed)
    judge = OpenClipJudge.from_description(description).to(device)
    model = judge.model.train()
    text_encoder = _TextEncoder(judge, [text for texts in train.texts.values() for text in texts])
    distilled = None if teacher is None else _teacher_labels(teacher, arrays, train, lessons, config.seed)
    fit = nn.Parameter(torch.tensor([math.log(10.0), -1.0], device=device))  # log of the scale, and the offset
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
        sentences, labels = [[text] for text in own], labels[:, None]
        if distilled is not None:
            more = rng.integers(0, len(distilled.rows), config.batch_size)
            rows = np.concatenate([rows, distilled.rows[more]])
            sentences += [distilled.texts[i] for i in more]
        frames = augment(torch.from_numpy(arrays.frames[rows]), rng, config)
        if tokenizer is not None:
            half = torch.from_numpy(rng.permutation(len(frames))[: len(frames) // 2])
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            frames[half] = reconstruct(tokenizer, frames[half], config.latent_noise, generator)
        warm = min(1.0, (step + 1) / max(1, min(100, config.steps // 10)))
        for group in adam.param_groups:
            group["lr"] = config.lr * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        with autocast(judge.device):
            images = model.encode_image(judge.pixels(frames))  # type: ignore[operator]
            directions, indices = text_encoder.vectors(sentences)
        images = nn.functional.normalize(images.float(), dim=-1)
        parts = [(images[: len(own)], indices[: len(own)], torch.from_numpy(labels))]
        if distilled is not None:
            parts.append((images[len(own) :], indices[len(own) :], distilled.p[torch.from_numpy(more)]))
        loss = torch.zeros((), device=device)
        for embeddings, which, true in parts:
            count, true = true.shape[1], true.to(device)
            index = torch.tensor([w[:count] for w in which], device="cpu")
            similarity = torch.einsum("bd,bkd->bk", embeddings, directions[index])
            loss = loss + nn.functional.binary_cross_entropy_with_logits(fit[0].exp() * similarity + fit[1], true)
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


class _TextEncoder:
    """Encodes sentences that are tokenised once.

    Args:
        judge: judge whose text encoder is used.
        sentences: all instructions that occur in training.
    """

    def __init__(self, judge: OpenClipJudge, sentences: list[str]) -> None:
        self.judge, known = judge, sorted(set(sentences))
        goal = judge.config.goal
        tokens = judge.tokenizer(
            [goal.replace("{instruction}", text) for text in known] + [judge.config.baseline]
        )
        self.tokens: Tensor = tokens.to(judge.device)
        self.number = {text: i for i, text in enumerate(known)}

    def vectors(self, sentences: list[list[str]]) -> tuple[Tensor, list[list[int]]]:
        """Goal minus baseline `(N,D)` of the N distinct sentences, with gradients; and the row of each sentence."""
        numbers = [[self.number[text] for text in texts] for texts in sentences]
        distinct = sorted({n for row in numbers for n in row})
        place = {n: i for i, n in enumerate(distinct)}
        encoded = self.judge.model.encode_text(self.tokens[[*distinct, -1]]).float()  # type: ignore[operator]
        unit = nn.functional.normalize(encoded, dim=-1)
        return unit[:-1] - unit[-1], [[place[n] for n in row] for row in numbers]


class _TeacherLabels(NamedTuple):
    """Frame indices `(N,)`, `ASKED` instructions for each, and the teacher's probabilities of success `(N,ASKED)`."""

    rows: np.ndarray
    texts: list[list[str]]
    p: Tensor


def _teacher_labels(
    teacher: Any, arrays: EpisodeArrays, pairs: PairSampler, count: int, seed: int
) -> _TeacherLabels:
    """Label `count` frames with `teacher`."""
    rng = np.random.default_rng((seed, 10**9 + 7))
    rows = pairs.any_rows(count, rng)
    texts = [[pairs.any_words(int(row), rng) for _ in range(ASKED)] for row in rows]
    p = []
    for first in range(0, count, 64):
        part = np.repeat(rows[first : first + 64], ASKED)
        frames, states = torch.from_numpy(arrays.frames[part]), torch.from_numpy(arrays.states[part])
        instructions = [text for sentences in texts[first : first + 64] for text in sentences]
        p.append(judged(teacher, frames[:, None], instructions, states).p_success.cpu().float().view(-1, ASKED))
    return _TeacherLabels(rows, texts, torch.cat(p))


def _held_out(
    judge: OpenClipJudge, arrays: EpisodeArrays, pairs: PairSampler, config: JudgeTrainConfig, salt: int
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Logits, labels and kinds of `config.val_pairs` held-out pairs."""
    rows, texts, labels, kinds = pairs.sample(config.val_pairs, np.random.default_rng((config.seed, salt)))
    similarities = []
    for first in range(0, len(rows), 256):
        part = slice(first, first + 256)
        similarities += judge.score(torch.from_numpy(arrays.frames[rows[part]])[:, None], texts[part]).raw
    c = judge.config
    return c.scale * np.asarray(similarities, np.float32) + c.offset, labels, kinds
