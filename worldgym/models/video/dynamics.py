"""The dynamics: a block-causal transformer that denoises the next frame's latents, given action and proprioception.

Each frame is a few tokens (patches of the latent grid) that attend to each other and to the last frames. A frame's
tokens get the noisy frame *and* the previous clean frame as input channels, and predict the clean frame as previous +
change, so that copying needs no capacity and all of it is used for what moves. The previous frame is an input, so the
keys and values computed while denoising already describe the committed frames. An imagined frame is therefore cached by
the denoising pass itself and needs no second pass. Noise levels are independent per frame (diffusion forcing, Chen et
al. 2024); flow matching with x_t = (1 - t) x + t eps, t = 0 clean. Pure noise (t = 1) carries no information about the
frame, so the input is replaced by zeros: a one-pass sample is then the network's mean prediction. Action,
proprioception and noise level enter through adaLN with one modulation MLP shared by all layers (PixArt-alpha's
adaLN-single).

The *anchor* is a clean frame from before the window (the start frame of the imagined episode). It enters as input
channels too: objects that were occluded for longer than the window are visible in it and can reappear unchanged.

If configured, warped frames show how objects move with the hand (`worldgym.models.video.object_motion`).

Example::

    dynamics = Dynamics(DynamicsConfig())
    out = dynamics(noisy, previous, t, actions, states)   # (B,T,16,8,8) x2, (B,T), (B,T,4), (B,T,4)
    out.latents, out.states, out.log_error
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldgym.models.video.compat import renamed
from worldgym.models.video.config import DynamicsConfig
from worldgym.models.video.object_motion import MotionMemory, ObjectMotion
from worldgym.nn import (
    KVCache,
    Rotary,
    RowBatch,
    Segment,
    SequenceLayout,
    TransformerBlock,
    additive,
    block_causal,
    from_tokens,
    to_tokens,
)


class DynamicsOutput(NamedTuple):
    """Predictions for every frame of the input: clean `latents` (B,T,C,h,w), normalised `states` (B,T,S), and
    `log_error` (B,T), the network's own estimate of the log of its mean squared latent error.
    """

    latents: Tensor
    states: Tensor
    log_error: Tensor


@dataclass(frozen=True)
class Cache(RowBatch):
    """Memory of the dynamics for B imagined episodes.

    Args:
        ring: ring buffer with the keys and values of the last frames.
        anchor: `(B,C,h,w)` clean frame from before the window, kept for the whole episode.
        motion: memory for warping the anchor; None if it is not warped.
    """

    ring: KVCache
    anchor: Tensor
    motion: MotionMemory | None = None

    @property
    def count(self) -> Tensor:
        """`(B,)` int64, number of frames processed."""
        return self.ring.count


@dataclass
class FrameInputs:
    """Network input of N frames.

    Args:
        noisy: `(N,C,h,w)` noisy frames.
        previous: `(N,C,h,w)` clean (or imagined) frames before them.
        t: `(N,)` noise levels in [0, 1].
        actions: `(N,A)` in [-1, 1].
        states: `(N,S)` normalised proprioception at `previous`.
        anchor: `(N,C,h,w)` anchor frames.
        warped: warped frames, each `(N,C,h,w)`, of the previous frame's dtype.
    """

    noisy: Tensor
    previous: Tensor
    t: Tensor
    actions: Tensor
    states: Tensor
    anchor: Tensor
    warped: list[Tensor]


class Dynamics(nn.Module):
    """The latent dynamics: predicts the clean next frame; see the module docstring for the design."""

    def __init__(self, config: DynamicsConfig | None = None) -> None:
        super().__init__()
        c = self.config = config or DynamicsConfig()
        d, p, n = c.width, c.patch, c.tokens
        warped = 0 if c.motion is None else 1 + c.motion.warp_anchor
        self.stem = nn.Conv2d((2 + c.anchor + warped) * c.latent_channels, 64, 3, padding=1)
        self.embed = nn.Linear(64 * p * p, d)
        self.place = nn.Parameter(torch.randn(n, d) * 0.02)
        self.condition = nn.Sequential(
            nn.Linear(c.action_dim + c.state_dim + 32, d), nn.SiLU(), nn.Linear(d, d), nn.SiLU()
        )
        self.modulate = nn.Linear(d, 6 * d)
        self.layers = nn.ModuleList(
            TransformerBlock(d, c.heads, activation=nn.SiLU, offset=True) for _ in range(c.depth)
        )
        self.final = nn.Linear(d, 2 * d)
        self.unembed = nn.Linear(d, 64 * p * p)
        self.refine = nn.Conv2d(64 + (1 + warped) * c.latent_channels, 64, 3, padding=1)
        self.change = nn.Conv2d(64, c.latent_channels, 3, padding=1)
        self.objects: ObjectMotion | None = None
        if c.motion is not None:
            self.objects = ObjectMotion(c.motion, c.latent_channels, c.action_dim, c.state_dim)
        self.state_head = nn.Sequential(nn.Linear(2 * d, d), nn.SiLU(), nn.Linear(d, c.state_dim + 1))
        for layer in (self.change, self.final, self.modulate):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.state_head[2].weight)
        nn.init.zeros_(self.state_head[2].bias)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for key in [key for key in state_dict if key.startswith(prefix)]:  # weights of earlier versions
            name = renamed(key.removeprefix(prefix))
            if prefix + name != key:
                state_dict[prefix + name] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _inputs(self, frame_inputs: FrameInputs) -> tuple[Tensor, Tensor]:
        """Compute tokens `(N, n, D)` and condition `(N, D)`."""
        c, t = self.config, frame_inputs.t
        parts = [frame_inputs.noisy * (t < 1)[:, None, None, None], frame_inputs.previous]
        parts += [frame_inputs.anchor] if c.anchor else []
        parts += frame_inputs.warped
        grid = self.stem(torch.cat([part.to(frame_inputs.previous.dtype) for part in parts], 1))
        x = self.embed(to_tokens(grid, c.patch)) + self.place
        frequency = torch.exp(torch.arange(16, device=t.device) * (math.log(200.0) / 16))
        angle = t[:, None] * frequency
        conditioning = torch.cat([frame_inputs.actions, frame_inputs.states, angle.cos(), angle.sin()], -1)
        return x, self.condition(conditioning.to(x.dtype))

    def _outputs(self, x: Tensor, condition: Tensor, frame_inputs: FrameInputs) -> tuple[Tensor, Tensor, Tensor]:
        c, previous = self.config, frame_inputs.previous
        shift, scale = self.final(condition)[:, None].chunk(2, -1)
        x = F.layer_norm(x, (c.width,)) * (1 + scale) + shift
        grid = from_tokens(self.unembed(x), c.patch, c.cells)
        inputs = [z.to(grid.dtype) for z in (previous, *frame_inputs.warped)]
        hidden = F.silu(self.refine(torch.cat([grid, *inputs], 1)))
        latents = previous.float() + self.change(hidden).float()
        if self.objects is not None:
            latents = self.objects.take_from(latents, hidden, frame_inputs.warped, previous)
        head = self.state_head(torch.cat([x.mean(1), condition], -1)).float()
        return latents, head[:, :-1], head[:, -1]

    def forward(
        self,
        noisy: Tensor,
        previous: Tensor,
        t: Tensor,
        actions: Tensor,
        states: Tensor,
        anchor: Tensor | None = None,
        displacement: Tensor | None = None,
    ) -> DynamicsOutput:
        """Denoise T frames in parallel (training).

        Args:
            noisy: `(B,T,C,h,w)` noisy next frames.
            previous: `(B,T,C,h,w)` clean (or imagined) frames before them.
            t: `(B,T)` noise levels in [0, 1].
            actions: `(B,T,A)` in [-1, 1] that lead from `previous` to the next frame.
            states: `(B,T,S)` normalised proprioception at `previous`.
            anchor: `(B,C,h,w)` clean frame from before the window; the first of `previous` when None.
            displacement: `(B,2)` cells by which an object was moved between the anchor and the window; 0 when None.
        """
        b, frames = t.shape
        n, c = self.config.tokens, self.config
        anchor = previous[:, 0] if anchor is None else anchor
        warped = []
        if self.objects is not None:
            warped = self.objects.window(previous, actions, states, anchor, displacement)
        flat = [v.flatten(0, 1) for v in (noisy, previous, t, actions, states)]
        anchors = anchor[:, None].expand(-1, frames, -1, -1, -1).flatten(0, 1)
        frame_inputs = FrameInputs(*flat, anchor=anchors, warped=warped)
        x, condition = self._inputs(frame_inputs)
        six = self.modulate(condition).unflatten(-1, (6, -1)).unflatten(0, (b, frames))  # (B, T, 6, D)
        layout = SequenceLayout(tuple(Segment("video", f, n) for f in range(frames)))
        mask = additive(layout.mask(block_causal(c.window)).to(x.device), x.dtype)
        positions = torch.arange(frames, device=x.device).repeat_interleave(n)
        rotary = Rotary.of(positions, c.width // c.heads).to(x.dtype)
        x = x.reshape(b, frames * n, -1)
        for layer in self.layers:
            x = layer(x, modulation=layer.modulation(six), mask=mask, rotary=rotary)
        latents, states_out, log_error = self._outputs(x.reshape(b * frames, n, -1), condition, frame_inputs)
        shape = (b, frames)
        return DynamicsOutput(
            latents.unflatten(0, shape), states_out.unflatten(0, shape), log_error.unflatten(0, shape)
        )

    def empty_cache(
        self, anchor: Tensor, states: Tensor, dtype: torch.dtype, displacement: Tensor | None = None
    ) -> Cache:
        """A cache that contains only `anchor` (B,C,h,w).

        Args:
            anchor: clean frame.
            states: `(B,S)` normalised proprioception at the first frame of the rollout.
            dtype: dtype of keys and values.
            displacement: `(B,2)` as in `forward`.
        """
        c, batch = self.config, len(anchor)
        ring = KVCache.empty(
            c.depth, batch, c.heads, c.window, c.width // c.heads, c.tokens, device=anchor.device, dtype=dtype
        )
        anchor = anchor.to(dtype)
        motion = None if self.objects is None else self.objects.memory(anchor, states, displacement)
        return Cache(ring, anchor, motion)

    def step(
        self, noisy: Tensor, previous: Tensor, t: Tensor, actions: Tensor, states: Tensor, cache: Cache
    ) -> DynamicsOutput:
        """Denoise one frame and write its keys and values into `cache` in place; the caller advances `count`.

        Same arguments as `forward` without the time axis. The cost does not depend on the number of earlier frames.
        """
        c, warped = self.config, []
        if self.objects is not None:
            moved, features = torch.zeros(len(t), 2, device=t.device), cache.anchor
            if cache.motion is not None:  # a further pass over the same frame adds nothing
                self.objects.track(cache.motion, states)
                moved, features = cache.motion.displacement, cache.motion.features
            warped = self.objects.warps(previous, actions, states, moved, features)
        frame_inputs = FrameInputs(noisy, previous, t, actions, states, cache.anchor, warped)
        x, condition = self._inputs(frame_inputs)
        six = self.modulate(condition).unflatten(-1, (6, -1))[:, None]
        mask = additive(cache.ring.valid(), x.dtype)[:, None, None]
        rotary = Rotary.of(cache.count[:, None], c.width // c.heads).heads().to(x.dtype)
        for i, layer in enumerate(self.layers):
            x = layer(
                x, modulation=layer.modulation(six), mask=mask, rotary=rotary,
                update=lambda k, v, i=i: cache.ring.write(i, k, v),
            )  # fmt: skip
        return DynamicsOutput(*self._outputs(x, condition, frame_inputs))
