"""Training of the joint predictor of value and future latents on logged episodes, and evaluation of its values.

Example::

    data = ForesightData(latents, states, texts, next_rows, values)
    train_foresight(model, data, rows, steps=600)
    value_scores(model, data, held_out)["mae"]
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worldgym.errors import DatasetError
from worldgym.models.foresight import Foreseen, Foresight
from worldgym.utils.devices import randn


@dataclass(frozen=True)
class ForesightData:
    """M logged frames with prediction targets.

    Args:
        latents: `(M,C,h,w)` float32.
        states: `(M,S)` proprioception.
        texts: `(M,E)` embeddings of the instructions.
        after: `(M,N)` int64, rows of the N future frames of each frame.
        values: `(M,)` float32 returns in [-1, 0].
        episode: `(M,)` int64, episode of each frame.
    """

    latents: Tensor
    states: Tensor
    texts: Tensor
    after: Tensor
    values: Tensor
    episode: np.ndarray

    def __post_init__(self) -> None:
        """Validate."""
        if len({len(self.latents), len(self.states), len(self.texts), len(self.after), len(self.values)}) > 1:
            raise DatasetError("latents, states, texts, after and values need one row per frame each")


def train_foresight(
    model: Foresight,
    data: ForesightData,
    rows: np.ndarray,
    *,
    steps: int = 600,
    batch_size: int = 128,
    lr: float = 1e-3,
    noise: float = 0.1,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train by flow matching on the given rows; the model's statistics are set first.

    Args:
        model: changed in place.
        data: logged frames.
        rows: rows of `data` to train on.
        steps: optimizer steps.
        batch_size: frames per step.
        lr: peak learning rate, cosine decay to zero.
        noise: noise added to the frame's latents, to reduce overfitting on few frames.
        seed: seed of batches and noise.
        on_step: called with (step, loss).

    Returns:
        the losses.
    """
    model.set_stats(data.states[rows], data.texts[rows])
    learned = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(learned, lr=lr, weight_decay=0.05, betas=(0.9, 0.98))
    rng, generator = np.random.default_rng((seed, 41)), torch.Generator().manual_seed(seed)
    model.train()
    device = next(model.parameters()).device
    losses = []
    for step in range(steps):
        chosen = torch.from_numpy(rng.choice(rows, batch_size))
        after = data.after[chosen][:, : model.config.futures]
        joint = model.joint(
            data.latents[after].to(device), data.states[after].to(device), data.values[chosen].to(device)
        )
        noisy = data.latents[chosen].to(device)
        noisy = noisy + noise * randn(noisy.shape, generator, device)
        states, texts = data.states[chosen].to(device), data.texts[chosen].to(device)
        loss = model.loss(noisy, states, texts, joint, generator)
        for group in adam.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        adam.step()
        losses.append(float(loss.detach()))
        if on_step is not None:
            on_step(step, losses[-1])
    model.eval()
    return losses


def foresee(model: Foresight, data: ForesightData, batch_size: int = 256) -> Foreseen:
    """Predict value and future of all frames, on the model's device."""
    device = next(model.parameters()).device
    parts = [
        model(*(column[first : first + batch_size].to(device) for column in (data.latents, data.states, data.texts)))
        for first in range(0, len(data.latents), batch_size)
    ]
    return Foreseen(*(torch.cat(column) for column in zip(*parts, strict=True)))


def value_scores(model: Foresight, data: ForesightData, rows: np.ndarray) -> dict[str, float]:
    """Mean absolute error of the values, and Kendall's tau with the true returns, on the given rows."""
    from scipy.stats import kendalltau

    predicted, true = foresee(model, data).value.cpu().numpy()[rows], data.values.numpy()[rows]
    return {"mae": float(np.abs(predicted - true).mean()), "tau": float(kendalltau(predicted, true).statistic)}
