"""A success head that is trained in the same steps as the world model whose latents it reads (World-VLA-Loop).

World-VLA-Loop (arXiv 2602.06508) adds the squared error of a reward head on the video model's latents to its loss. Here
the head is a `LatentJudge`, the error is binary cross-entropy, and it is added to the loss of a chunk world model: on
the latents that the dynamics predicts, whose gradient also reaches the dynamics, and on encoded frames of the logs.

Example::

    head = SuccessHead.for_data(model, arrays, coef=0.05, initial="runs/latent_judge")
    ChunkTrainer.fit(model, arrays, settings, folder, head=head)
    judge, report = head.finished(model)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from rewards.models.latent import LatentJudge
from rewards.training.latent import (
    Source,
    calibrated_report,
    encode_logs,
    imagine_training_latents,
    split_episodes,
    untrained_judge,
)
from rewards.training.learned import JudgeTrainConfig, blur, require_proprioception
from worldgym.errors import ConfigError, DatasetError
from worldgym.text import embed

if TYPE_CHECKING:
    from worldgym.data.reader import EpisodeArrays

CALIBRATED_EPISODES = 200
"""Held-out episodes that the finished world model imagines for the threshold."""


class SuccessHead:
    """Loss of a success head on predicted latents, and on encoded frames; a `worldgym.training.chunk.LatentHead`.

    Args:
        judge: the head.
        source: encoded frames with labels; its training episodes give the labels of predicted latents too.
        config: settings of the pairs and of the calibration.
        coef: weight of the loss beside that of the world model.

    Raises:
        ConfigError: `coef` is not positive.
    """

    def __init__(self, judge: LatentJudge, source: Source, config: JudgeTrainConfig, coef: float) -> None:
        if not 0 < coef < float("inf"):
            raise ConfigError(f"the weight of the success head is {coef}, expected more than 0; try 0.05")
        self.judge, self.source, self.config, self.coef = judge, source, config, coef

    @classmethod
    def for_data(
        cls,
        world_model: Any,
        arrays: EpisodeArrays,
        *,
        coef: float,
        initial: str | Path | None = None,
        seed: int = 0,
        max_fpr: float = 0.03,
    ) -> SuccessHead:
        """A head for the latents of `world_model` and the labels of `arrays`.

        Args:
            world_model: has a `tokenizer`, whose latents of all frames are computed.
            arrays: logs with success labels; episodes without a label train the dynamics only.
            coef: weight of the loss.
            initial: folder of a latent judge of the same tokenizer to begin with.
            seed: seed of the held-out episodes and of the pairs.
            max_fpr: bound of the false positive rate at the threshold, on held-out episodes.

        Raises:
            DatasetError: fewer than two episodes with a frame of success, or no frame without.
            CheckpointError: `initial` reads the latents of another tokenizer.
            ConfigError: `initial` reads other proprioception than the logs have.
        """
        config = JudgeTrainConfig(seed=seed, max_fpr=max_fpr)
        train, held_out = split_by_outcome(arrays, config)
        source = Source(arrays, encode_logs(world_model.tokenizer, arrays), train, held_out, config.near_share)
        if initial is None:
            torch.manual_seed(seed)
            judge = untrained_judge(arrays, source.latents, world_model.tokenizer, None, source.train)
        else:
            judge = LatentJudge.from_pretrained(initial)
        judge.attach(world_model.tokenizer)
        require_proprioception(judge, arrays, f"--judge {initial}")
        return cls(judge.to(world_model.device), source, config, coef)

    @property
    def module(self) -> nn.Module:
        """The trained network."""
        return self.judge

    def loss(
        self, predicted: Tensor, rows: Tensor, weight: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Weighted cross-entropy of the head.

        Args:
            predicted: `(N,C,h,w)` predicted latents, with gradient.
            rows: `(N,)` frames of the logs that they predict.
            weight: `(N,)` weights, 0 for padding.
            generator: random generator.

        Returns:
            the loss and scalars to log. Solved and unsolved predicted frames have equal weight in sum; of the solved
            ones a third gets an instruction that is false.
        """
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        pairs = self.source.draw(self.source.train, self.config.batch_size, rng)
        device = predicted.device
        known = torch.from_numpy(self.source.train.used(rows.cpu().numpy())) & (weight.cpu() > 0)
        at = known.nonzero().squeeze(1)
        texts, labels = self.source.train.words_for(rows[at].cpu().numpy(), rng)
        own = torch.from_numpy(labels)
        balance = torch.ones(len(at), device="cpu")
        if 0 < float(own.sum()) < len(own):
            share = own.mean()
            balance = torch.where(own > 0.5, 0.5 / share, 0.5 / (1 - share))
        scale = torch.cat([
            balance * weight.cpu()[at].detach() / (weight.cpu()[at].detach().sum() + 1e-6),
            torch.full((len(pairs.labels),), 1 / len(pairs.labels), device="cpu"),
        ]).to(device)  # fmt: skip
        latents = torch.cat([predicted[at.to(device)], blur(pairs.latents, self.config.latent_noise).to(device)])
        states = torch.cat([torch.from_numpy(self.source.arrays.states[rows[at].cpu().numpy()]), pairs.states])
        states = states.to(device)
        if self.judge.reads.state:
            states = states + self.judge.state_std * self.config.state_noise * torch.randn_like(states)
        words = torch.from_numpy(embed(texts + pairs.texts)).to(device)
        with torch.autocast(device.type, enabled=False):
            logit = self.judge(latents.float(), words, states)
        target = torch.cat([own, pairs.labels]).to(device)
        errors = nn.functional.binary_cross_entropy_with_logits(logit, target, reduction="none")
        right = ((logit > 0) == (target > 0.5)).float()
        facts = {"success_loss": float((scale * errors).sum().detach() / 2)}
        if len(at):
            facts["success_predicted_accuracy"] = float(right[: len(at)].mean())
        return self.coef * (scale * errors).sum(), facts

    def finished(self, world_model: Any) -> tuple[LatentJudge, dict[str, float]]:
        """The head as a judge, with its threshold set on held-out episodes as logged and as imagined.

        Args:
            world_model: the trained world model, which imagines them.

        Returns:
            the judge and its held-out report, as that of `train_latent_judge`.
        """
        source = self.source
        held_out = np.unique(source.held.owner[source.held.every])[:CALIBRATED_EPISODES]
        imagined = imagine_training_latents(
            world_model, source.arrays, held_out, generator=torch.Generator().manual_seed(self.config.seed)
        )
        sources = [source]
        if imagined[0].success.any() and not imagined[0].success.all():
            every = np.arange(len(held_out))
            sources.append(Source(*imagined, every, every, self.config.near_share))
        report = calibrated_report(self.judge.requires_grad_(False), sources, self.config)
        return self.judge, report


def split_by_outcome(arrays: EpisodeArrays, config: JudgeTrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out episodes of the labelled ones: the same share of those with and without a success.

    Raises:
        DatasetError: fewer than two labelled episodes have a frame of success.
    """
    solved = np.array([bool(arrays.success[arrays.rows(i)].any()) for i in range(len(arrays))])
    groups = [np.flatnonzero(arrays.has_success & (solved == wanted)) for wanted in (True, False)]
    if len(groups[0]) < 2:
        raise DatasetError(
            f"{len(groups[0])} of {len(arrays)} episodes have a frame that is labelled as success, and a success head "
            "needs two; leave out --success-head, collect more episodes, or import with --success"
        )
    parts = [[group[rows] for rows in split_episodes(len(group), config)] for group in groups if len(group) > 1]
    train, held_out = (np.sort(np.concatenate(each)) for each in zip(*parts, strict=True))
    return train, held_out
