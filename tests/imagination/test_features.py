"""Features of picture and words: all parts count, words choose a place, both layouts of pictures are read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.nn.functional import normalize

from worldgym.imagination.adapters.features import EncodedFeatures, ImageLanguageFeatures

SPACE = spaces.Dict(
    {
        "image": spaces.Box(0, 255, (64, 64, 3), np.uint8),
        "state": spaces.Box(-0.5, 0.5, (4,), np.float32),
        "instruction": spaces.Box(-1, 1, (384,), np.float32),
    }
)


def observation(count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8, generator=generator),
        "state": torch.rand(count, 4, generator=generator) - 0.5,
        "instruction": normalize(torch.randn(count, 384, generator=generator), dim=-1),
    }


def test_every_part_of_an_observation_changes_them():
    torch.manual_seed(0)
    features, seen = ImageLanguageFeatures(SPACE, bf16=False), observation()
    base = features(seen)
    assert base.shape == (2, features.dim)
    for name in SPACE:
        assert not torch.allclose(features({**seen, name: observation(seed=1)[name]}), base), name


def test_pictures_channels_first_in_unit_range_are_the_same_pictures():
    features, seen = ImageLanguageFeatures(SPACE, bf16=False), observation()
    turned = {**seen, "image": seen["image"].permute(0, 3, 1, 2).float() / 255}
    assert torch.allclose(features(turned), features(seen), atol=1e-6)


def test_sentences_to_come_are_told_apart_better():
    sentences = ["reach the red cube", "reach the blue cube", "reach the green ball"]
    from worldgym.text import embed

    words = torch.from_numpy(embed(sentences))
    spread = []
    for known in (None, sentences):
        features = ImageLanguageFeatures(SPACE, known)
        shifted = (words - features.text_mean) / features.text_std
        spread.append(float(torch.nn.functional.cosine_similarity(shifted[:1], shifted[1:2])))
    assert spread[1] < spread[0] - 0.2


def test_text_is_refused_with_what_to_type():
    text = spaces.Dict({**SPACE.spaces, "instruction": spaces.Text(10)})
    with pytest.raises(ValueError, match="instruction='embedding'"):
        ImageLanguageFeatures(text)


def test_encoded_observations_are_concatenated_and_images_are_refused():
    space = spaces.Dict({"seen": spaces.Box(-1, 1, (5,)), "more": spaces.Box(-1, 1, (2,))})
    features = EncodedFeatures(space)
    seen, more = torch.rand(3, 4, 5), torch.rand(3, 4, 2)
    assert features.dim == 7
    for given in ({"more": more, "seen": seen}, {"seen": seen, "more": more}):
        assert torch.equal(features(given), torch.cat([more, seen], -1)), "in the order of the space"
    with pytest.raises(ValueError, match="image .* is no vector.*ImageLanguageFeatures"):
        EncodedFeatures(spaces.Dict({"image": SPACE["image"], "seen": space["seen"]}))
