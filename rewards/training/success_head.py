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

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from rewards.models.latent import LatentJudge, LatentJudgeConfig
from rewards.training.latent import (
    LATENT_SIZES,
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
from worldgym.utils.sizes import size_of

if TYPE_CHECKING:
    from worldgym.data.reader import EpisodeArrays

_log = logging.getLogger(__name__)
CALIBRATED_EPISODES = 200
"""Held-out episodes that the finished world model imagines for the threshold."""


class SuccessHead:
    """Loss of a success head on predicted latents, and on encoded frames; a `worldgym.training.chunk.LatentHead`.

    Args:
        judge: the head.
        source: encoded frames with labels; its training episodes give the labels of predicted latents too.
        config: settings of the pairs and of the calibration.
        coef: weight of each of the two terms beside the loss of the world model.
        alone: whether the dynamics is not trained.

    Raises:
        ConfigError: `coef` is not positive.
    """

    def __init__(
        self, judge: LatentJudge, source: Source, config: JudgeTrainConfig, coef: float, alone: bool = False
    ) -> None:
        if not 0 < coef < float("inf"):
            raise ConfigError(f"the weight of the success head is {coef}, expected more than 0; try 0.05")
        self.judge, self.source, self.config = judge, source, config
        self.coef, self.alone = coef, alone

    @classmethod
    def for_data(
        cls,
        world_model: Any,
        arrays: EpisodeArrays,
        *,
        coef: float,
        initial: str | Path | None = None,
        alone: bool = False,
        seed: int = 0,
        max_fpr: float = 0.03,
        preset: str = "small",
    ) -> SuccessHead:
        """A head for the latents of `world_model` and the labels of `arrays`.

        Args:
            world_model: has a `tokenizer`, whose latents of all frames are computed.
            arrays: logs with success labels; episodes without a label train the dynamics only.
            coef: weight of each of the two terms of the loss.
            initial: folder of a latent judge of the same tokenizer to begin with.
            alone: whether the dynamics is not trained.
            seed: seed of the held-out episodes and of the pairs.
            max_fpr: bound of the false positive rate at the threshold, on held-out episodes.
            preset: size of a new head: `tiny`, or that of `train judge --type latent`.

        Raises:
            DatasetError: fewer than two episodes with a frame of success, or no frame without.
            CheckpointError: `initial` reads the latents of another tokenizer.
            ConfigError: `initial` reads other proprioception than the logs have; or the frames are not those that the
                tokenizer encodes, because there are several cameras or they are padded.
        """
        config = JudgeTrainConfig(seed=seed, max_fpr=max_fpr)
        size = size_of(world_model.tokenizer.config.image_size) if hasattr(world_model.tokenizer, "config") else None
        if arrays.views or (size is not None and tuple(arrays.frames.shape[1:3]) != tuple(size)):
            raise ConfigError(
                f"a success head needs one camera whose frames fill the image of the tokenizer, {size}; got frames of "
                f"{tuple(arrays.frames.shape[1:3])} and {len(arrays.views)} more cameras. Leave out "
                "--success-head, and train a judge with `worldgym train judge --type learned`"
            )
        train, held_out = split_by_outcome(arrays, config)
        source = Source(arrays, encode_logs(world_model.tokenizer, arrays), train, held_out, config.near_share)
        if initial is None:
            torch.manual_seed(seed)
            sizes = LatentJudgeConfig(
                **LATENT_SIZES.get(preset, {}), state_dim=arrays.states.shape[1], specs=arrays.specs
            )
            judge = untrained_judge(arrays, source.latents, world_model.tokenizer, sizes, source.train)
        else:
            judge = LatentJudge.from_pretrained(initial)
        judge.attach(world_model.tokenizer)
        require_proprioception(judge, arrays, f"--judge {initial}")
        return cls(judge.to(world_model.device).requires_grad_(True), source, config, coef, alone)

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
            the loss and scalars to log. It is the sum of two means, over predicted frames of the training episodes and
            over encoded frames of the logs. In each, pairs that are true and pairs that are false have equal weight; of
            the solved predicted frames a third gets an instruction that is false.
        """
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        torch.manual_seed(int(rng.integers(2**62)))  # noise and dropout of a step depend on the step alone
        pairs = self.source.draw(self.source.train, self.config.batch_size, rng)
        device, weight = predicted.device, weight.detach().cpu()
        at = (torch.from_numpy(self.source.train.used(rows.cpu().numpy())) & (weight > 0)).nonzero().squeeze(1)
        texts, labels = self.source.train.words_for(rows[at].cpu().numpy(), rng)
        own = torch.from_numpy(labels)
        scale = torch.cat([
            balanced(weight[at], own), balanced(torch.ones(len(pairs.labels), device="cpu"), pairs.labels)
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
        facts = {"success_loss": float((scale * errors).sum().detach())}
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
        source, rng = self.source, np.random.default_rng(self.config.seed)
        held_out = np.unique(source.held.owner[source.held.every])
        held_out = np.sort(rng.permutation(held_out[source.arrays.has_action[held_out]])[:CALIBRATED_EPISODES])
        imagined = imagine_training_latents(
            world_model, source.arrays, held_out, generator=torch.Generator().manual_seed(self.config.seed)
        )
        sources = [source]
        if imagined[0].success.any() and not imagined[0].success.all():
            every = np.arange(len(held_out))
            sources.append(Source(*imagined, every, every, self.config.near_share))
        else:
            _log.warning(
                "%d held-out episodes with actions have no frames with and without success: the threshold of the "
                "success head is set on encoded frames only", len(held_out),
            )  # fmt: skip
        report = calibrated_report(self.judge.requires_grad_(False), sources, self.config)
        return self.judge, report


def balanced(weight: Tensor, labels: Tensor) -> Tensor:
    """Weights `(N,)` of sum 1, half of it on the true ones of `labels (N,)`; all of it on those there are."""
    scale = torch.zeros_like(weight)
    for kind in (labels > 0.5, labels <= 0.5):
        total = weight[kind].sum()
        if total > 0:
            scale[kind] = weight[kind] / total
    return scale / scale.sum().clamp_min(1e-9)


def split_by_outcome(arrays: EpisodeArrays, config: JudgeTrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out episodes of the labelled ones: the same share of those with and without a success.

    Copies of an episode (`worldgym.data.augment`) stay together.

    Raises:
        DatasetError: fewer than two labelled episodes have a frame of success.
    """
    solved = np.array([bool(arrays.success[arrays.rows(i)].any()) for i in range(len(arrays))])
    groups = [np.unique(arrays.indices[arrays.has_success & (solved == wanted)]) for wanted in (True, False)]
    if len(groups[0]) < 2:
        raise DatasetError(
            f"{len(groups[0])} of {len(arrays)} episodes have a frame that is labelled as success, and a success head "
            "needs two; collect more episodes, import with --success, or leave out --success-head"
        )
    held_out = np.concatenate([group[split_episodes(len(group), config)[1]] for group in groups if len(group) > 1])
    is_held_out = np.isin(arrays.indices, held_out)
    return np.flatnonzero(arrays.has_success & ~is_held_out), np.flatnonzero(arrays.has_success & is_held_out)
