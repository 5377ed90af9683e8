"""Sampling of video and actions of one block, with DreamZero's shortcuts as options (`JointSampling`).

Example::

    block = Denoiser(model, clean, states, words)             # keys and values of the given tokens, once
    video, actions = block.velocities(x, t_video, a, t_action, there)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from worldgym.models.joint.network import Inputs, JointOutput
from worldgym.nn import KVCache, Reuse, Reused, SequenceLayout, residual_velocity
from worldgym.utils.devices import autocast


class Denoiser:
    """The network with the given tokens of B sequences: frames, proprioception, instruction.

    Args:
        model: a `JointModel`.
        clean: `(B,m,C,h,w)` the m frames before the block.
        states: `(B,S)` normalised proprioception at the last of them.
        words: `(B,E)` standardised embedding of the instruction, zeros for none.
        video: whether the future frame is part of the sequence; only a family whose actions do not see it can leave it
            out.
        guided: whether the velocity of the frame is guided, which takes a second pass without the instruction.
    """

    def __init__(
        self, model: Any, clean: Tensor, states: Tensor, words: Tensor, *, video: bool = True, guided: bool = False
    ) -> None:
        c = self.config = model.config
        self.model, self.sampling, self.guided = model, c.sampling, guided
        self.rule = c.kind.rule()
        layout = c.kind.step(c.sizes(clean.shape[1]))
        kept = [i for i, s in enumerate(layout.segments) if video or s.clean or s.role != "video"]
        layout = layout.select(kept)
        self.query = layout
        self.caches: list[KVCache | None] = [None, None]
        self.before = clean[:, -1]
        b = len(clean)
        self.inputs = Inputs(
            words, clean, states[:, None], clean[:, -1:], clean[:, -1:], clean.new_zeros(b, 1),
            clean.new_zeros(b, 1, c.chunk, c.action_dim),
            torch.ones(b, 1, c.chunk, dtype=torch.bool, device=clean.device), clean.new_zeros(b, 1),
        )  # fmt: skip
        inference = not torch.is_grad_enabled()
        self.compiled = self.sampling.compile and inference and b == 1
        if (
            self.sampling.cache and c.kind.cached and inference and not self.compiled
        ):  # writes in place have no gradient
            given = [i for i, s in enumerate(layout.segments) if s.clean]
            self.query = layout.select([i for i in range(len(layout.segments)) if i not in given])
            self.caches[0] = self._prefix(layout.select(given), layout, self.inputs)
            if guided and self.sampling.guidance != 1:
                self.caches[1] = self._prefix(layout.select(given), layout, self.inputs.without_words())

    def _prefix(self, given: SequenceLayout, layout: SequenceLayout, inputs: Inputs) -> KVCache:
        """Keys and values of the given tokens."""
        cache: KVCache = self.model.network.body.empty_cache(len(inputs.words), layout.length, layout.kinds)
        self._run(given, inputs, cache)
        return cache

    def _run(self, layout: SequenceLayout, inputs: Inputs, cache: KVCache | None) -> JointOutput:
        with autocast(inputs.words.device, self.sampling.dtype != "float32", always=True):
            out: JointOutput = self.model.network(
                layout, self.rule, inputs, cache=cache, compiled=self.compiled
            )
        return out

    def velocities(
        self, x: Tensor | None, t_video: Tensor, a: Tensor, t_action: Tensor, there: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor]:
        """Velocities of the frame `(B,C,h,w)`, None without it, and of the actions `(B,K,A)`.

        Args:
            x: `(B,C,h,w)` noisy frame, or None.
            t_video: `(B,)` its noise level.
            a: `(B,K,A)` noisy actions.
            t_action: `(B,)` their noise level.
            there: `(B,K)` bool, which actions there are; None for all.
        """
        changes = {
            "actions": a[:, None],
            "action_levels": t_action[:, None],
            "video_levels": t_video[:, None],
        }
        if x is not None:
            changes["video"] = x[:, None]
        if there is not None:
            changes["there"] = there[:, None]
        inputs = Inputs(**{**vars(self.inputs), **changes})
        out = self._pass(inputs, True)
        actions = out.actions[:, 0] if out.actions.shape[1] else torch.zeros_like(a)
        if x is None or not out.video.shape[1]:
            return None, actions
        video = self._velocity(out, x, t_video)
        if self.guided and self.sampling.guidance != 1:
            without = self._velocity(self._pass(inputs.without_words(), False), x, t_video)
            video = without + self.sampling.guidance * (video - without)
        return video, actions

    def _velocity(self, out: JointOutput, x: Tensor, t: Tensor) -> Tensor:
        return residual_velocity(out.video[:, 0], x, self.before, t, self.config.residual)

    def _pass(self, inputs: Inputs, worded: bool) -> JointOutput:
        cache = self.caches[0 if worded else 1]
        out = self._run(self.query, inputs, cache)
        if cache is not None:
            cache.retreat(self.query.length)
        return out


class Stream:
    """Velocities of the actions of a block along decreasing noise levels; the frame, if it is sampled, follows them.

    It has the interface that the flow head of a policy expects of its features.

    Args:
        block: the network with the given tokens.
        video: `(B,C,h,w)` noise of the frame, or None without it.
        sampled: whether the frame is denoised with the actions; else it stays pure noise.
        reused: decides which passes run the network (`worldgym.nn.Reused`).
    """

    def __init__(self, block: Denoiser, video: Tensor | None, sampled: bool, reused: Any) -> None:
        self.block, self.video, self.sampled, self.reused = block, video, sampled, reused
        self._at: float | None = None
        self._of: Tensor | None = None
        self._passes = 0
        self._velocity: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.block.before)

    @property
    def device(self) -> torch.device:
        """Device of the inputs."""
        return self.block.before.device

    def _level(self, t: float) -> float:
        """Noise level of the frame when the actions are at `t`."""
        if not self.sampled:
            return 1.0
        end = self.block.config.video_end
        return t * (1 - end) + end

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """Velocity `(B,K,A)` of the actions `x` at level `t (B,)`, which falls from call to call or stays."""
        level = float(t[0])
        if self._at == level and self._of is x:
            return self._velocity[-1]
        if self._at is not None and level != self._at:
            if self.sampled and self.video is not None:
                step = self._level(level) - self._level(self._at)
                self.video = self.video + step * self._velocity[0]
            self._passes += 1
        video = torch.full_like(t, self._level(level))

        def compute() -> tuple[Tensor, ...]:
            of_video, of_actions = self.block.velocities(self.video, video, x, t)
            return (of_video, of_actions) if self.sampled and of_video is not None else (of_actions,)

        self._velocity = self.reused(self._passes, compute)
        self._at, self._of = level, x
        return self._velocity[-1]


def imagine(
    block: Denoiser, noise: Tensor, action_noise: Tensor, actions: Tensor, there: Tensor
) -> tuple[Tensor, Tensor]:
    """The frame after given actions, `(B,C,h,w)`, and the variance of what the model thinks possible, `(B,)`.

    With coupled noise levels the actions get the level of the frame at every step, as in RePaint (Lugmayr et al. 2022),
    because the network never saw clean actions beside a noisy frame. Else they are given clean.

    Velocities are reused by a static plan only: an adaptive one depends on the batch, and rows must not.

    The variance is the mean squared distance of the sample from the estimate of the first pass, which at pure noise is
    the conditional mean.

    Args:
        block: the network with the given tokens.
        noise: `(B,C,h,w)` noise of the frame.
        action_noise: `(B,K,A)` noise of the actions.
        actions: `(B,K,A)` in [-1, 1].
        there: `(B,K)` bool, which actions there are.
    """
    coupled = block.config.drawn_levels == "coupled"
    steps, x, first = block.sampling.steps, noise, None
    reuse = block.sampling.reuse
    reused = Reused(reuse if reuse.plan == "static" else Reuse(), steps)
    for i in range(steps):
        level, after = 1 - i / steps, 1 - (i + 1) / steps
        t = torch.full((len(x),), level, device=x.device)
        known = level if coupled else 0.0
        a = (1 - known) * actions + known * action_noise
        (velocity,) = reused(i, lambda x=x, t=t, a=a, known=known: (_frame(block, x, t, a, known, there),))
        first = x - level * velocity if first is None else first
        x = x + (after - level) * velocity
    assert first is not None
    return x, (x - first).square().mean((1, 2, 3))


def _frame(block: Denoiser, x: Tensor, t: Tensor, actions: Tensor, known: float, there: Tensor) -> Tensor:
    """Velocity of the frame `x` at level `t`, beside actions at the level `known`."""
    velocity, _ = block.velocities(x, t, actions, torch.full_like(t, known), there)
    assert velocity is not None
    return velocity
