"""A judge that reads the world model's latents, so that no frame has to be decoded.

`LearnedJudge` reads 64 x 64 pixels, which have to be decoded first. The dynamics model predicts 8 x 8 x 16 latents of
the same frame. A small network on the latents costs a fraction, and it does not depend on decoder errors. The network
has instruction-conditioned keypoints, as in `LearnedJudge`, and also reads proprioception. `rewards.training.latent`
trains it on logs from the real domain that were encoded by the world model's tokenizer. It works only with this
tokenizer, so the config stores the tokenizer's fingerprint.

Example::

    judge = LatentJudge.from_pretrained("runs/latent_judge").attach(world_model.tokenizer)
    judge.score(frames, instructions, states)                                       # encodes the last frame
    judge.score(frames, instructions, states, latents=imagined.latents[:, -1])      # reads the predicted latents
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rewards.models.learned import STATE_FEATURES, WAVES
from worldgym.errors import CheckpointError, ConfigError
from worldgym.hub import HubModel
from worldgym.nn import GroupNorm
from worldgym.protocols import Judgement, Reads
from worldgym.specs import Specs
from worldgym.text import EMBEDDING_DIM, embed
from worldgym.utils.sizes import short, size_of
from worldgym.utils.typed import from_values


@dataclass(frozen=True)
class LatentJudgeConfig:
    """Sizes of a `LatentJudge`.

    Args:
        channels: channels of the latents.
        grid: latents along one side, or (rows, columns).
        width: channels of the feature maps and of the hidden layers.
        asked: number of instruction-conditioned keypoints (soft-argmax maps).
        text_dim: length of the instruction embedding.
        state_dim: length of the proprioceptive state that is read in addition to the latents; 0 for none.
        dropout: dropout rate in the head during training.
        max_batch: number of latents in one forward pass.
        tokenizer: fingerprint of the tokenizer that encodes the latents; "" accepts any tokenizer.
        specs: specs of the observations in the training data; None for judges of earlier versions.

    Raises:
        ConfigError: a value is not allowed.
    """

    channels: int = 16
    grid: int | tuple[int, int] = 8
    width: int = 64
    asked: int = 16
    text_dim: int = EMBEDDING_DIM
    state_dim: int = 4
    dropout: float = 0.1
    max_batch: int = 1024
    tokenizer: str = ""
    specs: Specs | None = None

    def __post_init__(self) -> None:
        """Validate."""
        object.__setattr__(self, "grid", short(size_of(self.grid)))
        if min(self.channels, self.width, self.asked, self.max_batch) < 1 or self.width % 8:
            raise ConfigError(
                f"channels, asked and max_batch must be at least 1, width a multiple of 8; got {self}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LatentJudgeConfig:
        """Build from a JSON object; raises a ConfigError with a suggestion for an unknown key."""
        return from_values(cls, values)


class LatentJudge(
    nn.Module,
    HubModel,
    library_name="worldgym",
    tags=["reward-model", "worldgym"],
    coders={LatentJudgeConfig: (dataclasses.asdict, LatentJudgeConfig.from_dict)},
):
    """Predicts the probability of success from latents, an instruction and, optionally, proprioception.

    Args:
        config: sizes, or the same as a plain dict (the content of `config.json`).
    """

    def __init__(self, config: LatentJudgeConfig | Mapping[str, Any] | None = None) -> None:
        super().__init__()
        if config is None:
            config = LatentJudgeConfig()
        if not isinstance(config, LatentJudgeConfig):
            config = LatentJudgeConfig.from_dict(config)
        self.config = c = config
        w = c.width
        self.text = nn.Sequential(nn.Linear(c.text_dim, 2 * w), nn.GELU(), nn.Linear(2 * w, 2 * w), nn.GELU())
        self.first = nn.Conv2d(c.channels + 2, w, 3, padding=1)
        self.norm = GroupNorm(8, w)
        self.second = nn.Conv2d(w, w, 3, padding=1)
        self.film = nn.Linear(2 * w, 2 * w)
        self.asked = nn.Linear(2 * w, w * c.asked)
        features = 2 * w + c.asked * 3
        self.head = nn.Sequential(
            nn.Linear(features + 2 * w + STATE_FEATURES * c.state_dim, 2 * w), nn.GELU(), nn.Dropout(c.dropout),
            nn.Linear(2 * w, w), nn.GELU(), nn.Linear(w, 1),
        )  # fmt: skip
        rows, columns = ((torch.arange(side) + 0.5) / side * 2 - 1 for side in size_of(c.grid))
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        self.cut: Tensor
        self.places: Tensor
        self.waves: Tensor
        self.register_buffer("places", torch.stack([x, y]), persistent=False)
        self.register_buffer("waves", torch.tensor(WAVES), persistent=False)
        self.register_buffer("cut", torch.tensor(0.5))
        self.register_buffer("text_mean", torch.zeros(c.text_dim))
        self.register_buffer("text_std", torch.full((c.text_dim,), c.text_dim**-0.5))
        self.register_buffer("state_mean", torch.zeros(max(1, c.state_dim)))
        self.register_buffer("state_std", torch.ones(max(1, c.state_dim)))
        self._tokenizer: list[Any] = []  # in a list, so that the tokenizer is not a submodule

    # -- facts ------------------------------------------------------------------------------------
    @property
    def name(self) -> str:
        """Name of this judge in reports."""
        return "latent"

    def warm_up(self) -> None:
        """Load the sentence encoder, so that the first call of `score` takes no longer than the second."""
        embed(["nothing yet"])

    @property
    def specs(self) -> Specs | None:
        """Specs of the observations in the training data."""
        return self.config.specs

    @property
    def reads(self) -> Reads:
        """The latents of the last frame, and proprioception if the judge was trained with it."""
        return Reads(state=self.config.state_dim > 0, latents=True)

    @property
    def threshold(self) -> float:
        """Probability at which a verdict counts as success; it was set on held-out episodes."""
        return float(self.cut)

    def set_threshold(self, value: float) -> None:
        """Change the threshold; it is saved with the weights."""
        if not 0 < value < 1:
            raise ConfigError(f"the threshold must lie in (0, 1); got {value}")
        self.cut.fill_(value)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, path: str | Path, *, tokenizer: Any | None = None, **kwargs: Any
    ) -> LatentJudge:
        """Load a saved judge and attach it to `tokenizer` if one is given; see `HubModel.from_pretrained`."""
        judge = super().from_pretrained(path, **kwargs)
        return judge if tokenizer is None else judge.attach(tokenizer)

    def attach(self, tokenizer: Any) -> LatentJudge:
        """Attach the tokenizer that encodes the latents, so that frames can be judged as well; returns self.

        Raises:
            CheckpointError: the judge was trained on the latents of another tokenizer.
        """
        actual = fingerprint(tokenizer)
        if self.config.tokenizer and actual != self.config.tokenizer:
            raise CheckpointError(
                f"this judge was trained on latents of tokenizer {self.config.tokenizer}, but the world model has "
                f"{actual}; train a judge for it: worldgym train judge --type latent --data DIR --world-model DIR"
            )
        self._tokenizer = [tokenizer]
        return self

    # -- judging ----------------------------------------------------------------------------------
    def forward(self, latents: Tensor, text: Tensor, state: Tensor | None = None) -> Tensor:
        """Logit `(B,)` of success from `latents (B,C,h,w)`, `text (B,E)` and `state (B,S)`."""
        condition = self.text(((text - self.text_mean) / self.text_std).clamp(-5, 5))
        x = torch.cat([latents, self.places.expand(len(latents), -1, -1, -1)], 1)
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        x = nn.functional.gelu(self.norm(self.first(x)) * (1 + scale) + shift)
        x = x + nn.functional.gelu(self.second(x))
        flat = x.flatten(2)
        match = self.asked(condition).unflatten(1, (self.config.asked, -1)) @ flat / self.config.width**0.5
        weight = match.softmax(-1)
        coordinates, strength = (weight @ self.places.flatten(1).t()).flatten(1), (weight * match).sum(-1)
        parts = [flat.mean(2), flat.amax(2), coordinates, strength, condition]
        if self.reads.state:
            assert state is not None
            normal = (state.float() - self.state_mean) / self.state_std
            waves = (normal[:, None] * self.waves[:, None]).flatten(1)
            parts += [normal, waves.sin(), waves.cos()]
        logit: Tensor = self.head(torch.cat(parts, 1)).squeeze(1)
        return logit

    @torch.no_grad()
    def score(
        self,
        frames: Tensor | np.ndarray,
        instructions: Sequence[str],
        states: Tensor | np.ndarray | None = None,
        latents: Tensor | None = None,
    ) -> Judgement:
        """Judge the last frame of B videos.

        Args:
            frames: `(B,T,H,W,3)` uint8; the last frame is encoded. Ignored if `latents` are given.
            instructions: B strings.
            states: `(B,S)` proprioception at the last frame, data units; required if `reads.state`.
            latents: `(B,C,h,w)` latents of the world model, used instead of the frames.

        Raises:
            ConfigError: frames are given but no tokenizer is attached, or shapes do not match.
        """
        c = self.config
        if latents is None:
            if not self._tokenizer:
                raise ConfigError(
                    "this judge reads latents and has no tokenizer to encode frames; call "
                    "attach(world_model.tokenizer) first, or pass latents=imagined.latents[:, -1]"
                )
            latents = self._tokenizer[0].encode(torch.as_tensor(frames)[:, -1])
        expected = (len(instructions), c.channels, *size_of(c.grid))
        if tuple(latents.shape) != expected:
            raise ConfigError(
                f"latents are {tuple(latents.shape)}, expected {expected}, one for each instruction"
            )
        proprioception = None if states is None else torch.as_tensor(states)
        if self.reads.state and (proprioception is None or tuple(proprioception.shape) != (len(latents), c.state_dim)):
            raise ConfigError(
                f"this judge reads proprioception: expected states {(len(latents), c.state_dim)}, got "
                f"{None if proprioception is None else tuple(proprioception.shape)}"
            )
        training, device = self.training, self.cut.device
        self.eval()
        text = torch.from_numpy(embed(list(instructions)))
        logits = []
        for first in range(0, len(latents), c.max_batch):
            rows = slice(first, first + c.max_batch)
            state = None if proprioception is None else proprioception[rows].to(device)
            logits.append(self.forward(latents[rows].float().to(device), text[rows].to(device), state))
        self.train(training)
        logit = torch.cat(logits).cpu() if logits else torch.zeros(0, device="cpu")
        return Judgement(torch.sigmoid(logit), None, torch.isfinite(logit), logit.tolist())


def fingerprint(tokenizer: Any) -> str:
    """Fingerprint (12 hex digits of SHA-256) of a tokenizer's weights in bfloat16, the precision of saved models."""
    digest = hashlib.sha256()
    for name, value in sorted(tokenizer.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().to(torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:12]
