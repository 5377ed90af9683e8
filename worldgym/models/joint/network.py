"""The network of joint models: tokens of frames, actions, proprioception and text through one transformer.

What differs between families is the layout, the rule and the experts (`worldgym.models.joint.layouts`).

Example::

    out = net(layout, rule, Inputs(words, clean=clean, states=states, video=noisy, before=clean[:, :-1], ...))
    out.video, out.actions              # (B,n,C,h,w) before the residual is added, (B,n,K,A) velocity
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from worldgym.models.joint.config import JointConfig
from worldgym.models.joint.layouts import REGISTERS, WORDS
from worldgym.nn import (
    Expert,
    KVCache,
    Rule,
    SequenceLayout,
    Transformer,
    TransformerConfig,
    from_tokens,
    to_tokens,
)

WAVES = 16


@dataclass(frozen=True)
class Inputs:
    """Inputs of the network; each part has as many blocks as the layout has segments of it, in order.

    Args:
        words: `(B,E)` standardised embedding of the instruction; zeros for none.
        clean: `(B,m,C,h,w)` clean frames.
        states: `(B,s,S)` normalised proprioception.
        video: `(B,n,C,h,w)` noisy frames.
        before: `(B,n,C,h,w)` the clean frame before each noisy one.
        video_levels: `(B,n)` noise levels of the frames.
        actions: `(B,n,K,A)` noisy actions.
        there: `(B,n,K)` bool, which actions there are.
        action_levels: `(B,n)` noise levels of the actions.
    """

    words: Tensor
    clean: Tensor
    states: Tensor
    video: Tensor
    before: Tensor
    video_levels: Tensor
    actions: Tensor
    there: Tensor
    action_levels: Tensor

    def without_words(self) -> Inputs:
        """The same without the instruction."""
        return replace(self, words=torch.zeros_like(self.words))


class JointOutput(NamedTuple):
    """Outputs of the network.

    Args:
        video: `(B,n,C,h,w)` the error of the best guess of the velocity (`worldgym.nn.residual_velocity`).
        actions: `(B,n,K,A)` velocity of the actions.
        taps: hidden tokens `(B,L,D)` of the first expert after the requested layers.
    """

    video: Tensor
    actions: Tensor
    taps: dict[int, Tensor]


@lru_cache(maxsize=64)
def _positions(layout: SequenceLayout, grid: tuple[int, int]) -> Tensor:
    """Rotary positions `(L,3)` of a layout, computed once."""
    return layout.positions({"video": grid})


class Level(nn.Module):
    """Embeds noise levels `(...)` as `(...,D)`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2 * WAVES, width), nn.SiLU(), nn.Linear(width, width))
        self.register_buffer("waves", math.pi * 2.0 ** (torch.arange(WAVES) / 2), persistent=False)
        self.waves: Tensor

    def forward(self, t: Tensor) -> Tensor:
        """Embed."""
        angle = t[..., None] * self.waves
        out: Tensor = self.net(torch.cat([angle.sin(), angle.cos()], -1))
        return out


class JointNetwork(nn.Module):
    """Predicts velocities of frames and actions; see the module docstring.

    Args:
        config: config of the model.
    """

    def __init__(self, config: JointConfig) -> None:
        super().__init__()
        c = self.config = config
        kind, width = c.kind, c.width
        self.roles = frozenset(segment.role for segment in kind.layout(c.sizes(1)).segments)
        widths = {"all": width, "video": width, "action": c.action_width, "understanding": c.text_width}
        experts = tuple(Expert(name, widths[name], roles) for name, roles in kind.experts.items())
        part = c.head_dim // 8
        self.body = Transformer(
            TransformerConfig(
                experts, c.depth, c.heads, c.head_dim, "single", width, (2 * part, 3 * part, 3 * part), "silu"
            )
        )
        channels = c.tokenizer.latent_channels * c.patch**2
        owner = {role: widths[name] for name, roles in kind.experts.items() for role in roles}
        self.frame = nn.Linear(2 * channels, owner["video"])
        # rotary positions are relative: without these no value would say where in the picture a patch is
        self.frame_place = nn.Parameter(0.02 * torch.randn(c.patches, owner["video"]))
        self.clean_mark = nn.Parameter(0.02 * torch.randn(owner["video"]))
        self.action = nn.Linear(c.action_dim + 1, owner["action"])
        self.action_place = nn.Parameter(0.02 * torch.randn(c.chunk, owner["action"]))
        self.video_level, self.action_level = Level(width), Level(width)
        if "state" in self.roles:
            self.state = nn.Sequential(
                nn.Linear(c.state_dim, owner["state"]), nn.SiLU(), nn.Linear(owner["state"], owner["state"])
            )
        if "register" in self.roles:
            self.registers = nn.Parameter(0.02 * torch.randn(REGISTERS, owner["register"]))
        if "text" in self.roles:
            self.text = nn.Linear(c.text_dim, WORDS * owner["text"])
        else:
            self.words = nn.Sequential(nn.Linear(c.text_dim, width), nn.SiLU(), nn.Linear(width, width))
        if kind.observes == "modulation":
            rows, columns = c.tokenizer.grid
            self.seen = nn.Sequential(
                nn.Linear(c.tokenizer.latent_channels * rows * columns + c.state_dim, 2 * width), nn.SiLU(),
                nn.Linear(2 * width, width),
            )  # fmt: skip
        self.video_out = nn.Linear(owner["video"], channels)
        self.action_out = nn.Linear(owner["action"], c.action_dim)
        for layer in (self.video_out, self.action_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        layout: SequenceLayout,
        rule: Rule,
        inputs: Inputs,
        *,
        cache: KVCache | None = None,
        taps: Collection[int] = (),
        compiled: bool = False,
    ) -> JointOutput:
        """Run a sequence, or its next segments if a cache holds the earlier ones.

        Args:
            layout: segments; parts of `inputs` that have no segment are not used.
            rule: which segments attend to which.
            inputs: see `Inputs`.
            cache: keys and values of earlier segments; those of this sequence are written into it.
            taps: layers whose hidden tokens are returned.
            compiled: see `Transformer.forward`.
        """
        c = self.config
        tokens: dict[str, list[Tensor]] = {expert.name: [] for expert in self.body.config.experts}
        conditions: list[Tensor] = []
        pieces = self._pieces(layout, inputs)
        for segment, (token, condition) in zip(layout.segments, pieces, strict=True):
            tokens[self._expert(segment.role)].append(token)
            conditions.append(condition)
        out = self.body(
            {name: torch.cat(parts, 1) for name, parts in tokens.items() if parts}, layout, rule,
            condition=torch.cat(conditions, 1) + self._shared(inputs)[:, None],
            positions=_positions(layout, c.grid), cache=cache, taps=taps, compiled=compiled,
        )  # fmt: skip
        first = self.body.config.experts[0].name
        rows, columns = c.tokenizer.grid
        found: dict[str, Tensor | None] = {}
        for role, head in (("video", self.video_out), ("action", self.action_out)):
            name = self._expert(role)
            own = [s for s in layout.segments if self._expert(s.role) == name]
            parts = out.tokens[name].split([s.length for s in own], 1) if own else ()
            noisy = [part for s, part in zip(own, parts, strict=True) if s.role == role and not s.clean]
            found[role] = head(torch.cat(noisy, 1)) if noisy else None
        b = len(inputs.words)
        video, actions = inputs.video[:, :0], inputs.actions[:, :0]
        if found["video"] is not None:
            flat = found["video"].unflatten(1, (-1, c.patches)).flatten(0, 1)
            video = from_tokens(flat.contiguous(), c.patch, (rows, columns)).unflatten(0, (b, -1)).float()
        if found["action"] is not None:
            actions = found["action"].unflatten(1, (-1, c.chunk)).float()
        return JointOutput(video, actions, {i: tap[first] for i, tap in out.taps.items()})

    def _expert(self, role: str) -> str:
        return self.body.config.experts[self.body.config.expert_of(role)].name

    def _shared(self, inputs: Inputs) -> Tensor:
        """`(B,D)` conditioning of all tokens: instruction, observation, and for UWM both noise levels."""
        c = self.config
        out = inputs.words.new_zeros(len(inputs.words), c.width)
        if "text" not in self.roles:
            out = out + self.words(inputs.words)
        if c.kind.observes == "modulation":
            out = out + self.seen(torch.cat([inputs.clean[:, 0].flatten(1), inputs.states[:, 0]], -1))
            out = (
                out
                + self.video_level(inputs.video_levels[:, 0])
                + self.action_level(inputs.action_levels[:, 0])
            )
        return out

    def _pieces(self, layout: SequenceLayout, inputs: Inputs) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens `(B,l,D)` of each segment, and their conditioning `(B,1,width)`."""
        c = self.config
        separate = c.kind.observes != "modulation"
        b, device = len(inputs.words), inputs.words.device
        none = torch.zeros(b, 1, c.width, device=device)
        zero = self.video_level(torch.zeros(b, 1, device=device)) if separate else none
        counts = {"clean": 0, "video": 0, "action": 0, "state": 0}
        for segment in layout.segments:
            kind = "clean" if segment.role == "video" and segment.clean else segment.role
            i = counts.get(kind, 0)
            counts[kind] = i + 1
            if kind == "clean":
                patches = to_tokens(inputs.clean[:, i].contiguous(), c.patch)
                token = self.frame(torch.cat([patches, torch.zeros_like(patches)], -1))
                yield token + self.frame_place + self.clean_mark, zero
            elif kind == "video":
                pair = torch.cat(
                    [to_tokens(x[:, i].contiguous(), c.patch) for x in (inputs.video, inputs.before)], -1
                )
                level = self.video_level(inputs.video_levels[:, i : i + 1]) if separate else none
                yield self.frame(pair) + self.frame_place, level
            elif kind == "action":
                there = inputs.there[:, i, :, None].float()
                token = self.action(torch.cat([inputs.actions[:, i] * there, there], -1)) + self.action_place
                level = self.action_level(inputs.action_levels[:, i : i + 1]) if separate else none
                yield token, level
            elif kind == "state":
                yield self.state(inputs.states[:, i])[:, None], none
            elif kind == "register":
                yield self.registers.expand(b, -1, -1), none
            else:
                yield self.text(inputs.words).unflatten(1, (WORDS, -1)), none
