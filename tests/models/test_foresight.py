"""The joint predictor: shapes, what it learns, one step from nothing, files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worldgym.errors import ConfigError, DatasetError
from worldgym.models import FrameTokenizer, TokenizerConfig
from worldgym.models.foresight import Foresight, ForesightConfig
from worldgym.training.foresight import ForesightData, foresee, train_foresight, value_scores

SIZES = {"width": 32, "depth": 2, "heads": 2, "text_dim": 6, "state_dim": 2, "tokens": 5}


def tokenizer():
    torch.manual_seed(0)
    return FrameTokenizer(
        TokenizerConfig(image_size=32, latent_channels=4, widths=(8, 8, 8), blocks=(1, 1, 1))
    ).eval()


def countdown(episodes=60, steps=6, seed=0):
    """A cell that wanders to the right and brightens; success comes when it arrives, if the words say so."""
    g = torch.Generator().manual_seed(seed)
    latents, states, texts, after, values, episode = [], [], [], [], [], []
    for e in range(episodes):
        wins = bool(torch.rand((), generator=g) < 0.5)
        first = len(values)
        for t in range(steps):
            z = torch.zeros(4, 4, 4)
            z[0, :, min(3, t)] = 1.0
            z[1] = t / steps
            latents.append(z + 0.05 * torch.randn(z.shape, generator=g))
            states.append(torch.tensor([t / steps, 0.0]))
            texts.append(torch.full((6,), 1.0 if wins else -1.0))
            after.append([min(first + t + k, first + steps - 1) for k in (1, 2)])
            values.append(-(steps - 1 - t) / steps if wins else -1.0)
            episode.append(e)
    columns = (
        torch.stack(latents),
        torch.stack(states),
        torch.stack(texts),
        torch.tensor(after),
        torch.tensor(values),
    )
    return ForesightData(*columns, np.array(episode))


@pytest.mark.parametrize("futures", [0, 2])
def test_values_and_futures_are_learned_and_read_in_one_step(futures):
    data = countdown()
    torch.manual_seed(0)
    model = Foresight.of(tokenizer(), futures=futures, **SIZES)
    held = data.episode >= 50
    before = value_scores(model, data, np.flatnonzero(held))["mae"]
    losses = train_foresight(model, data, np.flatnonzero(~held), steps=250, batch_size=32, lr=3e-3)
    after = value_scores(model, data, np.flatnonzero(held))
    assert np.mean(losses[-20:]) < np.mean(losses[:20]) and after["mae"] < 0.5 * before and after["tau"] > 0.7
    seen = foresee(model, data)
    assert seen.value.shape == (360,) and bool((seen.value <= 0).all() and (seen.value >= -1).all())
    assert seen.tokens.shape == (360, 5)
    if futures:
        true = data.latents[data.after]
        still = (data.latents[:, None] - true).square().mean()
        assert seen.futures.shape == true.shape and (seen.futures - true).square().mean() < 0.7 * still
    else:
        assert seen.futures.numel() == seen.states.numel() == 0


def test_the_step_from_noise_does_not_depend_on_the_tokenizer_and_survives_disk(tmp_path):
    model = Foresight.of(tokenizer(), futures=1, **SIZES).eval()
    torch.nn.init.normal_(model.write.weight, std=0.1)
    model.save_pretrained(tmp_path / "f")
    again = Foresight.from_pretrained(tmp_path / "f")
    frames = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    parts = (model.tokenizer.encode(frames), torch.randn(3, 2), torch.randn(3, 6))
    for one, other in zip(model(*parts), again(again.tokenizer.encode(frames), *parts[1:]), strict=True):
        assert torch.equal(one, other)
    assert not any(p.requires_grad for p in again.tokenizer.parameters())
    assert not again.train().tokenizer.training


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="heads must divide"):
        ForesightConfig(width=30, heads=4)
    with pytest.raises(DatasetError, match="one row per frame"):
        ForesightData(
            torch.zeros(2, 1), torch.zeros(1), torch.zeros(2), torch.zeros(2), torch.zeros(2), np.zeros(2)
        )
