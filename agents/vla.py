"""A small vision-language-action policy with exact chunk probabilities.

Image, instruction (MiniLM vector) and proprioception become tokens; `chunk` learned queries read them through a
small transformer (64 image tokens are its memory) and each answers with one categorical distribution per action
dimension (*parallel bins*). The probability of a chunk is therefore a plain product, which is what policy-gradient
methods need.

Where things are matters at 64 px: the stem sees pixel coordinates, and keypoints (soft-argmax over 16x16 maps, half
of them asked for by the instruction) localise a 7-px object to well under a pixel; from them the policy first says
where the hand will be at its next keyframe, which supervised training checks beside the actions.

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
from agents.vla_config import PRESETS, VLAPolicyConfig
from worldgym.errors import ConfigError
from worldgym.protocols import Observation, PolicyOutput
from worldgym.text import embed
from worldgym.utils.hub import HubModel

__all__ = ["PRESETS", "VLAPolicy", "VLAPolicyConfig"]
# A fifth of an embedding's usual entry: a few training sentences must not blow up what is new in others.
TEXT_STD_FLOOR = 0.01
_MASKED = -1e9  # finite: a masked bin has probability exactly 0 in float32 and 0 * log p stays 0, not nan


POINTER = 64  # width of the dot product between words and picture


class PolicyForward(NamedTuple):
    """What one pass of the network says.

    Args:
        logits: `(B, chunk, A, n_bins)` float32.
        goal: `(B, goal_dims)` next keyframe, standardised.
        choice: `(B, h*w)` log-probability of each cell's proposal.
        places: `(B, h*w, 2)` proposed x, y, standardised.
    """

    logits: Tensor
    goal: Tensor
    choice: Tensor
    places: Tensor


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
        self.goal = nn.Linear(width, config.goal_dims)
        self.pointer = nn.Sequential(
            nn.Linear(width + config.state_dim, width), nn.GELU(), nn.Linear(width, POINTER)
        )
        self.pointer_keys = nn.Conv2d(c2, POINTER, 1)
        self.pointer_offset = nn.Conv2d(c2, 2, 1)
        for parameter in self.pointer_offset.parameters():
            nn.init.zeros_(parameter)
        # Standardised workspace x, y of a pixel: right is +x and up is +y for a camera in front; SFT corrects it.
        self.pointer_warp = nn.Linear(2, 2)
        with torch.no_grad():
            self.pointer_warp.weight.copy_(torch.tensor([[2.5, 0.0], [0.0, -2.5]]))
            self.pointer_warp.bias.zero_()
        self.pointer_log_sigma = nn.Parameter(torch.tensor(-0.7))
        self.goal_token = nn.Sequential(
            nn.Linear(2 * config.goal_dims + config.state_dim, width), nn.GELU(), nn.Linear(width, width)
        )
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
        states = torch.as_tensor(states, dtype=torch.float32, device=self.device)
        self.state_mean.copy_(states.mean(0))
        self.state_std.copy_(states.std(0).clamp_min(1e-3))

    def set_text_stats(self, instructions: Sequence[str]) -> None:
        """Standardise embeddings by those of the training sentences (each counted once); SFT calls this once."""
        vectors = self.embedding_of(sorted(set(instructions)))
        self.text_mean.copy_(vectors.mean(0))
        self.text_std.copy_(vectors.std(0, correction=0).clamp_min(TEXT_STD_FLOOR))

    # -- distributions ----------------------------------------------------------------------------------------

    def forward(self, observation: Observation) -> Tensor:
        """Logits `(B, chunk, A, n_bins)` float32; bins that a dimension lacks hold -1e9."""
        return self.logits_and_goal(observation)[0]

    def logits_and_goal(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """Logits as `forward`, and where the hand will be at its next keyframe `(B,goal_dims)`, in normalised state."""
        out = self.run(observation)
        return out.logits, out.goal

    def run(
        self, observation: Observation, *, aim: Tensor | None = None, offset: Tensor | None = None
    ) -> PolicyForward:
        """Everything the network says, for losses.

        Args:
            observation: as for `act`.
            aim: `(B,2)` standardised x, y to act towards instead of the place that the network points at.
            offset: `(B,2)` added to the place that it points at before it acts; `goal` stays what it points at.

        The goal is what SFT trains beside the actions: a clipped action only says *which way*, the next keyframe
        says *where*, and with a few hundred demonstrations this decides whether the named object is found. Each cell
        of the 16x16 feature map proposes one place, and words and proprioception choose among the cells. Trained as a
        mixture, the choice commits to one object; regression would settle between them.
        """
        config = self.config
        image, state, text = self._inputs(observation)
        batch = image.shape[0]
        state = self.normalise_state(state)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.bf16):
            text = self.text(((text - self.text_mean) / self.text_std).clamp(-5, 5))
            x = torch.cat([image * 2 - 1, self.pixels.expand(batch, -1, -1, -1)], dim=1)
            x = nn.functional.gelu(self.conv1(x.contiguous(memory_format=torch.channels_last)))
            x = self.block2(nn.functional.gelu(self.conv2(x)), text)
            maps, keys, asked = self.maps(x), self.keys(x), self.asked(text)
            query = self.pointer(torch.cat([text, state.to(text.dtype)], dim=-1))
            pointer_keys, nudge = self.pointer_keys(x), self.pointer_offset(x)
        with torch.autocast(self.device.type, enabled=False):  # bf16 has 3 digits, and a pixel is 1/32
            named = asked.float().view(batch, -1, 32) @ keys.float().flatten(
                2
            )  # (B, M, h*w): what the words ask for
            points = [self._keypoints(maps.float().flatten(2)), self._keypoints(named)]
            where = self.where(torch.cat([*points, state], dim=-1))
            scores = (query.float()[:, None] @ pointer_keys.float().flatten(2)).squeeze(1) * POINTER**-0.5
            choice = torch.log_softmax(scores, dim=-1)  # (B, h*w)
            places = self.pointer_warp(self.grid16.t()) + 0.5 * torch.tanh(
                nudge.float().flatten(2).transpose(1, 2)
            )
            pointed = (choice.exp()[:, None] @ places).squeeze(1)  # (B, 2)
            goal = torch.cat([pointed, self.goal(where)[:, 2:]], dim=-1)
            aim = pointed if aim is None else aim
            towards = torch.cat([aim if offset is None else aim + offset, goal[:, 2:]], dim=-1)
            place = self.goal_token(torch.cat([towards, towards - state[:, : config.goal_dims], state], -1))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.bf16):
            x = self.block3(nn.functional.gelu(self.conv3(x)), text)
            tokens = self.to_tokens(x).flatten(2).transpose(1, 2)  # (B, 64, D)
            memory = self.memory_norm(tokens + self.positions)
            extra = torch.stack([where + place, self.state_token(state), text], dim=1).float()
            queries = self.queries.expand(batch, -1, -1)
            x = torch.cat([extra + queries[:, :3], queries[:, 3:] + place[:, None]], dim=1)  # (B, 3 + K, D)
            for block in self.blocks:
                x = block(x, memory)
            out = self.head(self.norm(x[:, 3:]))
        out = out.float().view(batch, config.chunk, config.action_dim, config.n_bins)
        return PolicyForward(out + self.bin_mask, goal, choice, places)

    def goal_loss(self, out: PolicyForward, wanted: Tensor) -> Tensor:
        """Negative log-likelihood of the next keyframe's x, y under the mixture of places, plus smooth L1 on the rest.

        Args:
            out: of `run`.
            wanted: `(B,goal_dims)` standardised keyframe.
        """
        log_sigma = self.pointer_log_sigma.clamp(min=-2.0)
        squared = (out.places - wanted[:, None, :2]).square().sum(-1)  # (B, h*w)
        likelihood = torch.logsumexp(
            out.choice - squared / (2 * (2 * log_sigma).exp()) - 2 * log_sigma, dim=-1
        )
        rest = torch.nn.functional.smooth_l1_loss(out.goal[:, 2:], wanted[:, 2:], beta=0.3)
        return -0.3 * likelihood.mean() + rest

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
        goal_noise: float = 0.0,
    ) -> PolicyOutput:
        """Sample a chunk for each row.

        Args:
            observation: `image (B,H,W,3)` uint8, `state (B,S)` float, `instruction` B strings (or `(B,E)` embeddings).
            temperature: 0 takes the most likely bin, and then `log_prob` is reported at temperature 1.
            generator: source of randomness; the global one when None.
            goal_noise: metres; standard deviation of a shift of the place that the policy acts towards, drawn once a
                chunk. Exploring *where* to go moves the hand as a whole; noise on single actions averages out.

        Returns:
            actions `(B,K,A)` in [-1,1], log_prob `(B,)` of the tokens, trace `tokens (B,K,A)` int64 and
            `token_log_probs (B,K,A)`; with goal noise also `aim (B,2)` and `aim_offset (B,2)`, standardised.
        """
        if temperature < 0:
            raise ConfigError(
                f"temperature must be >= 0; got {temperature}. 0 is greedy, 1 samples the policy itself"
            )
        trace: dict[str, Tensor] = {}
        with torch.no_grad():
            offset = None
            if goal_noise:
                drawn = torch.randn(len(observation["state"]), 2, generator=generator).to(self.device)
                offset = drawn * goal_noise / self.state_std[:2]
            out = self.run(observation, offset=offset)
            if offset is not None:
                trace = {"aim": out.goal[:, :2] + offset, "aim_offset": offset}
            logits = out.logits
            log_probs = torch.log_softmax(logits / (temperature or 1.0), dim=-1)
            if temperature == 0:
                tokens = logits.argmax(-1)
            else:
                flat = log_probs.exp().flatten(0, -2)
                tokens = torch.multinomial(flat, 1, generator=generator).view(logits.shape[:-1])
            chosen = log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        return PolicyOutput(
            actions=self.actions_of(tokens),
            log_prob=chosen.sum((1, 2)),
            trace={"tokens": tokens, "token_log_probs": chosen, **trace},
            temperature=temperature,
        )

    def log_prob_of(self, observation: Observation, output: PolicyOutput) -> Tensor:
        """Differentiable `(B,)` log-probability of `output` under the current weights, at its temperature."""
        chosen, _ = self.token_log_probs(observation, output.trace["tokens"], output.temperature)
        return chosen.sum((1, 2))

    def token_log_probs(
        self, observation: Observation, tokens: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of every token, each `(B,K,A)`, differentiable (nats)."""
        return self.token_log_probs_and_goal(observation, tokens, temperature)[:2]

    def token_log_probs_and_goal(
        self, observation: Observation, tokens: Tensor, temperature: float = 1.0, aim: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `token_log_probs`, given the `aim (B,2)` acted towards, and the goal `(B,goal_dims)` pointed at now."""
        out = self.run(observation, aim=aim)
        log_probs = torch.log_softmax(out.logits / (temperature or 1.0), dim=-1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        return log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), entropy, out.goal

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
        state = torch.as_tensor(observation["state"], dtype=torch.float32, device=self.device)
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
