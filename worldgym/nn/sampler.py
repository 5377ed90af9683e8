"""Samplers from noise to data: Euler steps, fresh noise at every pass, and diffusers' schedulers, with one interface.

diffusers is imported only when one of its samplers is created, which takes several seconds.

Example::

    x = Euler(steps=10).sample(lambda x, t: net(x, t), noise)            # net predicts the velocity
    x = make_sampler("unipc", steps=8).sample(lambda x, t: net(x, t), noise)
    x = renoise(predict_clean, torch.zeros_like(noise), (1.0, 0.5), [noise])
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from worldgym.errors import ConfigError
from worldgym.nn.noise import shifted

Predict = Callable[[Tensor, Tensor], Tensor]
"""`predict(x_t, t)` with `t (B,)` in [0, 1]: the velocity `eps - x`, or epsilon for `ddim`."""
Answer = TypeVar("Answer")
SAMPLERS = ("euler", "flow_euler", "ddim", "unipc")


@runtime_checkable
class Sampler(Protocol):
    """Generates data from noise by several passes of a network."""

    def sample(self, predict: Predict, noise: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Generate data from `noise (B, ...)`; the result has the same shape."""
        ...


def levels(steps: int, shift: float = 1.0) -> list[float]:
    """Noise levels of `steps` passes, from 1 downwards, even or shifted towards noise; the last step ends at 0."""
    if steps < 1:
        raise ConfigError(f"a sampler needs at least 1 step, got {steps}")
    return [shifted(1.0 - i / steps, shift) for i in range(steps)]


@dataclass(frozen=True)
class Euler:
    """Straight steps along the velocity: `x += (t' - t) v`.

    Args:
        steps: passes of the network.
        shift: shifts the levels towards noise; 1 means evenly spaced.
    """

    steps: int = 10
    shift: float = 1.0

    def sample(self, predict: Predict, noise: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Generate data from `noise (B, ...)`; no further random numbers are drawn."""
        times, x = [*levels(self.steps, self.shift), 0.0], noise
        for t, after in zip(times[:-1], times[1:], strict=True):
            x = x + (after - t) * predict(x, torch.full((len(x),), t, device=x.device))
        return x


class DiffusersSampler:
    """A diffusers scheduler as a sampler.

    Args:
        scheduler: has `set_timesteps`, `timesteps` and `step`; its prediction type defines the output of `predict`.
        steps: passes of the network.
    """

    def __init__(self, scheduler: Any, steps: int) -> None:
        if steps < 1:
            raise ConfigError(f"a sampler needs at least 1 step, got {steps}")
        self.scheduler, self.steps = scheduler, steps

    def sample(self, predict: Predict, noise: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Generate data from `noise (B, ...)`."""
        scheduler, x = self.scheduler, noise
        scheduler.set_timesteps(self.steps, device=noise.device)
        count = scheduler.config.num_train_timesteps
        flow = hasattr(scheduler, "sigmas") and not getattr(
            scheduler.config, "prediction_type", ""
        ).startswith("eps")
        x = x * getattr(scheduler, "init_noise_sigma", 1.0)
        draws = "generator" in inspect.signature(scheduler.step).parameters
        extra = {"generator": generator} if draws and generator is not None else {}
        for step in scheduler.timesteps:
            t = step / count if flow else step / (count - 1)
            level = torch.full((len(x),), float(t), device=x.device)
            x = scheduler.step(predict(x, level), step, x, return_dict=False, **extra)[0]
        return x


def make_sampler(name: str, steps: int, shift: float = 1.0) -> Sampler:
    """Create a sampler by name.

    Args:
        name: `euler`, our own; `flow_euler`, diffusers' FlowMatchEulerDiscreteScheduler; `unipc`, its
            UniPCMultistepScheduler on flow levels (Zhao et al. 2023); these three use velocities. `ddim`, its
            DDIMScheduler (Song et al. 2021), uses epsilon.
        steps: passes of the network.
        shift: shifts flow levels towards noise; 1 means evenly spaced.

    Raises:
        ConfigError: an unknown name, or a shift other than 1 for `ddim`.
    """
    if name not in SAMPLERS:
        raise ConfigError(f"unknown sampler {name!r}; the samplers are {', '.join(SAMPLERS)}")
    if name == "euler":
        return Euler(steps, shift)
    if name == "ddim":
        if shift != 1.0:
            raise ConfigError("ddim has its own noise levels; leave shift at 1")
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        return DiffusersSampler(DDIMScheduler(clip_sample=False), steps)
    if name == "flow_euler":
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

        return DiffusersSampler(FlowMatchEulerDiscreteScheduler(shift=shift), steps)
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, final_sigmas_type="zero"
    )
    return DiffusersSampler(scheduler, steps)


def renoise(
    answer: Callable[[Tensor, float], Answer],
    clean: Callable[[Answer], Tensor],
    start: Tensor,
    times: Sequence[float],
    noise: Callable[[int], Tensor],
    runs: Callable[[int], bool] = lambda i: True,
) -> Answer:
    """Run several passes, adding fresh noise to the clean prediction between them; returns the network's last output.

    Each pass predicts the clean data. The next pass gets that prediction with noise of a lower level
    (the stochastic sampler of consistency models: Song et al. 2023, algorithm 1).

    Args:
        answer: `answer(x_t, t)` runs the network.
        clean: extracts the clean data from an output.
        start: input of the first pass.
        times: noise levels of the passes, descending from 1.
        noise: `noise(i)`, shaped like `start`, added after pass i.
        runs: whether the network runs at pass i; otherwise its last output is reused.
    """
    x, out = start, None
    for i, t in enumerate(times):
        if out is None or runs(i):
            out = answer(x, t)
        if i + 1 < len(times):
            x = (1 - times[i + 1]) * clean(out) + times[i + 1] * noise(i)
    assert out is not None
    return out
