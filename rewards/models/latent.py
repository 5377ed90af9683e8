"""The world model's success head: a judge that reads latents, so that nothing has to be decoded.

Why: `LearnedJudge` looks at 64 x 64 pixels, which first have to be painted. What the dynamics hands on is 8 x 8 x 16
numbers of the same picture; a small network on them costs a fraction, and it reads what the world model *means* rather
than what its decoder paints. The words ask the map for keypoints, as in `LearnedJudge`, and proprioception is read
beside it. Trained by `rewards.training.latent` on Real's logs, encoded by that world model's tokenizer; a head
belongs to its tokenizer and is useless with another, so the config holds a fingerprint of it.

Example::

    judge = LatentJudge.from_pretrained("runs/latent_judge").attach(world_model.tokenizer)
    judge.score(frames, instructions, states)                                 # encodes the last frame
    judge.score(frames, instructions, states, latents=imagined.latents[:, -1])      # reads what was imagined
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
from worldgym.protocols import Judgement, Reads
from worldgym.specs import Specs
from worldgym.text import EMBEDDING_DIM, embed
from worldgym.utils.sizes import short, size_of
from worldgym.utils.typed import from_values


@dataclass(frozen=True)
class LatentJudgeConfig:
    """Shape of a `LatentJudge`.

    Args:
        channels: of the latents.
        grid: latents along one side, or rows and columns.
        width: channels of the maps and of the hidden layers.
        asked: soft-argmax maps that the words ask for.
        text_dim: length of the instruction embedding.
        state_dim: proprioception that is read beside the latents, 0 for none.
        dropout: in the head, while training.
        max_batch: latents in one forward pass.
        tokenizer: fingerprint of the tokenizer whose latents it reads; "" for any.
        specs: of the observations that it was trained on, or None for judges of earlier versions.

    Raises:
        ConfigError: a value that cannot work.
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
        """Build from a json object; an unknown key is refused with a suggestion."""
        return from_values(cls, values)


class LatentJudge(
    nn.Module,
    HubModel,
    library_name="worldgym",
    tags=["reward-model", "worldgym"],
    coders={LatentJudgeConfig: (dataclasses.asdict, LatentJudgeConfig.from_dict)},
):
    """Latent + instruction (+ proprioception) -> probability of success.

    Args:
        config: sizes; also accepts a plain dict (what `config.json` holds).
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
        self.norm = nn.GroupNorm(8, w)
        self.second = nn.Conv2d(w, w, 3, padding=1)
        self.film = nn.Linear(2 * w, 2 * w)
        self.asked = nn.Linear(2 * w, w * c.asked)
        seen = 2 * w + c.asked * 3
        self.head = nn.Sequential(
            nn.Linear(seen + 2 * w + STATE_FEATURES * c.state_dim, 2 * w), nn.GELU(), nn.Dropout(c.dropout),
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
        self._tokenizer: list[Any] = []  # in a list: it is the world model's, not among these weights

    # -- facts ------------------------------------------------------------------------------------
    @property
    def name(self) -> str:
        """What reports call this judge."""
        return "latent"

    def warm_up(self) -> None:
        """Load the sentence encoder, so that the first verdict costs no more than the second."""
        embed(["nothing yet"])

    @property
    def specs(self) -> Specs | None:
        """Of the observations that it was trained on."""
        return self.config.specs

    @property
    def reads(self) -> Reads:
        """The last frame's latents, and proprioception where it was trained with it."""
        return Reads(state=self.config.state_dim > 0, latents=True)

    @property
    def threshold(self) -> float:
        """Probability that counts as success, set on held-out episodes."""
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
        """What `save_pretrained` wrote, attached to `tokenizer` where one is given; see `HubModel.from_pretrained`."""
        judge = super().from_pretrained(path, **kwargs)
        return judge if tokenizer is None else judge.attach(tokenizer)

    def attach(self, tokenizer: Any) -> LatentJudge:
        """Say whose latents are read, so that frames can be judged as well; returns self.

        Raises:
            CheckpointError: the head was trained on another tokenizer.
        """
        found = fingerprint(tokenizer)
        if self.config.tokenizer and found != self.config.tokenizer:
            raise CheckpointError(
                f"this success head reads latents of tokenizer {self.config.tokenizer}, the world model has {found}; "
                "train one for it: worldgym train judge --kind latent --world-model DIR"
            )
        self._tokenizer = [tokenizer]
        return self

    # -- judging ----------------------------------------------------------------------------------
    def forward(self, latents: Tensor, text: Tensor, state: Tensor | None = None) -> Tensor:
        """Logit `(B,)` from `latents (B,C,h,w)`, `text (B,E)`, `state (B,S)`."""
        told = self.text(((text - self.text_mean) / self.text_std).clamp(-5, 5))
        x = torch.cat([latents, self.places.expand(len(latents), -1, -1, -1)], 1)
        scale, shift = self.film(told)[:, :, None, None].chunk(2, dim=1)
        x = nn.functional.gelu(self.norm(self.first(x)) * (1 + scale) + shift)
        x = x + nn.functional.gelu(self.second(x))
        flat = x.flatten(2)
        match = self.asked(told).unflatten(1, (self.config.asked, -1)) @ flat / self.config.width**0.5
        weight = match.softmax(-1)
        where, strength = (weight @ self.places.flatten(1).t()).flatten(1), (weight * match).sum(-1)
        parts = [flat.mean(2), flat.amax(2), where, strength, told]
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
        """Judge the last moment of B videos.

        Args:
            frames: `(B,T,H,W,3)` uint8; its last frame is encoded unless `latents` are given, and then not looked at.
            instructions: B strings.
            states: `(B,S)` proprioception at the last frame, data units; wanted where `reads.state`.
            latents: `(B,C,h,w)` of the world model, in place of the frames.

        Raises:
            ConfigError: frames but no tokenizer attached, or rows that do not match.
        """
        c = self.config
        if latents is None:
            if not self._tokenizer:
                raise ConfigError(
                    "this judge reads latents: attach(world_model.tokenizer) first, or pass "
                    "latents=imagined.latents[:, -1]"
                )
            latents = self._tokenizer[0].encode(torch.as_tensor(frames)[:, -1])
        wanted = (len(instructions), c.channels, *size_of(c.grid))
        if tuple(latents.shape) != wanted:
            raise ConfigError(
                f"latents are {tuple(latents.shape)}, expected {wanted}, one for each instruction"
            )
        told = None if states is None else torch.as_tensor(states)
        if self.reads.state and (told is None or tuple(told.shape) != (len(latents), c.state_dim)):
            raise ConfigError(
                f"this judge reads proprioception: expected states {(len(latents), c.state_dim)}, got "
                f"{None if told is None else tuple(told.shape)}"
            )
        training, device = self.training, self.cut.device
        self.eval()
        text = torch.from_numpy(embed(list(instructions)))
        logits = []
        for first in range(0, len(latents), c.max_batch):
            rows = slice(first, first + c.max_batch)
            state = None if told is None else told[rows].to(device)
            logits.append(self.forward(latents[rows].float().to(device), text[rows].to(device), state))
        self.train(training)
        logit = torch.cat(logits).cpu() if logits else torch.zeros(0, device="cpu")
        return Judgement(torch.sigmoid(logit), None, torch.isfinite(logit), logit.tolist())


def fingerprint(tokenizer: Any) -> str:
    """Twelve hex digits of a tokenizer's weights, at the precision in which world models are saved."""
    digest = hashlib.sha256()
    for name, value in sorted(tokenizer.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().to(torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:12]
