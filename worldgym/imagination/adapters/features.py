"""Features for policies that learn from scratch: image locations that match the instruction.

Convolutions with flattened output must learn from reward alone, and separately for every location, that "red" in the
instruction belongs to red pixels. Here the instruction is mapped to queries. Each query is matched against every
location of a feature map, and the best match is read out as a coordinate (spatial soft-argmax, Levine et al. 2016,
section 5.2; queried with the instruction as in the judge, `rewards.models.learned`).

Example::

    features = ImageLanguageFeatures(envs.single_observation_space)
    features({"image": image, "state": state, "instruction": words})     # (B, features.dim)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from worldgym.utils.devices import autocast

KEYS = 24  # channels of the keys and queries that match image locations to words


class ImageLanguageFeatures(nn.Module):
    """Maps `Dict(image (B,H,W,3) u8, state (B,S), instruction (B,D))` to `(B, dim)`; uses the main camera only.

    Args:
        space: space of one observation; images have channels last, or channels first as in SB3.
        sentences: expected instructions, such as those of the start set. Embeddings are standardised with their mean
            and standard deviation, because sentences about one table differ little. None leaves embeddings unchanged.
        asked: number of image coordinates (x and y) that are queried with the instruction.
        width: width of the text layer and of the joint layer.
        bf16: run convolutions in bfloat16 where that is faster than float32 (`worldgym.utils.devices.bfloat16_pays`).

    Raises:
        ValueError: the space lacks one of the three entries, or its instruction is text.
    """

    def __init__(
        self,
        space: spaces.Dict,
        sentences: Sequence[str] | None = None,
        asked: int = 12,
        width: int = 128,
        bf16: bool = True,
    ) -> None:
        super().__init__()
        lacking = [
            k for k in ("image", "state", "instruction") if not isinstance(space.spaces.get(k), spaces.Box)
        ]
        if lacking:
            raise ValueError(
                f"these features need numeric arrays under image, state and instruction; {', '.join(lacking)} do not "
                f"have one in {space}. Make the environment with instruction='embedding'"
            )
        image, state, words = (space[k] for k in ("image", "state", "instruction"))
        assert isinstance(state, spaces.Box) and image.shape is not None and words.shape is not None
        height, width_px = image.shape[:2] if image.shape[-1] == 3 else image.shape[1:]
        self.conv1, self.conv2 = nn.Conv2d(5, 16, 5, 2, 2), nn.Conv2d(16, 32, 3, 2, 1)
        self.keys = nn.Conv2d(32, KEYS, 3, 1, 1)
        self.words = nn.Sequential(nn.Linear(words.shape[0], width), nn.Tanh())
        self.queries = nn.Linear(width, asked * KEYS)
        self.joint = nn.Sequential(nn.Linear(3 * asked + state.shape[0] + width, width), nn.Tanh())
        rows, columns = ((torch.arange(size) + 0.5) / size * 2 - 1 for size in (height, width_px))
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        self.pixels: Tensor
        self.grid: Tensor
        self.reach: Tensor
        self.register_buffer("pixels", torch.stack([x, y]), persistent=False)
        self.register_buffer(
            "grid", nn.functional.avg_pool2d(torch.stack([x, y]), 4).flatten(1), persistent=False
        )
        self.text_mean: Tensor
        self.text_std: Tensor
        size = words.shape[0]
        mean, std = torch.zeros(size), torch.full((size,), size**-0.5)  # unit length: 1 / sqrt(D) each
        if sentences is not None:
            from worldgym.text import embed

            vectors = torch.from_numpy(embed(sorted(set(sentences))))
            mean, std = vectors.mean(0), vectors.std(0, correction=0).clamp_min(0.01)
        self.register_buffer("text_mean", mean)
        self.register_buffer("text_std", std)
        bounds = torch.as_tensor(abs(state.low)).maximum(torch.as_tensor(abs(state.high)))
        reach = torch.where(
            torch.isfinite(bounds), bounds, torch.ones_like(bounds)
        )  # unbounded states are not scaled
        self.register_buffer("reach", reach, persistent=False)
        self.bf16 = bf16
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dim = width + 2 * asked + state.shape[0]

    def forward(self, observation: Mapping[str, Any]) -> Tensor:
        """Compute features `(B, dim)`; images are uint8, or floats in [0, 1]."""
        image = observation["image"]
        if image.shape[-1] == 3:
            image = image.permute(0, 3, 1, 2)
        inputs = image.float() / 255 if image.dtype == torch.uint8 else image.float()
        inputs = torch.cat([2 * inputs - 1, self.pixels.expand(len(inputs), -1, -1, -1)], 1)
        with autocast(inputs.device, self.bf16):
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            maps = self.keys(torch.relu(self.conv2(torch.relu(self.conv1(inputs))))).float()
        words = (observation["instruction"].float() - self.text_mean) / self.text_std
        text = self.words(words.clamp(-5, 5))
        match = self.queries(text).unflatten(1, (-1, KEYS)) @ maps.flatten(2) / KEYS**0.5
        weight = match.softmax(-1)
        where, strength = (weight @ self.grid.t()).flatten(1), (weight * match).sum(-1).tanh()
        state = observation["state"].float() / self.reach
        joint = self.joint(torch.cat([where, strength, state, text], 1))
        return torch.cat([joint, where, state], 1)


class EncodedFeatures(nn.Module):
    """Concatenates the vectors of a `Dict` observation, for observations that a wrapper has already encoded.

    Args:
        space: space of one observation; all entries are vectors.

    Raises:
        ValueError: an entry is no vector.
    """

    def __init__(self, space: spaces.Dict) -> None:
        super().__init__()
        wrong = [name for name, part in space.spaces.items() if len(part.shape or ()) != 1]
        if wrong:
            raise ValueError(
                f"{', '.join(wrong)} in {space} {'is no vector' if len(wrong) == 1 else 'are no vectors'}; take "
                "ImageLanguageFeatures for images"
            )
        self.names = tuple(space.spaces)
        self.dim = sum(int(part.shape[0]) for part in space.spaces.values() if part.shape)

    def forward(self, observation: Mapping[str, Any]) -> Tensor:
        """Features `(B, dim)` float32, in the order of the space."""
        return torch.cat([observation[name].float() for name in self.names], -1)
