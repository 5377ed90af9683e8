"""A small vision-language-action policy with exact chunk probabilities.

Image, instruction (MiniLM vector) and proprioception become tokens; `chunk` learned queries read them through a
small transformer (64 image tokens are its memory) and each answers with one categorical distribution per action
dimension (*parallel bins*). The probability of a chunk is therefore a plain product, which is what policy-gradient
methods need.

It says where before it says how: `agents.pointer` chooses the place of the hand's next keyframe from words and
picture, and the chunk is conditioned on that place. Where things are matters at 64 px: both parts see pixel
coordinates, and keypoints (soft-argmax over 16x16 maps, half of them asked for by the instruction) localise a 7-px
object to well under a pixel.

Example::

    policy = VLAPolicy(VLAPolicyConfig.preset("small"))
    out = policy.act({"image": image, "state": state, "instruction": ["push the red cube"]}, temperature=0)
    out.actions.shape  # (1, 5, 4)
    policy.save_pretrained("runs/policy")
    VLAPolicy.from_pretrained("runs/policy")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from agents.layers import Block, FiLMBlock
from agents.lerobot import LeRobotPolicyMixin
from agents.pointer import NoPointer, Pointer, Pointing
from agents.vla_config import PRESETS, VLAPolicyConfig
from worldgym.errors import ConfigError
from worldgym.protocols import Observation, PolicyOutput
from worldgym.text import embed
from worldgym.utils.hub import HubModel

__all__ = ["PRESETS", "VLAPolicy", "VLAPolicyConfig"]
# A fifth of an embedding's usual entry: a few training sentences must not blow up what is new in others.
TEXT_STD_FLOOR = 0.01
_MASKED = -1e9  # finite: a masked bin has probability exactly 0 in float32 and 0 * log p stays 0, not nan


class PolicyForward(NamedTuple):
    """What one pass of the network says.

    Args:
        logits: `(B, chunk, A, n_bins)` float32.
        goal: `(B, goal_dims)` next keyframe, standardised; its first two are what is acted towards.
        pointing: where it could be, see `agents.pointer`.
    """

    logits: Tensor
    goal: Tensor
    pointing: Pointing


class VLAPolicy(
    LeRobotPolicyMixin,
    nn.Module,
    HubModel,
    library_name="worldgym",
    tags=["robotics", "vla", "worldgym"],
    coders={VLAPolicyConfig: (dataclasses.asdict, VLAPolicyConfig.from_dict)},
):
    """Image + instruction + proprioception -> categorical distributions over an action chunk.

    Args:
        config: sizes; also accepts a plain dict (what `config.json` holds).

    Example:
        >>> policy = VLAPolicy(VLAPolicyConfig.preset("tiny"))
        >>> policy.chunk
        5
    """

    def __init__(self, config: VLAPolicyConfig | Mapping[str, Any] | None = None) -> None:
        super().__init__()
        if config is None:
            config = VLAPolicyConfig()
        if not isinstance(config, VLAPolicyConfig):
            config = VLAPolicyConfig.from_dict(config)
        self.config = config
        c1, c2, c3 = config.stem
        width, text_width = config.width, config.width
        self.text = nn.Sequential(
            nn.Linear(config.text_dim, text_width), nn.GELU(), nn.Linear(text_width, text_width)
        )
        self.conv1 = nn.Conv2d(5, c1, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(c1, c2, 3, stride=2, padding=1)
        self.block2 = FiLMBlock(c2, text_width)
        self.maps = nn.Conv2d(c2, config.keypoints, 1)
        self.conv3 = nn.Conv2d(c2, c3, 3, stride=2, padding=1)
        self.block3 = FiLMBlock(c3, text_width)
        self.to_tokens = nn.Conv2d(c3, width, 1)
        self.keys = nn.Conv2d(c2, 32, 1)
        self.asked = nn.Linear(text_width, 32 * config.keypoints)
        self.where = nn.Sequential(
            nn.Linear(4 * config.keypoints + config.state_dim, width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
        )
        self.pointer: Pointer | NoPointer
        if not config.goal_dims:
            self.pointer = NoPointer()
        else:
            self.goal = nn.Linear(width, config.goal_dims)
            self.pointer = Pointer(config)
            self.goal_token = nn.Sequential(
                nn.Linear(2 * config.goal_dims + config.state_dim, width), nn.GELU(), nn.Linear(width, width)
            )
        if config.state_dim:
            self.state_token = nn.Sequential(
                nn.Linear(config.state_dim, width), nn.GELU(), nn.Linear(width, width)
            )
        grid = config.image_size // 8
        self.positions = nn.Parameter(0.02 * torch.randn(1, grid * grid, width))
        self.queries = nn.Parameter(0.02 * torch.randn(1, 3 + config.chunk, width))
        self.memory_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.action_dim * config.n_bins)
        nn.init.normal_(
            self.head.weight, std=0.02
        )  # near-uniform at birth: exploration is not lost before learning
        nn.init.zeros_(self.head.bias)

        self.register_buffer("state_mean", torch.zeros(config.state_dim))
        self.register_buffer("state_std", torch.ones(config.state_dim))
        # Sentences about one table are near each other; their differences, which decide what to do, are not lost
        # in what they share once each dimension is standardised.
        self.register_buffer("text_mean", torch.zeros(config.text_dim))
        self.register_buffer("text_std", torch.full((config.text_dim,), config.text_dim**-0.5))
        centres = torch.linspace(-1, 1, config.n_bins).repeat(config.action_dim, 1)
        mask = torch.zeros(config.action_dim, config.n_bins)
        for dim in config.binary_dims:
            centres[dim] = 1.0
            centres[dim, 0] = -1.0
            mask[dim, 2:] = _MASKED
        self.register_buffer("centres", centres, persistent=False)  # (A, n_bins)
        self.register_buffer("bin_mask", mask, persistent=False)
        self.register_buffer("pixels", _coordinates(config.image_size), persistent=False)
        self.register_buffer("grid16", _coordinates(config.image_size // 4).flatten(1), persistent=False)
        self.to(memory_format=torch.channels_last)
        self.reset()

    @property
    def chunk(self) -> int:
        """Actions per call."""
        return self.config.chunk

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.positions.device

    def set_state_stats(self, states: np.ndarray | Tensor) -> None:
        """Normalise proprioception by the mean and spread of `states (N,S)`; SFT calls this once."""
        if not self.config.state_dim:
            return
        states = torch.as_tensor(states, dtype=torch.float32, device=self.device)
        self.state_mean.copy_(states.mean(0))
        self.state_std.copy_(states.std(0, correction=1 if len(states) > 1 else 0).clamp_min(1e-3))

    def set_text_stats(self, instructions: Sequence[str]) -> None:
        """Standardise embeddings by those of the training sentences (each counted once); SFT calls this once."""
        vectors = self.embedding_of(sorted(set(instructions)))
        self.text_mean.copy_(vectors.mean(0))
        self.text_std.copy_(vectors.std(0, correction=0).clamp_min(TEXT_STD_FLOOR))

    # -- distributions ----------------------------------------------------------------------------------------

    def forward(self, observation: Observation) -> Tensor:
        """Logits `(B, chunk, A, n_bins)` float32; bins that a dimension lacks hold -1e9."""
        return self.run(observation).logits

    def run(self, observation: Observation, *, aim: Tensor | None = None) -> PolicyForward:
        """Everything the network says, for losses.

        Args:
            observation: as for `act`.
            aim: `(B,2)` standardised x, y to act towards; where the pointer points most when None.

        A clipped action only says *which way*, the next keyframe says *where*. So the network first points at a place
        (`agents.pointer`) and then acts towards it. SFT trains the acting with the true place: it learns how to go
        where it is told from few demonstrations, and mistakes of the pointer are not its business.
        """
        image, state, text = self._inputs(observation)
        picture, words, state = self._seen(image, state, text)
        pointing = self.pointer(picture, words, state)
        if aim is None:
            aim = self.pointer.likeliest(pointing)
        return PolicyForward(*self._act_towards(aim, picture, words, state), pointing)

    def point(self, observation: Observation) -> Pointing:
        """What the pointer says, without acting."""
        return self.pointer(*self._seen(*self._inputs(observation)))

    def _seen(self, image: Tensor, state: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Picture with coordinates `(B,5,H,W)`, standardised words and proprioception."""
        picture = torch.cat([image * 2 - 1, self.pixels.expand(len(image), -1, -1, -1)], dim=1)
        return picture, ((text - self.text_mean) / self.text_std).clamp(-5, 5), self.normalise_state(state)

    def _act_towards(
        self, aim: Tensor, picture: Tensor, words: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        config, batch = self.config, len(aim)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.bf16):
            text = self.text(words)
            x = nn.functional.gelu(self.conv1(picture.contiguous(memory_format=torch.channels_last)))
            x = self.block2(nn.functional.gelu(self.conv2(x)), text)
            maps, keys, asked = self.maps(x), self.keys(x), self.asked(text)
        with torch.autocast(self.device.type, enabled=False):  # bf16 has 3 digits, and a pixel is 1/32
            named = asked.float().view(batch, -1, 32) @ keys.float().flatten(2)  # (B, M, h*w)
            points = [self._keypoints(maps.float().flatten(2)), self._keypoints(named)]
            where = self.where(torch.cat([*points, state], dim=-1))
            if config.goal_dims:
                goal = torch.cat([aim, self.goal(where)[:, 2:]], dim=-1)
                place = self.goal_token(torch.cat([goal, goal - state[:, : config.goal_dims], state], -1))
            else:
                goal, place = aim[:, :0], torch.zeros_like(where)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.bf16):
            x = self.block3(nn.functional.gelu(self.conv3(x)), text)
            tokens = self.to_tokens(x).flatten(2).transpose(1, 2)  # (B, 64, D)
            memory = self.memory_norm(tokens + self.positions)
            hand = self.state_token(state) if config.state_dim else torch.zeros_like(text)
            extra = torch.stack([where + place, hand, text], dim=1).float()
            queries = self.queries.expand(batch, -1, -1)
            x = torch.cat([extra + queries[:, :3], queries[:, 3:] + place[:, None]], dim=1)  # (B, 3 + K, D)
            for block in self.blocks:
                x = block(x, memory)
            out = self.head(self.norm(x[:, 3:]))
        out = out.float().view(batch, config.chunk, config.action_dim, config.n_bins)
        return out + self.bin_mask, goal

    def goal_loss(self, out: PolicyForward, wanted: Tensor) -> Tensor:
        """Negative log-likelihood of the next keyframe's x, y under the pointer, plus smooth L1 on the rest.

        Only for policies with goals.

        Args:
            out: of `run`.
            wanted: `(B,goal_dims)` standardised keyframe.
        """
        rest = nn.functional.smooth_l1_loss(out.goal[:, 2:], wanted[:, 2:], beta=0.3)
        return -0.3 * self.pointer.log_density(out.pointing, wanted[:, :2]).mean() + rest

    def normalise_state(self, state: Tensor) -> Tensor:
        """Proprioception `(B,S)` in units of its spread over the demonstrations, bounded."""
        return ((state - self.state_mean) / self.state_std).clamp(-5, 5)

    def _keypoints(self, maps: Tensor) -> Tensor:
        """Soft-argmax of float32 scores `(B,M,h*w)` -> `(B,2M)` in [-1,1]."""
        return (torch.softmax(maps, dim=-1) @ self.grid16.t()).flatten(1)

    def act(
        self,
        observation: Observation,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        token_temperature: float | None = None,
    ) -> PolicyOutput:
        """Sample a chunk for each row.

        Args:
            observation: `image (B,H,W,3)` uint8, `state (B,S)` float (may be missing where S is 0), `instruction` B
                strings (or `(B,E)` embeddings).
            temperature: of the place pointed at and of every bin; 0 takes the likeliest, and then `log_prob` is
                reported at temperature 1.
            generator: source of randomness; the global one when None.
            token_temperature: of the bins alone; `temperature` when None. 0 explores places with a steady hand.

        Returns:
            actions `(B,K,A)` in [-1,1], log_prob `(B,)` of place and tokens, trace `tokens (B,K,A)` int64,
            `aim (B,2)` standardised, `token_log_probs (B,K,A)` and `place_log_prob (B,)`.
        """
        hot = temperature if token_temperature is None else token_temperature
        if temperature < 0 or hot < 0:
            raise ConfigError(
                f"temperature must be >= 0; got {min(temperature, hot)}. 0 is greedy, 1 samples the policy itself"
            )
        with torch.no_grad():
            picture, words, state = self._seen(*self._inputs(observation))
            pointing = self.pointer(picture, words, state)
            if temperature == 0:
                aim = self.pointer.likeliest(pointing)
            else:
                aim = self.pointer.sample(pointing, temperature, generator)
            place = self.pointer.log_prob(pointing, aim, temperature or 1.0)
            logits, _ = self._act_towards(aim, picture, words, state)
            log_probs = torch.log_softmax(logits / (hot or 1.0), dim=-1)
            if hot == 0:
                tokens = logits.argmax(-1)
            else:
                flat = log_probs.exp().flatten(0, -2)
                tokens = torch.multinomial(flat, 1, generator=generator).view(logits.shape[:-1])
            chosen = log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        return PolicyOutput(
            actions=self.actions_of(tokens),
            log_prob=chosen.sum((1, 2)) + place,
            trace={
                "tokens": tokens,
                "token_log_probs": chosen,
                "aim": aim,
                "place_log_prob": place,
                "token_temperature": torch.full((len(aim),), hot),
            },
            temperature=temperature,
        )

    def log_prob_of(self, observation: Observation, output: PolicyOutput) -> Tensor:
        """Differentiable `(B,)` log-probability of `output` under the current weights, at its temperature.

        The place acted towards counts with `Pointer.log_prob`.
        """
        trace = output.trace
        hot = trace["token_temperature"].to(self.device).view(-1, 1, 1, 1)
        out = self.run(observation, aim=trace["aim"])
        log_probs = torch.log_softmax(out.logits / torch.where(hot == 0, 1.0, hot), -1)
        chosen = log_probs.gather(-1, trace["tokens"][..., None])
        place = self.pointer.log_prob(out.pointing, trace["aim"], output.temperature or 1.0)
        return chosen.sum((1, 2, 3)) + place

    def token_log_probs(
        self, observation: Observation, tokens: Tensor, temperature: float = 1.0, aim: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Pointing]:
        """Log-probability and entropy of every token, each `(B,K,A)`, differentiable (nats), and the pointing.

        Args:
            observation: as for `act`.
            tokens: `(B,K,A)` int64.
            temperature: at which they were sampled.
            aim: `(B,2)` what was acted towards; where the pointer points most when None.
        """
        out = self.run(observation, aim=aim)
        log_probs = torch.log_softmax(out.logits / (temperature or 1.0), dim=-1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        return log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), entropy, out.pointing

    def entropy(self, observation: Observation, temperature: float = 1.0) -> Tensor:
        """`(B,)` mean entropy of one action dimension, nats."""
        log_probs = torch.log_softmax(self.forward(observation) / (temperature or 1.0), dim=-1)
        return -(log_probs.exp() * log_probs).sum(-1).mean((1, 2))

    def actions_of(self, tokens: Tensor) -> Tensor:
        """Bin centres of `tokens (...,A)` -> actions in [-1,1]."""
        dims = torch.arange(self.config.action_dim, device=tokens.device)
        return self.centres[dims, tokens]

    def tokens_of(self, actions: np.ndarray | Tensor) -> Tensor:
        """Nearest bins of `actions (...,A)`; a binary dimension goes by its sign (0 counts as open)."""
        actions = torch.as_tensor(actions, dtype=torch.float32, device=self.device)
        half = (self.config.n_bins - 1) / 2
        tokens = ((actions.clamp(-1, 1) + 1) * half).round().long()
        for dim in self.config.binary_dims:
            tokens[..., dim] = (actions[..., dim] >= 0).long()
        return tokens

    # -- inputs -----------------------------------------------------------------------------------------------

    def _inputs(self, observation: Observation) -> tuple[Tensor, Tensor, Tensor]:
        size = self.config.image_size
        image = torch.as_tensor(observation["image"], device=self.device)
        if image.dtype != torch.uint8:
            raise TypeError(f"image must be uint8 in [0, 255], channels last; got {image.dtype}")
        if image.ndim != 4 or tuple(image.shape[1:]) != (size, size, 3):
            raise ConfigError(f"image must be (B, {size}, {size}, 3); got {tuple(image.shape)}")
        given = observation["state"] if self.config.state_dim else torch.zeros(len(image), 0)
        state = torch.as_tensor(given, dtype=torch.float32, device=self.device)
        if state.shape != (image.shape[0], self.config.state_dim):
            raise ConfigError(
                f"state must be ({image.shape[0]}, {self.config.state_dim}); got {tuple(state.shape)}"
            )
        text = self.embedding_of(observation["instruction"])
        if text.shape[0] != image.shape[0]:
            raise ConfigError(
                f"{image.shape[0]} images but {text.shape[0]} instructions; give one for each row"
            )
        return image.permute(0, 3, 1, 2).float() / 255, state, text

    def embedding_of(self, instruction: Sequence[str] | np.ndarray | Tensor) -> Tensor:
        """`(B,E)` embeddings of B strings; arrays of embeddings pass through."""
        if isinstance(instruction, np.ndarray) and instruction.dtype.kind not in "fiu":
            instruction = [str(text) for text in instruction.reshape(-1)]
        if not isinstance(instruction, (np.ndarray, Tensor)):
            instruction = embed(instruction)
        return torch.as_tensor(instruction, dtype=torch.float32, device=self.device)


def _coordinates(size: int) -> Tensor:
    """`(2,size,size)` pixel centres in [-1,1], x then y."""
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y])
