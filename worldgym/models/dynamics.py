"""The dynamics: a block-causal transformer that denoises the next frame's latents, given action and proprioception.

Why this form: each frame is 16 tokens (2 x 2 patches of the latent grid) that see each other and the last frames.
A frame's tokens get the noisy frame *and* the previous clean frame as input channels, and predict the clean frame as
previous + change: copying is free, so all capacity goes to what moves. Because the previous frame enters as input, the
keys and values computed while denoising already hold what was committed: an imagined frame is cached once, by the
denoising pass itself, and costs no second pass. Noise levels are independent per frame (diffusion forcing, Chen et al.
2024); flow matching with x_t = (1 - t) x + t eps, t = 0 clean. Pure noise (t = 1) says nothing about the frame, so
zeros are given in its place: a one-pass sample is then the network's plain best guess. Action, proprioception and
noise level act through adaLN with one modulation MLP shared by all layers (PixArt-alpha's adaLN-single).

What is held or pushed moves as the hand does. So the network is also shown the previous frame *moved* by the image
motion that it expects of the hand (one learned shift a frame, from action and proprioception), and may take any cell
from there instead of the previous frame. Carrying an object is then copying too, and no one has to remember what it
looked like (`worldgym.models.shift` says how latents are moved).

Each such copy loses a little, colour first, and a carried thing is copied a dozen times. So the network also sees the
anchor (below) moved by as much as the hand has moved in the image while something was between its fingers: where the
carried object is now, this shows it as it was, one copy from the truth, and goes on showing it where it was put down.
A hand that sweeps low over the table pushes what it meets, so sideways travel there counts as well: about, since nobody
says when it met something, but of the right colour and not where it came from.
Copying from the first frame across time is the skip connection of Ebert et al. 2017 (section 4); that the hand's
own travel says by how much is ours.

The *anchor*, a clean frame from before the window (the one that imagination began with), enters as input channels too:
what the hand hid for longer than the window is seen there, so it can come back as what it was.

Example::

    dynamics = Dynamics(DynamicsConfig())
    out = dynamics(noisy, previous, t, actions, states)   # (B,T,16,8,8) x2, (B,T), (B,T,4), (B,T,4)
    out.latents, out.states, out.log_error
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldgym.models.config import DynamicsConfig
from worldgym.models.layout import Segment, attention_mask, block_causal
from worldgym.models.shift import LatentShift


class DynamicsOutput(NamedTuple):
    """Predictions for every frame of the input: clean `latents` (B,T,C,h,w), normalised `states` (B,T,S), and
    `log_error` (B,T), the network's own estimate of the log of its mean squared latent error.
    """

    latents: Tensor
    states: Tensor
    log_error: Tensor


class Cache(NamedTuple):
    """Ring buffers of keys and values, each `(depth, B, heads, window, tokens, width / heads)`, as attention multiplies
    them, without a copy; `count` (B,) frames seen; and what the ring never forgets: the `anchor` (B,C,h,w), `carried`
    (B,2), cells that something was carried since, and `last` (B,S), the normalised proprioception up to which that is
    counted; and `fine`, the anchor on the grid on which it is moved (empty without `held`).
    """

    keys: Tensor
    values: Tensor
    count: Tensor
    anchor: Tensor
    carried: Tensor
    last: Tensor
    fine: Tensor


def _rotary(position: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Cos and sin `(..., dim/2)` of integer frame positions."""
    frequency = 1.0 / (100.0 ** (torch.arange(0, dim, 2, device=position.device) / dim))
    angle = position[..., None].float() * frequency
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def to_tokens(grid: Tensor, patch: int) -> Tensor:
    """`(N,C,h,w)` as tokens `(N, h w / patch^2, C patch^2)`, one a patch, in one copy."""
    n, c, h, w = grid.shape
    cells = grid.view(n, c, h // patch, patch, w // patch, patch)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // patch**2, c * patch**2)


def from_tokens(x: Tensor, patch: int) -> Tensor:
    """Inverse of `to_tokens` for a square grid."""
    n, tokens, width = x.shape
    side, c = math.isqrt(tokens), width // patch**2
    cells = x.view(n, side, side, c, patch, patch)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(n, c, side * patch, side * patch)


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.modulation = nn.Parameter(torch.randn(6, width) / width**0.5)

    def split(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, heads, L, D / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    # By hand: at 16 queries the fused kernel's backward took 41 % of a training step.
    score = (q @ k.transpose(-1, -2)) * (q.shape[-1] ** -0.5) + mask
    return (score.float().softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)


class Dynamics(nn.Module):
    """Predicts the clean next frame; see the module docstring for the design."""

    mask: Tensor

    def __init__(self, config: DynamicsConfig | None = None) -> None:
        super().__init__()
        c = self.config = config or DynamicsConfig()
        d, p, n = c.width, c.patch, c.tokens
        self.stem = nn.Conv2d((2 + c.anchor + c.moved + c.held) * c.latent_channels, 64, 3, padding=1)
        self.embed = nn.Linear(64 * p * p, d)
        self.place = nn.Parameter(torch.randn(n, d) * 0.02)
        self.condition = nn.Sequential(
            nn.Linear(c.action_dim + c.state_dim + 32, d), nn.SiLU(), nn.Linear(d, d), nn.SiLU()
        )
        self.modulate = nn.Linear(d, 6 * d)
        self.layers = nn.ModuleList(_Layer(d, c.heads) for _ in range(c.depth))
        self.final = nn.Linear(d, 2 * d)
        self.unembed = nn.Linear(d, 64 * p * p)
        self.refine = nn.Conv2d(64 + (1 + c.moved + c.held) * c.latent_channels, 64, 3, padding=1)
        self.change = nn.Conv2d(64, c.latent_channels, 3, padding=1)
        if c.moved:
            self.motion = nn.Sequential(
                nn.Linear(c.action_dim + c.state_dim, 64), nn.SiLU(), nn.Linear(64, 2)
            )
            self.drift = nn.Linear(c.action_dim, 2, bias=False)
            self.shift = LatentShift(c.latent_channels, c.moved_width)
            self.take = nn.Conv2d(64, 1 + c.held, 3, padding=1)
            nn.init.zeros_(self.motion[2].weight)
            nn.init.zeros_(self.motion[2].bias)
            nn.init.zeros_(self.take.weight)
            nn.init.constant_(self.take.bias, -3.0)
            with torch.no_grad():
                self.drift.weight.copy_(torch.tensor(c.shift))
        if c.held:
            self.hand = nn.Sequential(nn.Linear(c.state_dim, 64), nn.SiLU(), nn.Linear(64, 2))
        self.state_head = nn.Sequential(nn.Linear(2 * d, d), nn.SiLU(), nn.Linear(d, c.state_dim + 1))
        for layer in (self.change, self.final, self.modulate):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.state_head[2].weight)
        nn.init.zeros_(self.state_head[2].bias)

    def _mask(self, frames: int, device: torch.device) -> Tensor:
        layout = [Segment("video", f, self.config.tokens) for f in range(frames)]
        allowed = attention_mask(layout, block_causal(self.config.window)).to(device)
        return torch.zeros(allowed.shape, device=device).masked_fill_(~allowed, -1e4)

    def _inputs(
        self,
        noisy: Tensor,
        previous: Tensor,
        t: Tensor,
        actions: Tensor,
        states: Tensor,
        carried: Tensor,
        anchor: Tensor,
        fine: Tensor,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Tokens (N, n, D), condition (N, D) and the moved frames of N = B T frames."""
        c = self.config
        parts = [noisy * (t < 1)[:, None, None, None], previous]
        parts += [anchor] if c.anchor else []
        moved = []
        if c.moved:
            cells = self.cells(actions, states)
            moved.append(self.move(previous, cells))
        if c.held:
            carried = carried.to(cells.dtype) + self.carries(states)[:, None] * cells
            moved.append(self.shift.fold(fine, carried).to(previous.dtype))
        parts += moved
        grid = self.stem(torch.cat([part.to(previous.dtype) for part in parts], 1))
        x = self.embed(to_tokens(grid, c.patch)) + self.place
        frequency = torch.exp(torch.arange(16, device=t.device) * (math.log(200.0) / 16))
        angle = t[:, None] * frequency
        return (
            x,
            self.condition(torch.cat([actions, states, angle.cos(), angle.sin()], -1).to(x.dtype)),
            moved,
        )

    def cells(self, actions: Tensor, states: Tensor) -> Tensor:
        """Image motion `(N,2)` of the hand in latent cells, right and down, under `actions (N,A)` from `states`."""
        dtype = self.drift.weight.dtype
        actions, states = actions.to(dtype), states.to(dtype)
        cells: Tensor = self.drift(actions) + self.motion(torch.cat([actions, states], -1))
        return cells

    def move(self, picture: Tensor, cells: Tensor) -> Tensor:
        """`picture (N,C,h,w)` as it looks when all that is not background moves by `cells (N,2)`."""
        moved: Tensor = self.shift(picture, cells)
        return moved.to(picture.dtype)

    def holds(self, states: Tensor) -> Tensor:
        """Whether something is between the fingers, by normalised `states (...,S)`."""
        low, high = self.config.holding
        return (states[..., -1] > low) & (states[..., -1] < high)

    def sweeps(self, states: Tensor) -> Tensor:
        """Whether the hand is so low that it pushes what it meets, by normalised `states (...,S)`."""
        if self.config.low is None:
            return torch.zeros_like(states[..., 0], dtype=torch.bool)
        return states[..., 2] < self.config.low

    def carries(self, states: Tensor) -> Tensor:
        """Whether the hand takes along what it touches, by normalised `states (...,S)`."""
        return self.holds(states) | self.sweeps(states)

    def travel(self, states: Tensor) -> Tensor:
        """Cells `(B,T,2)` by which something was carried from the first to each of normalised `states (B,T,S)`."""
        counts = self.carries(states)
        if self.config.low is not None:  # what is pushed stays on the table, however the hand bobs
            height = states[..., 2:3].clamp(min=self.config.low)
            states = torch.cat([states[..., :2], height, states[..., 3:]], -1)
        place = self.hand(states.to(self.drift.weight.dtype)).float()
        carried = (counts[:, 1:] & counts[:, :-1])[..., None] * (place[:, 1:] - place[:, :-1])
        return F.pad(carried.cumsum(1), (0, 0, 1, 0))

    def hand_loss(self, actions: Tensor, states: Tensor) -> Tensor:
        """How far `hand`, the hand's place in the image, is from moving as `cells` says: mean squared, `(B,T)`.

        Args:
            actions: `(B,T,A)` in [-1, 1].
            states: `(B,T+1,S)` normalised proprioception around them.
        """
        place = self.hand(states)
        with torch.no_grad():
            cells = self.cells(actions, states[:, :-1])
        return (place[:, 1:] - place[:, :-1] - cells).float().square().mean(-1)

    def _outputs(
        self, x: Tensor, condition: Tensor, previous: Tensor, moved: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        c = self.config
        shift, scale = self.final(condition)[:, None].chunk(2, -1)
        x = F.layer_norm(x, (c.width,)) * (1 + scale) + shift
        grid = from_tokens(self.unembed(x), c.patch)
        seen = [z.to(grid.dtype) for z in (previous, *moved)]
        hidden = F.silu(self.refine(torch.cat([grid, *seen], 1)))
        latents = previous.float() + self.change(hidden).float()
        if moved:
            taken = self.take(hidden).float().sigmoid()
            for i, picture in enumerate(moved):
                latents = latents + taken[:, i : i + 1] * (picture.float() - previous.float())
        head = self.state_head(torch.cat([x.mean(1), condition], -1)).float()
        return latents, head[:, :-1], head[:, -1]

    def _mlp_and_attention(self, layer: _Layer, x: Tensor, six: Tensor, attended: Tensor) -> Tensor:
        _, _, gate, shift, scale, gate2 = six.unbind(-2)
        x = x + (1 + gate) * layer.out(attended)
        h = F.layer_norm(x, (x.shape[-1],)) * (1 + scale) + shift
        return x + (1 + gate2) * layer.down(F.silu(layer.up(h)))

    def forward(
        self,
        noisy: Tensor,
        previous: Tensor,
        t: Tensor,
        actions: Tensor,
        states: Tensor,
        anchor: Tensor | None = None,
        carried: Tensor | None = None,
    ) -> DynamicsOutput:
        """Denoise T frames in parallel (training).

        Args:
            noisy: `(B,T,C,h,w)` noisy next frames.
            previous: `(B,T,C,h,w)` clean (or imagined) frames before them.
            t: `(B,T)` noise levels in [0, 1].
            actions: `(B,T,A)` in [-1, 1] that lead from `previous` to the next frame.
            states: `(B,T,S)` normalised proprioception at `previous`.
            anchor: `(B,C,h,w)` clean frame from before the window; the first of `previous` when None.
            carried: `(B,2)` cells by which something was carried between the anchor and the window; 0 when None.
        """
        b, frames = t.shape
        n = self.config.tokens
        anchor = previous[:, 0] if anchor is None else anchor
        fine = self.shift.unfold(anchor.to(previous.dtype)) if self.config.held else anchor
        anchors, fines = (z[:, None].expand(-1, frames, -1, -1, -1) for z in (anchor, fine))
        moves = self.travel(states) if self.config.held else states.new_zeros(b, frames, 2)
        moves = moves if carried is None else moves + carried[:, None]
        flat = [v.flatten(0, 1) for v in (noisy, previous, t, actions, states, moves, anchors, fines)]
        x, condition, moved = self._inputs(*flat)
        modulation = self.modulate(condition).unflatten(-1, (6, -1))[:, None]  # (B T, 1, 6, D)
        mask = self._mask(frames, x.device).to(x.dtype)
        cos, sin = _rotary(
            torch.arange(frames, device=x.device).repeat_interleave(n), x.shape[-1] // self.config.heads
        )
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        for layer in self.layers:
            six = modulation + layer.modulation
            h = F.layer_norm(x, (x.shape[-1],)) * (1 + six[..., 1, :]) + six[..., 0, :]
            qkv = layer.qkv(h).reshape(b, frames * n, -1)
            q, k, v = (layer.split(part) for part in qkv.chunk(3, -1))
            attended = _attend(_rotate(q, cos, sin), _rotate(k, cos, sin), v, mask).reshape(b * frames, n, -1)
            x = self._mlp_and_attention(layer, x, six, attended)
        latents, states_out, log_error = self._outputs(x, condition, flat[1], moved)
        shape = (b, frames)
        return DynamicsOutput(
            latents.unflatten(0, shape), states_out.unflatten(0, shape), log_error.unflatten(0, shape)
        )

    def empty_cache(
        self, anchor: Tensor, states: Tensor, dtype: torch.dtype, carried: Tensor | None = None
    ) -> Cache:
        """A ring buffer that has seen nothing but `anchor` (B,C,h,w).

        Args:
            anchor: clean frame.
            states: `(B,S)` normalised proprioception at the first frame to come.
            dtype: of keys and values.
            carried: `(B,2)` as in `forward`.
        """
        c, batch, device = self.config, len(anchor), anchor.device
        shape = (c.depth, batch, c.heads, c.window, c.tokens, c.width // c.heads)
        return Cache(
            torch.zeros(shape, device=device, dtype=dtype),
            torch.zeros(shape, device=device, dtype=dtype),
            torch.zeros(batch, dtype=torch.long, device=device),
            anchor.to(dtype),
            torch.zeros(batch, 2, device=device) if carried is None else carried.float().clone(),
            states.float().clone(),
            self.shift.unfold(anchor.to(dtype))
            if c.held
            else torch.zeros(batch, 0, device=device, dtype=dtype),
        )

    def step(
        self, noisy: Tensor, previous: Tensor, t: Tensor, actions: Tensor, states: Tensor, cache: Cache
    ) -> DynamicsOutput:
        """Denoise one frame, writing what it must remember into `cache` in place (`count` is the caller's to advance).

        Same arguments as `forward` without the time axis. The cost does not depend on how many frames came before.
        """
        c = self.config
        b, n = len(t), c.tokens
        if c.held:  # a second pass over the same frame adds nothing
            cache.carried.add_(self.travel(torch.stack([cache.last, states.float()], 1))[:, 1])
            cache.last.copy_(states)
        x, condition, moved = self._inputs(
            noisy, previous, t, actions, states, cache.carried, cache.anchor, cache.fine
        )
        modulation = self.modulate(condition).unflatten(-1, (6, -1))
        rows, slot = torch.arange(b, device=x.device), cache.count % c.window
        cos, sin = _rotary(cache.count, c.width // c.heads)
        cos, sin = cos[:, None, None].to(x.dtype), sin[:, None, None].to(x.dtype)
        slots = torch.arange(c.window, device=x.device)
        valid = (slots <= cache.count[:, None]).repeat_interleave(
            n, 1
        )  # slots fill in order, then all are valid
        mask = torch.zeros(valid.shape, device=x.device, dtype=x.dtype).masked_fill_(~valid, -1e4)[
            :, None, None
        ]
        for i, layer in enumerate(self.layers):
            six = (modulation + layer.modulation)[:, None]
            h = F.layer_norm(x, (c.width,)) * (1 + six[..., 1, :]) + six[..., 0, :]
            q, k, v = layer.qkv(h).chunk(3, -1)
            keys, values = cache.keys[i], cache.values[i]
            keys[rows, :, slot] = _rotate(layer.split(k), cos, sin).to(keys.dtype)
            values[rows, :, slot] = layer.split(v).to(values.dtype)
            q = _rotate(layer.split(q), cos, sin)
            x = self._mlp_and_attention(
                layer, x, six, _attend(q, keys.flatten(2, 3), values.flatten(2, 3), mask)
            )
        return DynamicsOutput(*self._outputs(x, condition, previous, moved))
