"""Joint prediction of value and future latents of a frame by one flow-matching network (RAMP).

In GigaBrain-0.5M*'s RAMP (arXiv 2602.12099, section 3; no public code) a video model predicts the joint state
`s = [z_future ; Psi(value) ; Psi(proprio)]` by flow matching: `|| W(s_t, t | o, l) - (eps - s) ||^2`,
`s_t = (1 - t) s + t eps`. `Psi` tiles a number over the latent grid as a separate channel. At inference one denoising
step suffices. Here W is a small transformer over 2 x 2 patches of the frame's latents, modulated by the noise level,
the instruction and proprioception. Four choices that the paper leaves open are made here. The *future* proprioception
is tiled. The value channel is weighted as much as all latents together. The network predicts the clean s, futures as
the frame's own latents plus a change (`W = (s_t - s) / t`). At t = 1, where the input is pure noise, it is replaced by
zeros in training and at inference, so that one step gives one deterministic prediction.

Example::

    model = Foresight(ForesightConfig(), tokenizer)
    predicted = model(latents, states, embed(texts))      # latents (B,C,h,w), states (B,S)
    predicted.value, predicted.tokens                     # (B,) in [-1, 0], (B, ForesightConfig.tokens)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from worldgym.errors import ConfigError
from worldgym.hub import HubModel
from worldgym.models.tokenizers import FrameTokenizer, TokenizerConfig
from worldgym.nn import FLOW, Modulation, TransformerBlock, from_tokens, to_tokens
from worldgym.utils.devices import rand, randn
from worldgym.utils.sizes import ImageSize, short, size_of
from worldgym.utils.typed import from_values


@dataclass(frozen=True)
class ForesightConfig:
    """Sizes of the predictor.

    Args:
        channels: channels of a latent.
        grid: height and width in cells; one number for a square.
        state_dim: dimension of proprioception.
        text_dim: dimension of an instruction's embedding.
        futures: number of predicted future frames; 0 predicts the value only, like RECAP's critic.
        patch: cells along one side of a patch.
        width: width of the transformer.
        depth: number of its layers.
        heads: number of attention heads.
        tokens: length of the vector that summarises the prediction for a policy.
        image_size: height and width of a frame in pixels; one number for a square.
        latent_widths: `widths` of the tokenizer.
        latent_blocks: `blocks` of the tokenizer.
        background: whether the tokenizer has a background image.
    """

    channels: int = 16
    grid: ImageSize = 8
    state_dim: int = 4
    text_dim: int = 384
    futures: int = 2
    patch: int = 2
    width: int = 128
    depth: int = 3
    heads: int = 4
    tokens: int = 16
    image_size: ImageSize = 64
    latent_widths: tuple[int, int, int] = (32, 64, 128)
    latent_blocks: tuple[int, int, int] = (1, 2, 2)
    background: bool = True

    def __post_init__(self) -> None:
        """Validate, and convert lists from JSON to tuples."""
        object.__setattr__(self, "latent_widths", tuple(self.latent_widths))
        object.__setattr__(self, "latent_blocks", tuple(self.latent_blocks))
        object.__setattr__(self, "grid", short(self.grid))
        object.__setattr__(self, "image_size", short(self.image_size))
        if self.futures < 0 or min(self.depth, self.heads, self.tokens, self.patch) < 1:
            raise ConfigError("futures must not be negative, depth, heads, tokens and patch at least 1")
        if self.width % self.heads or any(side % self.patch for side in self.cells):
            raise ConfigError(f"heads must divide width and patch the grid; got {self}")

    @property
    def cells(self) -> tuple[int, int]:
        """Height and width of the latent grid."""
        return size_of(self.grid)

    @property
    def joint(self) -> int:
        """Channels of the joint state: future latents, future proprioception, value."""
        return self.futures * (self.channels + self.state_dim) + 1


class Foreseen(NamedTuple):
    """Prediction for a frame.

    Args:
        value: `(B,)` expected return: minus the fraction of the horizon until success, -1 for no success.
        futures: `(B,N,C,h,w)` latents of the future frames; `(B,1,0,h,w)` if none are predicted.
        states: `(B,N,S)` standardised proprioception at these frames; `(B,1,0)` if none are predicted.
        tokens: `(B,tokens)` summary for a policy, of about unit size.
    """

    value: Tensor
    futures: Tensor
    states: Tensor
    tokens: Tensor


class Foresight(
    nn.Module,
    HubModel,
    library_name="worldgym",
    tags=["world-model", "value", "worldgym"],
    coders={ForesightConfig: (asdict, lambda values: from_values(ForesightConfig, values))},
):
    """The joint predictor.

    Args:
        config: sizes; also accepts a plain dict (the contents of `config.json`).
        tokenizer: tokenizer whose latents are the input; it is copied and frozen. None creates one with random weights,
            to be loaded.
    """

    def __init__(
        self,
        config: ForesightConfig | Mapping[str, Any] | None = None,
        tokenizer: FrameTokenizer | None = None,
    ) -> None:
        super().__init__()
        if config is None:
            config = ForesightConfig()
        c = self.config = (
            config if isinstance(config, ForesightConfig) else from_values(ForesightConfig, config)
        )
        settings = TokenizerConfig(
            image_size=c.image_size,
            latent_channels=c.channels,
            widths=c.latent_widths,
            blocks=c.latent_blocks,
            background=c.background,
        )
        self.tokenizer = FrameTokenizer(settings)
        if tokenizer is not None:
            self.tokenizer.load_state_dict(tokenizer.state_dict())
        self.tokenizer.requires_grad_(False).eval()
        cells = c.cells[0] * c.cells[1] // c.patch**2
        self.read = nn.Linear((c.channels + c.joint) * c.patch**2, c.width)
        self.place = nn.Parameter(0.02 * torch.randn(1, cells, c.width))
        self.given = nn.Sequential(
            nn.Linear(c.text_dim + c.state_dim + 32, c.width), nn.SiLU(), nn.Linear(c.width, c.width)
        )
        self.shift = nn.Linear(c.width, 6 * c.width)
        self.blocks = nn.ModuleList(TransformerBlock(c.width, c.heads) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.width)
        self.write = nn.Linear(c.width, c.joint * c.patch**2)
        self.summary = nn.Linear(cells * c.joint, c.tokens)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)
        for name, size in (("state", c.state_dim), ("text", c.text_dim)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))
        # A fixed random projection, so that a policy's input tokens do not change while this network trains.
        self.summary.requires_grad_(False)

    @classmethod
    def of(cls, tokenizer: FrameTokenizer, **sizes: Any) -> Foresight:
        """Create an untrained predictor for a tokenizer's latents."""
        t = tokenizer.config
        return cls(
            ForesightConfig(
                channels=t.latent_channels, grid=tokenizer.grid, image_size=t.image_size,
                latent_widths=tuple(t.widths), latent_blocks=tuple(t.blocks), background=t.background, **sizes,
            ),
            tokenizer,
        )  # fmt: skip

    def train(self, mode: bool = True) -> Foresight:
        """Set the mode; the tokenizer stays in evaluation mode."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    def set_stats(self, states: Tensor, texts: Tensor) -> None:
        """Set the standardisation from the training data: `states (N,S)`, `texts (M,E)`."""
        self.state_mean.copy_(states.mean(0))
        self.state_std.copy_(states.std(0).clamp_min(1e-3))
        self.text_mean.copy_(texts.mean(0))
        self.text_std.copy_(texts.std(0, correction=0).clamp_min(0.01))

    def joint(self, futures: Tensor, states: Tensor, value: Tensor) -> Tensor:
        """The joint state `(B,J,h,w)`: `futures (B,N,C,h,w)`, `states (B,N,S)` in data units, `value (B,)`."""
        c = self.config
        tiled = ((states - self.state_mean) / self.state_std).flatten(1)[:, : c.futures * c.state_dim]
        scalars = torch.cat([tiled, 2 * value[:, None] + 1], 1)  # maps a value in [-1, 0] to [-1, 1]
        return torch.cat([futures.flatten(1, 2), scalars[:, :, None, None].expand(-1, -1, *c.cells)], 1)

    def clean(self, noisy: Tensor, t: Tensor, latents: Tensor, states: Tensor, texts: Tensor) -> Tensor:
        """`E[s | s_t, o, l]`: `noisy (B,J,h,w)`, `t (B,)` in (0, 1], the frame's `latents`, `states`, `texts (B,E)`."""
        c = self.config
        wave = t[:, None] * (2.0 ** torch.arange(16, device=t.device) * math.pi / 2)
        words = ((texts - self.text_mean) / self.text_std).clamp(-5, 5)
        hand = (states - self.state_mean) / self.state_std
        given = self.given(torch.cat([words, hand, wave.sin(), wave.cos()], 1))
        scale, shift, gate, *mlp = (
            self.shift(nn.functional.silu(given)).unflatten(1, (6, -1))[:, :, None].unbind(1)
        )
        modulation = Modulation(shift, scale, gate, mlp_scale=mlp[0], mlp_shift=mlp[1], mlp_gate=mlp[2])
        x = self.read(to_tokens(torch.cat([latents, noisy], 1).contiguous(), c.patch)) + self.place
        for block in self.blocks:
            x = block(x, modulation=modulation)
        change = from_tokens(self.write(self.norm(x)), c.patch, c.cells)
        rest = latents.new_zeros(len(latents), c.joint - c.futures * c.channels, *c.cells)
        unchanged = torch.cat([latents] * c.futures + [rest], 1)
        return unchanged + change

    def loss(
        self, latents: Tensor, states: Tensor, texts: Tensor, joint: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Flow-matching loss on `joint (B,J,h,w)`; half of the batch is at t = 1, the level used at inference."""
        b = len(joint)
        t = rand((b,), generator, joint.device)
        t[: b // 2] = 1.0
        least = t.clamp_min(0.05)
        level = least[:, None, None, None]
        noise = randn(joint.shape, generator, joint.device) * (level < 1)
        predicted = self.clean(FLOW.add(joint, noise, least), t, latents, states, texts)
        error = ((predicted - joint) / level).square().mean((0, 2, 3))  # of velocities: (s_t - s) / t
        rest = error[:-1].mean() if len(error) > 1 else error.new_zeros(())
        return rest + error[-1]

    @torch.no_grad()
    def forward(self, latents: Tensor, states: Tensor, texts: Tensor) -> Foreseen:
        """One denoising step.

        Args:
            latents: `(B,C,h,w)` of the frame.
            states: `(B,S)` proprioception, data units.
            texts: `(B,E)` embeddings.
        """
        c = self.config
        t = torch.ones(len(latents), device=latents.device)
        start = torch.zeros(len(latents), c.joint, *c.cells, device=latents.device)
        joint = self.clean(start, t, latents, states, texts)
        split = c.futures * c.channels
        futures = joint[:, :split].unflatten(1, (max(1, c.futures), -1))
        scalars = joint[:, split:].mean((2, 3))
        hands = scalars[:, :-1].unflatten(1, (max(1, c.futures), -1))
        tokens = self.summary(nn.functional.avg_pool2d(joint, c.patch).flatten(1))
        return Foreseen(((scalars[:, -1] - 1) / 2).clamp(-1, 0), futures, hands, tokens)
