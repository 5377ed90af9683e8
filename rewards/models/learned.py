"""The default judge: predicts from one frame and the instruction the probability that the instruction is fulfilled.

A small convolutional network whose features are scaled and shifted by the instruction embedding (FiLM, with real
MiniLM weights). It computes soft-argmax keypoints, some of them conditioned on the instruction, because success depends
on the positions of two objects. It is trained only on logs from the real domain. Half of the training frames are
reconstructed by the tokenizer, so that imagined frames are in the training distribution
(`rewards.training.learned`).

Example::

    judge = LearnedJudge.from_pretrained("runs/judge")
    verdict = judge.score(frames, ["push the red cube to the left"])   # frames (1, T, 64, 64, 3) uint8
    verdict.p_success[0] >= judge.threshold
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worldgym.errors import CheckpointError, ConfigError
from worldgym.hub import HubModel
from worldgym.nn import GroupNorm, with_coordinates
from worldgym.protocols import Judgement, Reads
from worldgym.specs import Specs
from worldgym.text import EMBEDDING_DIM, embed
from worldgym.utils.devices import autocast
from worldgym.utils.row_threads import by_rows
from worldgym.utils.sizes import short, size_of
from worldgym.utils.typed import from_values

WAVES = (1.0, 2.0, 4.0, 8.0)
"""Frequencies of the sine and cosine features of proprioception, radians per standard deviation."""
STATE_FEATURES = 1 + 2 * len(WAVES)


@dataclass(frozen=True)
class LearnedJudgeConfig:
    """Sizes of a `LearnedJudge`.

    Args:
        image_size: pixels along one side of the frames, or (height, width).
        stem: channels at 1/2, 1/4 and 1/8 resolution.
        keypoints: number of keypoints (soft-argmax maps) that do not depend on the instruction.
        asked: number of instruction-conditioned keypoints.
        width: hidden width of the text encoder and of the head.
        text_dim: length of the instruction embedding.
        state_dim: length of the proprioceptive state that is read in addition to the frame; 0 for none. A single camera
            cannot distinguish a hand above an object from a hand behind it; proprioception can.
        by_words: whether the logit is shifted by a linear function of the instruction embedding
            (`rewards.training.calibration`).
        dropout: dropout rate in the head during training.
        bf16: compute convolutions and matrix products in bfloat16 where that is faster than float32.
        max_batch: number of frames in one forward pass; it affects memory, not results.
        specs: specs of the observations in the training data; None for judges of earlier versions.

    Raises:
        ValueError: a value is not allowed.
    """

    image_size: int | tuple[int, int] = 64
    stem: tuple[int, int, int] = (32, 64, 96)
    keypoints: int = 48
    asked: int = 32
    width: int = 192
    text_dim: int = EMBEDDING_DIM
    state_dim: int = 0
    by_words: bool = False
    dropout: float = 0.1
    bf16: bool = True
    max_batch: int = 512
    specs: Specs | None = None

    def __post_init__(self) -> None:
        """Validate, and convert lists from JSON to tuples."""
        object.__setattr__(self, "stem", tuple(self.stem))
        object.__setattr__(self, "image_size", short(size_of(self.image_size)))
        if min(self.size) < 16:
            raise ConfigError(f"image_size must be at least 16 pixels a side; got {self.image_size}. Try 64")
        if len(self.stem) != 3 or any(c % 8 for c in self.stem):
            raise ConfigError(f"stem must be three multiples of 8; got {self.stem}. Try (32, 64, 96)")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames."""
        return size_of(self.image_size)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> LearnedJudgeConfig:
        """Build from a preset: `tiny` (for tests) or `small`."""
        presets: dict[str, dict[str, Any]] = {
            "tiny": {"stem": (8, 16, 24), "keypoints": 8, "asked": 8, "width": 48, "bf16": False},
            "small": {},
        }
        if name not in presets:
            raise ConfigError(f"unknown judge preset {name!r}; expected one of {', '.join(presets)}")
        specs = overrides.pop("specs", None)
        return dataclasses.replace(cls.from_dict({**presets[name], **overrides}), specs=specs)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LearnedJudgeConfig:
        """Build from a JSON object; raises a ConfigError with a suggestion for an unknown key."""
        return from_values(cls, values)


class _Block(nn.Module):
    """Residual block with features modulated by the text (FiLM)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(width, 2 * channels)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        scale, shift = self.film(text)[:, :, None, None].chunk(2, dim=1)
        return x + self.conv2(nn.functional.gelu(self.norm(self.conv1(x)) * (1 + scale) + shift))


class LearnedJudge(
    nn.Module,
    HubModel,
    library_name="worldgym",
    tags=["reward-model", "worldgym"],
    coders={LearnedJudgeConfig: (dataclasses.asdict, LearnedJudgeConfig.from_dict)},
):
    """Predicts the probability of success from a frame, an instruction and, optionally, proprioception.

    Args:
        config: sizes, or the same as a plain dict (the content of `config.json`).
    """

    def __init__(self, config: LearnedJudgeConfig | Mapping[str, Any] | None = None) -> None:
        super().__init__()
        if config is None:
            config = LearnedJudgeConfig()
        if not isinstance(config, LearnedJudgeConfig):
            config = LearnedJudgeConfig.from_dict(config)
        self.config = config
        c1, c2, c3 = config.stem
        width = config.width
        self.text = nn.Sequential(nn.Linear(config.text_dim, width), nn.GELU(), nn.Linear(width, width))
        self.conv1 = nn.Conv2d(5, c1, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(c1, c2, 3, stride=2, padding=1)
        self.block2 = _Block(c2, width)
        self.maps = nn.Conv2d(c2, config.keypoints, 1)
        self.keys = nn.Conv2d(c2, 32, 1)
        self.asked = nn.Linear(width, 32 * config.asked)
        self.conv3 = nn.Conv2d(c2, c3, 3, stride=2, padding=1)
        self.block3 = _Block(c3, width)
        self.block4 = _Block(c3, width)
        features = 2 * c3 + 3 * (config.keypoints + config.asked)
        self.head = nn.Sequential(
            nn.Linear(features + width + STATE_FEATURES * config.state_dim, width),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, 1),
        )
        rows, columns = ((torch.arange(side) + 0.5) / side * 2 - 1 for side in config.size)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        self.pixels: Tensor
        self.register_buffer("pixels", torch.stack([x, y]), persistent=False)
        grid = nn.functional.avg_pool2d(torch.stack([x, y]), 4, ceil_mode=True).flatten(1)
        self.register_buffer("grid", grid, persistent=False)
        self.cut: Tensor
        self.register_buffer("cut", torch.tensor(0.5))
        # Embeddings are standardised: sentences about one table differ little compared with what they share.
        self.register_buffer("text_mean", torch.zeros(config.text_dim))
        self.register_buffer("text_std", torch.full((config.text_dim,), config.text_dim**-0.5))
        if config.state_dim:
            self.register_buffer("state_mean", torch.zeros(config.state_dim))
            self.register_buffer("state_std", torch.ones(config.state_dim))
            # A success condition has a sharp bound on the height; a layer on the raw height learns it too slowly.
            self.register_buffer("waves", torch.tensor(WAVES), persistent=False)
        if config.by_words:
            self.register_buffer("word_slope", torch.zeros(config.text_dim))
            self.register_buffer("word_level", torch.zeros(()))
        self.to(memory_format=torch.channels_last)

    def with_word_shift(self, slope: Tensor, level: float, threshold: float) -> LearnedJudge:
        """Return a copy with `slope . embedding + level` added to the logit and a new threshold.

        The shift is added to the shift that this judge already has.

        Args:
            slope: `(E,)` coefficients of the instruction embedding.
            level: constant part of the shift.
            threshold: threshold of the returned judge.
        """
        other = LearnedJudge(dataclasses.replace(self.config, by_words=True)).to(self.device)
        other.load_state_dict({**other.state_dict(), **self.state_dict()})
        other.word_slope.add_(slope.to(self.device))
        other.word_level.add_(level)
        other.set_threshold(threshold)
        return other.train(self.training)

    def warm_up(self) -> None:
        """Score a blank frame, so that the first real call of `score` takes no longer than the second."""
        size, frames = self.config.size, 1
        blank = torch.zeros(frames, 1, *size, 3, dtype=torch.uint8, device="cpu")
        states = torch.zeros(frames, self.config.state_dim, device="cpu") if self.reads.state else None
        self.score(blank, ["nothing yet"], states)

    @property
    def specs(self) -> Specs | None:
        """Specs of the observations in the training data."""
        return self.config.specs

    @property
    def reads(self) -> Reads:
        """The last frame, and proprioception if the judge was trained with it."""
        return Reads(state=self.config.state_dim > 0)

    def set_state_stats(self, states: np.ndarray) -> None:
        """Set mean and standard deviation of proprioception from the training logs `(N,S)`; `train_judge` does this."""
        self.state_mean.copy_(torch.from_numpy(states.mean(0)))
        self.state_std.copy_(torch.from_numpy(states.std(0)).clamp_min(1e-4))

    def with_state(self, states: np.ndarray) -> LearnedJudge:
        """Return a copy that also reads proprioception; its verdicts are the same until it is trained further.

        Args:
            states: `(N,S)` proprioception of the training logs.
        """
        if self.reads.state:
            return self
        other = LearnedJudge(dataclasses.replace(self.config, state_dim=states.shape[1])).to(self.device)
        own = self.state_dict()
        first = other.head[0].weight.detach().clone()
        first[:, : own["head.0.weight"].shape[1]] = own["head.0.weight"]
        first[:, own["head.0.weight"].shape[1] :] = 0
        other.load_state_dict({**other.state_dict(), **own, "head.0.weight": first})
        other.set_state_stats(states)
        return other.train(self.training)

    def init_from_policy(self, policy: Any) -> list[str]:
        """Initialise from the image and text encoder of a trained policy, which has learned to ground the instruction.

        Args:
            policy: a policy with `encoder_state()`, which returns tensors by name: `text_mean`, `text_std`, and the
                parameters of `text`, `conv1`, `conv2` and `block2` of an encoder with this judge's architecture.

        Returns:
            names of the copied tensors; tensors of another shape are not copied.

        Raises:
            CheckpointError: the policy has no `encoder_state()`, or none of its tensors fits.
        """
        if not hasattr(policy, "encoder_state"):
            raise CheckpointError(
                f"a {type(policy).__name__} offers no encoder_state(); omit --init-policy, or give a policy that "
                "`worldgym train policy` trained"
            )
        own = self.state_dict()
        matching = {
            name: value
            for name, value in policy.encoder_state().items()
            if name in own and own[name].shape == value.shape
        }
        if not matching:
            raise CheckpointError(
                f"no layer of the encoder of this {type(policy).__name__} fits this judge; use one preset for both"
            )
        self.load_state_dict({**own, **matching})
        return sorted(matching)

    @property
    def name(self) -> str:
        """Name of this judge in reports."""
        return "learned"

    @property
    def threshold(self) -> float:
        """Probability at which a verdict counts as success; it was calibrated on held-out episodes."""
        return float(self.cut)

    def set_threshold(self, value: float) -> None:
        """Change the threshold; it is saved with the weights."""
        if not 0 < value < 1:
            raise ConfigError(f"the threshold must lie in (0, 1); got {value}")
        self.cut.fill_(value)

    def set_text_stats(self, instructions: Sequence[str]) -> None:
        """Set mean and standard deviation of embeddings from the training instructions; `train_judge` does this."""
        vectors = torch.from_numpy(embed(sorted(set(instructions)))).to(self.device)
        self.text_mean.copy_(vectors.mean(0))
        self.text_std.copy_(vectors.std(0, correction=0).clamp_min(0.01))

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.cut.device

    def forward(self, image: Tensor, text: Tensor, state: Tensor | None = None) -> Tensor:
        """Logit `(B,)` float32 of success from `image (B,3,H,W)` float in [0,1], `text (B,E)`, and `state (B,S)`."""
        shift = text @ self.word_slope + self.word_level if self.config.by_words else 0.0
        with autocast(self.device, self.config.bf16):
            x, text, coordinates, strength = self._keypoints(image, text)
            x = self.block4(self.block3(nn.functional.gelu(self.conv3(x)), text), text)
            pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)
        with torch.autocast(self.device.type, enabled=False):
            parts = [pooled.float(), coordinates, strength, text.float()]
            if state is not None and self.reads.state:
                normal = (state.float() - self.state_mean) / self.state_std
                waves = (normal[:, None] * self.waves[:, None]).flatten(1)
                parts += [normal, waves.sin(), waves.cos()]
            return self.head(torch.cat(parts, dim=1)).squeeze(1) + shift

    def _keypoints(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Feature map, text features, keypoint coordinates `(B, 2 M)` and keypoint strengths `(B, M)`.

        The instruction-conditioned keypoints come last.
        """
        text = self.text(((text - self.text_mean) / self.text_std).clamp(-5, 5))
        x = nn.functional.gelu(self.conv1(with_coordinates(image.permute(0, 2, 3, 1), self.pixels)))
        x = self.block2(nn.functional.gelu(self.conv2(x)), text)
        maps, keys, asked = self.maps(x), self.keys(x), self.asked(text)
        with torch.autocast(self.device.type, enabled=False):
            conditioned = asked.float().unflatten(1, (-1, 32)) @ keys.float().flatten(2)
            scores = torch.cat([maps.float().flatten(2), conditioned], 1)
            weights = torch.softmax(scores, dim=-1)
            # the strength shows whether the object is in the frame at all
            coordinates, strength = (weights @ self.grid.t()).flatten(1), (weights * scores).sum(-1) / 10
        return x, text, coordinates, strength

    @torch.no_grad()
    def places(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keypoints in `image (B,3,H,W)` float in [0,1], given `text (B,E)`.

        Returns:
            coordinates `(B, 2 M)` in [-1, 1], x and y of every keypoint, and keypoint strengths `(B, M)`.
        """
        with autocast(self.device, self.config.bf16):
            return self._keypoints(image, text)[2:]

    @torch.no_grad()
    def score(
        self,
        frames: Tensor | np.ndarray,
        instructions: Sequence[str],
        states: Tensor | np.ndarray | None = None,
    ) -> Judgement:
        """Judge the last frame of B videos.

        Args:
            frames: `(B,T,H,W,3)` uint8.
            instructions: B strings.
            states: `(B,S)` proprioception at the last frame, data units; required if `reads.state`, otherwise ignored.

        Raises:
            TypeError, ValueError: wrong dtype, shape or number of instructions.
        """
        frames = torch.as_tensor(frames)
        size = self.config.size
        if frames.dtype != torch.uint8:
            raise TypeError(f"frames must be uint8 in [0, 255]; got {frames.dtype}")
        if frames.ndim != 5 or frames.shape[1] < 1 or tuple(frames.shape[2:]) != (*size, 3):
            raise ConfigError(
                f"frames must be (B, T >= 1, {size[0]}, {size[1]}, 3); got {tuple(frames.shape)}"
            )
        if len(instructions) != len(frames):
            raise ConfigError(f"{len(frames)} videos but {len(instructions)} instructions; give one for each")
        proprioception: Tensor | None = None
        if self.reads.state:
            proprioception = None if states is None else torch.as_tensor(states)
            expected = (len(frames), self.config.state_dim)
            if proprioception is None or tuple(proprioception.shape) != expected:
                got = None if proprioception is None else tuple(proprioception.shape)
                raise ConfigError(
                    f"this judge reads proprioception: expected states {expected}, got {got}; pass "
                    "score(frames, instructions, states=...), as worldgym.protocols.judged does"
                )
        training = self.training
        self.eval()
        last, text = frames[:, -1], torch.from_numpy(embed(list(instructions)))

        def logits_of(begin: int, part: slice) -> Tensor:
            rows = slice(begin + part.start, begin + part.stop)
            state = None if proprioception is None else proprioception[rows].to(self.device)
            return self.forward(to_float(last[rows].to(self.device)), text[rows].to(self.device), state)

        logits: list[Tensor] = []
        for begin in range(0, len(frames), self.config.max_batch):
            count = min(self.config.max_batch, len(frames) - begin)
            logits += by_rows(partial(logits_of, begin), count, self.device)
        self.train(training)
        logit = torch.cat(logits).cpu() if logits else torch.zeros(0, device="cpu")
        return Judgement(
            p_success=torch.sigmoid(logit),
            progress=None,
            valid=torch.isfinite(logit),
            raw=logit.tolist(),
        )


def to_float(frames: Tensor) -> Tensor:
    """Convert `(B,H,W,3)` uint8 to `(B,3,H,W)` float in [0,1]."""
    return frames.permute(0, 3, 1, 2).float() / 255


def load_bundled(name: str = "tabletop-small") -> LearnedJudge:
    """Load the judge that is bundled with the package."""
    from worldgym import pretrained

    return LearnedJudge.from_pretrained(pretrained.path(name) / "judge")
