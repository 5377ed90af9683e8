"""A small vision-language-action policy with exact chunk probabilities.

Image, instruction (MiniLM vector) and proprioception become tokens. `chunk` learned queries read them through a small
transformer (64 image tokens are its memory), and each outputs one categorical distribution per action dimension
(*parallel bins*). The probability of a chunk is therefore a simple product, as policy-gradient methods need.

The policy first chooses where to move, then how: `agents.policies.goal_head` chooses the position of the hand's next
keyframe from image and instruction, and the chunk is conditioned on that position. Localisation matters at 64 px. Both
parts therefore receive pixel coordinates, and keypoints (soft-argmax over 16x16 maps, half of them queried by the
instruction) localise a 7-px object to well under a pixel.

Example::

    policy = VLAPolicy(VLAPolicyConfig.preset("small"))
    out = policy.act({"image": image, "state": state, "instruction": ["push the red cube"]}, temperature=0)
    out.actions.shape  # (1, 5, 4)
    policy.save_pretrained("runs/policy")
    VLAPolicy.from_pretrained("runs/policy")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agents.policies.goal_head import GoalHead, GoalProposals, NoGoalHead
from agents.policies.heads import make_head
from agents.policies.layers import Block, FiLMBlock
from agents.policies.lerobot import LeRobotPolicyMixin
from agents.policies.vla_config import PRESETS, VLAPolicyConfig
from agents.policies.vla_inputs import Inputs, PolicyForward, cells, coordinates, shrunk
from agents.policies.vla_learning import LearningMixin
from worldgym.errors import ConfigError
from worldgym.hub import HubModel
from worldgym.nn import with_coordinates
from worldgym.protocols import Observation, PolicyOutput, Temperature
from worldgym.specs import Specs
from worldgym.text import embed
from worldgym.utils.devices import autocast
from worldgym.utils.row_threads import by_rows

__all__ = ["PRESETS", "VLAPolicy", "VLAPolicyConfig"]
# A fifth of the usual entry of an embedding: a few training sentences must not amplify unseen dimensions of others.
TEXT_STD_FLOOR = 0.01
FUTURE_IMAGE = "image_future"
"""Key of the later frame that a policy with `future_view` reads in training; the current frame takes its place."""


class VLAPolicy(
    LearningMixin,
    LeRobotPolicyMixin,
    nn.Module,
    HubModel,
    library_name="worldgym",
    tags=["robotics", "vla", "worldgym"],
    coders={VLAPolicyConfig: (dataclasses.asdict, VLAPolicyConfig.from_dict)},
):
    """Image + instruction + proprioception -> categorical distributions over an action chunk.

    Args:
        config: sizes; also accepts a plain dict (as in `config.json`).

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
        self.pointer: GoalHead | NoGoalHead
        if not config.goal_dims:
            self.pointer = NoGoalHead()
        else:
            self.goal = nn.Linear(width, config.goal_dims)
            self.pointer = GoalHead(config)
            self.goal_token = nn.Sequential(
                nn.Linear(2 * config.goal_dims + config.state_dim, width), nn.GELU(), nn.Linear(width, width)
            )
        if config.state_dim:
            self.state_token = nn.Sequential(
                nn.Linear(config.state_dim, width), nn.GELU(), nn.Linear(width, width)
            )
        self.positions = nn.Parameter(0.02 * torch.randn(1, cells(config.size, 8), width))
        self.queries = nn.Parameter(0.02 * torch.randn(1, 3 + config.chunk, width))
        self.memory_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.head = make_head(
            config.head, width=width, chunk=config.chunk, action_dim=config.action_dim, n_bins=config.n_bins,
            binary_dims=config.binary_dims, bf16=config.bf16, settings=config.head_settings,
        )  # fmt: skip

        self.register_buffer("state_mean", torch.zeros(config.state_dim))
        self.register_buffer("state_std", torch.ones(config.state_dim))
        # Embeddings of sentences about one table are close to each other. Standardising each dimension makes the
        # differences that identify the task visible.
        self.register_buffer("text_mean", torch.zeros(config.text_dim))
        self.register_buffer("text_std", torch.full((config.text_dim,), config.text_dim**-0.5))
        self.register_buffer("pixels", coordinates(config.size), persistent=False)
        self.register_buffer("grid16", coordinates(shrunk(config.size, 4)).flatten(1), persistent=False)
        self.view_positions = nn.ParameterDict(
            {camera.name: 0.02 * torch.randn(1, cells(camera.size, 8), width) for camera in config.views}
        )
        for camera in config.views:
            self.register_buffer(f"pixels_{camera.name}", coordinates(camera.size), persistent=False)
        # Last, so that the random initial values of all other weights do not depend on them.
        if config.future_tokens:
            self.future_queries = nn.Parameter(0.02 * torch.randn(1, config.future_tokens, width))
        if config.future_view:
            self.future_positions = nn.Parameter(0.02 * torch.randn(1, cells(config.size, 8), width))
        self.to(memory_format=torch.channels_last)
        self.reset()

    def encoder_state(self) -> dict[str, Tensor]:
        """Text statistics and the weights that localise named objects; a judge can be initialised from them."""
        parts = ("pointer.text.", "pointer.conv1.", "pointer.conv2.", "pointer.block2.", "text_")
        found = {name: value for name, value in self.state_dict().items() if name.startswith(parts)}
        return {name.removeprefix("pointer."): value for name, value in found.items()}

    @property
    def chunk(self) -> int:
        """Actions per call."""
        return self.config.chunk

    @property
    def specs(self) -> Specs | None:
        """Cameras, state fields and actions of the training data; None for policies of earlier versions."""
        return self.config.specs

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.positions.device

    def set_state_stats(self, states: np.ndarray | Tensor) -> None:
        """Set the normalisation of proprioception to mean and std of `states (N,S)`; SFT calls this once."""
        if not self.config.state_dim:
            return
        states = torch.as_tensor(states, dtype=torch.float32, device=self.device)
        self.state_mean.copy_(states.mean(0))
        self.state_std.copy_(states.std(0, correction=1 if len(states) > 1 else 0).clamp_min(1e-3))

    def set_text_stats(self, instructions: Sequence[str]) -> None:
        """Set the normalisation of embeddings from the training sentences (each counted once); SFT calls this once."""
        vectors = self.embedding_of(sorted(set(instructions)))
        self.text_mean.copy_(vectors.mean(0))
        self.text_std.copy_(vectors.std(0, correction=0).clamp_min(TEXT_STD_FLOOR))

    # -- distributions ----------------------------------------------------------------------------------------

    def forward(self, observation: Observation) -> PolicyForward:
        """Forward pass conditioned on the most likely goal position."""
        return self.run(observation)

    def run(self, observation: Observation, *, aim: Tensor | None = None) -> PolicyForward:
        """Forward pass with all outputs, for losses.

        Args:
            observation: as for `act`.
            aim: `(B,2)` standardised x, y to move to; None uses the most likely goal position.

        A clipped action only gives a direction; the next keyframe gives a position. The network therefore predicts a
        position first (`agents.policies.goal_head`), then actions towards it. SFT conditions the actions on the true
        position. The network thus learns from few demonstrations how to move to a given position, independent of errors
        of the goal head.
        """
        inputs = self._inputs(observation)
        pointing = self._pointing(inputs)
        if aim is None:
            aim = self.pointer.likeliest(pointing)
        features, goal, hidden = self._act_towards(aim, inputs)
        return PolicyForward(features, goal, pointing, hidden)

    def point(self, observation: Observation) -> GoalProposals:
        """Output of the goal head only, without actions."""
        return self._pointing(self._inputs(observation))

    def _pointing(self, inputs: Inputs) -> GoalProposals:
        pointing: GoalProposals = self.pointer(inputs.picture, inputs.words, inputs.state)
        return pointing

    def _act_towards(self, aim: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Action features `(B,K,D)`, goal `(B,goal_dims)`, and the tokens after each layer."""
        picture, words, state = inputs.picture, inputs.words, inputs.state
        config, batch = self.config, len(aim)
        with autocast(self.device, config.bf16):
            text = self.text(words)
            x = self._stem(picture, text)
            maps, keys, text_queries = self.maps(x), self.keys(x), self.asked(text)
        with torch.autocast(self.device.type, enabled=False):  # bf16 has 3 digits, too few: one pixel is 1/32
            scores = text_queries.float().view(batch, -1, 32) @ keys.float().flatten(2)  # (B, M, h*w)
            points = [self._keypoints(maps.float().flatten(2)), self._keypoints(scores)]
            where = self.where(torch.cat([*points, state], dim=-1))
            if config.goal_dims:
                goal = torch.cat([aim, self.goal(where)[:, 2:]], dim=-1)
                place = self.goal_token(torch.cat([goal, goal - self.position_of(state), state], -1))
            else:
                goal, place = aim[:, :0], torch.zeros_like(where)
        with autocast(self.device, config.bf16):
            memory = self._memory(x, text, inputs)
            hand = self.state_token(state) if config.state_dim else torch.zeros_like(text)
            extra = torch.stack([where + place, hand, text], dim=1).float()
            queries = self.queries.expand(batch, -1, -1)
            parts = [extra + queries[:, :3], queries[:, 3:] + place[:, None]]
            if config.future_tokens:
                parts.append(self.future_queries.expand(batch, -1, -1))
            x = torch.cat(parts, dim=1)  # (B, 3 + K + M, D)
            hidden = []
            for block in self.blocks:
                x = block(x, memory)
                hidden.append(x)
            features = self.norm(x[:, 3 : 3 + config.chunk])
        return features, goal, tuple(hidden)

    def _memory(self, x: Tensor, text: Tensor, inputs: Inputs) -> Tensor:
        """`(B,N,D)` normalised image tokens of all cameras; `x` is the stem's output for the main one."""
        tokens = self._tokens(x, text) + self.positions
        if inputs.views or inputs.future is not None:
            seen = [tokens]
            for name, view in inputs.views.items():
                seen.append(self._tokens(self._stem(view, text), text) + self.view_positions[name])
            if inputs.future is not None:
                later = self._tokens(self._stem(inputs.future, text), text)
                seen.append(later + self.future_positions)
            tokens = torch.cat(seen, 1)
        memory: Tensor = self.memory_norm(tokens)
        return memory

    def image_tokens(self, observation: Observation) -> Tensor:
        """`(B,N,D)` float32 image tokens of all cameras, which the queries read; proprioception has no part in them."""
        inputs = self._inputs(observation)
        with autocast(self.device, self.config.bf16):
            text = self.text(inputs.words)
            return self._memory(self._stem(inputs.picture, text), text, inputs).float()

    def _stem(self, picture: Tensor, text: Tensor) -> Tensor:
        x = nn.functional.gelu(self.conv1(picture.contiguous(memory_format=torch.channels_last)))
        stem: Tensor = self.block2(nn.functional.gelu(self.conv2(x)), text)
        return stem

    def _tokens(self, x: Tensor, text: Tensor) -> Tensor:
        x = self.block3(nn.functional.gelu(self.conv3(x)), text)
        tokens: Tensor = self.to_tokens(x).flatten(2).transpose(1, 2)  # (B, h * w / 64, D)
        return tokens

    def position_of(self, state: Tensor) -> Tensor:
        """`(B,goal_dims)` columns of `state (B,S)` for which the next keyframe is predicted."""
        columns = self.config.position
        if columns == tuple(range(len(columns))):
            return state[:, : len(columns)]
        return state[:, list(columns)]

    def normalise_state(self, state: Tensor) -> Tensor:
        """Standardise proprioception `(B,S)` by its statistics over the demonstrations, and clip it."""
        return ((state - self.state_mean) / self.state_std).clamp(-5, 5)

    def _keypoints(self, maps: Tensor) -> Tensor:
        """Soft-argmax of float32 scores `(B,M,h*w)` -> `(B,2M)` in [-1,1]."""
        return (torch.softmax(maps, dim=-1) @ self.grid16.t()).flatten(1)

    def act(
        self,
        observation: Observation,
        *,
        temperature: Temperature = 1.0,
        generator: torch.Generator | None = None,
    ) -> PolicyOutput:
        """Sample a chunk for each row.

        Args:
            observation: `image (B,H,W,3)` uint8, `state (B,S)` float (may be missing if S is 0), `instruction` B
                strings (or `(B,E)` embeddings); optionally `goal (B,2)`, standardised positions to move to, NaN where
                the policy chooses.
            temperature: sampling temperature of the `goal` and of the `action`, as one number or a mapping; 0 takes the
                most likely choice and reports its log-probability at temperature 1. `{"goal": 1.0, "action": 0.0}`
                samples positions and moves there greedily.
            generator: source of randomness; the global one when None.

        Returns:
            actions `(B,K,A)` in [-1,1]; log-probabilities of the `action`, in the shape that its head gives
            (`agents.policies.heads`), and of the `goal`, `(B,)`, if the policy has one.
        """
        goal_temp, action_temp = self.temperatures(temperature)
        with torch.no_grad():
            inputs = self._inputs(observation)
            pointing = GoalProposals(*self._by_rows(lambda part: self._pointing(inputs.rows(part)), inputs))
            if goal_temp == 0:
                aim = self.pointer.likeliest(pointing)
            else:
                aim = self.pointer.sample(pointing, goal_temp, generator)
            if (chosen_goal := observation.get("goal")) is not None:
                given = torch.as_tensor(chosen_goal, dtype=aim.dtype, device=aim.device)
                aim = torch.where(given.isnan(), aim, given)
            place = self.pointer.log_prob(pointing, aim, goal_temp or 1.0)
            (features,) = self._by_rows(lambda part: self._act_towards(aim[part], inputs.rows(part))[:1], inputs)
            actions, chosen, trace = self.head.sample(features, action_temp, generator)
        temp = torch.full((len(aim),), action_temp, device=aim.device)
        log_probs, trace = {"action": chosen}, {**trace, "action_temperature": temp}
        if self.config.goal_dims:
            log_probs["goal"] = place
            trace |= {"aim": aim, "goal_temperature": torch.full((len(aim),), goal_temp, device=aim.device)}
        return PolicyOutput(actions, log_probs, trace, temperature)

    def _by_rows(self, work: Callable[[slice], tuple[Tensor, ...]], inputs: Inputs) -> list[Tensor]:
        """Outputs of `work` for all rows; while dropout is on, in one part, which keeps its random stream."""
        count = len(inputs.picture)
        parts = [work(slice(0, count))] if self.training else by_rows(work, count, self.device)
        return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]

    # -- inputs -----------------------------------------------------------------------------------------------

    def _inputs(self, observation: Observation) -> Inputs:
        image = self._picture(observation["image"], self.config.size, "pixels", "image")
        given = observation["state"] if self.config.state_dim else torch.zeros(len(image), 0, device=self.device)
        state = torch.as_tensor(given, dtype=torch.float32, device=self.device)
        if state.shape != (image.shape[0], self.config.state_dim):
            raise ConfigError(
                f"state must be ({image.shape[0]}, {self.config.state_dim}); got {tuple(state.shape)}"
            )
        text = self.text_of(observation)
        if text.shape[0] != image.shape[0]:
            raise ConfigError(
                f"{image.shape[0]} images but {text.shape[0]} instructions; give one for each row"
            )
        views = {}
        for camera in self.config.views:
            key = f"image_{camera.name}"
            if key not in observation:
                raise ConfigError(
                    f"the observation lacks {key!r}, frames of the camera {camera}; it has {sorted(observation)}"
                )
            given = observation[key]  # type: ignore[literal-required]
            views[camera.name] = self._picture(given, camera.size, f"pixels_{camera.name}", key)
        later = image if self.config.future_view else None
        if self.config.future_view and FUTURE_IMAGE in observation:
            given = observation[FUTURE_IMAGE]  # type: ignore[literal-required]
            later = self._picture(given, self.config.size, "pixels", FUTURE_IMAGE)
        words = ((text - self.text_mean) / self.text_std).clamp(-5, 5)
        return Inputs(image, words, self.normalise_state(state), views, later)

    def _picture(self, given: Any, size: tuple[int, int], grid: str, name: str) -> Tensor:
        """`(B,5,H,W)`: colours in [-1, 1] and pixel coordinates."""
        image = torch.as_tensor(given, device=self.device)
        if image.dtype != torch.uint8:
            raise TypeError(f"{name} must be uint8 in [0, 255], channels last; got {image.dtype}")
        if image.ndim != 4 or tuple(image.shape[1:]) != (*size, 3):
            raise ConfigError(f"{name} must be (B, {size[0]}, {size[1]}, 3); got {tuple(image.shape)}")
        pixels: Tensor = getattr(self, grid)
        return with_coordinates(image.float() / 255, pixels)

    def text_of(self, observation: Observation) -> Tensor:
        """`(B,E)` text input of the network; here the instruction embeddings."""
        return self.embedding_of(observation["instruction"])

    def embedding_of(self, instruction: Sequence[str] | np.ndarray | Tensor) -> Tensor:
        """`(B,E)` embeddings of B strings; arrays of embeddings pass through."""
        if isinstance(instruction, np.ndarray) and instruction.dtype.kind not in "fiu":
            instruction = [str(text) for text in instruction.reshape(-1)]
        if not isinstance(instruction, (np.ndarray, Tensor)):
            instruction = embed(instruction)
        return torch.as_tensor(instruction, dtype=torch.float32, device=self.device)
