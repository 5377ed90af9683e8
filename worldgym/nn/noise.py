"""Noise processes and samplers of noise levels, with one convention: t in [0, 1], t = 0 clean, t = 1 pure noise.

The project itself uses flow matching (Lipman et al. 2023; Liu et al. 2023): `x_t = (1 - t) x + t eps`, `v = eps - x`.
`DiffusersNoise` gives the processes of diffusers' schedulers (DDPM with epsilon or v prediction) the same interface.

Example::

    noisy = FLOW.add(x, eps, t)                 # t (B,) or (B, T), one level per frame
    loss = (net(noisy, t) - FLOW.target(x, eps, t)).square().mean()
    t = MixedTimes(uniform, pure=0.8)((8, 20), generator)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from worldgym.errors import ConfigError
from worldgym.utils.devices import CPU, rand, randn

TimeSampler = Callable[[Sequence[int], "torch.Generator | None"], Tensor]
"""`sampler(shape, generator)` draws noise levels in [0, 1], float32, one per token group."""


@runtime_checkable
class NoiseProcess(Protocol):
    """Forward noise process and prediction target of a network."""

    def add(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Noisy data `x_t`; `t` has the leading axes of `x`."""
        ...

    def target(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Prediction target of the network."""
        ...

    def clean(self, x_t: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        """Convert a prediction to clean data."""
        ...


def expand(t: Tensor, like: Tensor) -> Tensor:
    """Append axes of length 1 to `t` until it has as many as `like`."""
    return t.reshape(*t.shape, *(1,) * (like.ndim - t.ndim))


@dataclass(frozen=True)
class FlowNoise:
    """Flow matching along straight lines: `x_t = (1 - t) x + t eps`.

    Args:
        predicts: `velocity`, `v = eps - x`, or `clean`, x itself.
        least: minimum of t where it is a divisor; smaller values count as `least`.

    Raises:
        ConfigError: an unknown value of `predicts`.
    """

    predicts: str = "velocity"
    least: float = 1e-3

    def __post_init__(self) -> None:
        if self.predicts not in ("velocity", "clean"):
            raise ConfigError(f"predicts must be 'velocity' or 'clean', got {self.predicts!r}")

    def add(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Noisy data `x_t`; `t` has the leading axes of `x`."""
        level = expand(t, x)
        return (1 - level) * x + level * eps

    def target(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Prediction target of the network."""
        return x if self.predicts == "clean" else eps - x

    def clean(self, x_t: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        """Convert a prediction at `x_t` to clean data: `x = x_t - t v`."""
        return predicted if self.predicts == "clean" else x_t - expand(t, x_t) * predicted

    def velocity(self, x_t: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        """Convert a prediction at `x_t` to a velocity: `v = (x_t - x) / t`."""
        if self.predicts == "velocity":
            return predicted
        return (x_t - predicted) / expand(t, x_t).clamp_min(self.least)


FLOW = FlowNoise()


class DiffusersNoise:
    """The process of a diffusers scheduler with `add_noise` and `get_velocity`, such as `DDPMScheduler`.

    Args:
        scheduler: its `config.prediction_type` is `epsilon`, `v_prediction` or `sample`.

    Raises:
        ConfigError: another prediction type, or a scheduler without noise levels.
    """

    def __init__(self, scheduler: Any) -> None:
        if not hasattr(scheduler, "alphas_cumprod"):
            raise ConfigError(
                f"{type(scheduler).__name__} has no alphas_cumprod; give a DDPM-like scheduler, or use FlowNoise()"
            )
        if scheduler.config.prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise ConfigError(f"unknown prediction_type {scheduler.config.prediction_type!r}")
        self.scheduler = scheduler

    def steps(self, t: Tensor) -> Tensor:
        """The scheduler's integer step of each level t: 0 is its cleanest, the last its noisiest."""
        return (t * (self.scheduler.config.num_train_timesteps - 1)).round().long()

    def _signal(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.scheduler.alphas_cumprod.to(like.device)[self.steps(t)]
        return expand(alpha.sqrt(), like), expand((1 - alpha).sqrt(), like)

    def add(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Noisy data `x_t`; `t` has the leading axes of `x`."""
        signal, noise = self._signal(t, x)
        return signal * x + noise * eps

    def target(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Prediction target of the network."""
        kind = self.scheduler.config.prediction_type
        if kind == "sample":
            return x
        if kind == "epsilon":
            return eps
        signal, noise = self._signal(t, x)
        return signal * eps - noise * x

    def clean(self, x_t: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        """Convert a prediction at `x_t` to clean data."""
        kind = self.scheduler.config.prediction_type
        if kind == "sample":
            return predicted
        signal, noise = self._signal(t, x_t)
        return (x_t - noise * predicted) / signal if kind == "epsilon" else signal * x_t - noise * predicted


def residual_velocity(out: Tensor, x: Tensor, before: Tensor, t: Tensor, deviation: float) -> Tensor:
    """The velocity at `x (...,C,h,w)` of a network output `out`, if the clean frame is close to the frame before.

    If the clean frame is normal around `before`, with standard deviation s, the best guess of the velocity at
    `x = (1 - t) clean + t noise` is `((t - s^2 (1 - t)) x - t before) / d`, `d = s^2 (1 - t)^2 + t^2`, and its error
    has the deviation `s / sqrt(d)`. The network predicts that error in units of its deviation, as in EDM (Karras et al.
    2022, section 5); with outputs of zero nothing moves.

    Args:
        out: output of the network.
        x: noisy frame.
        before: clean frame before it.
        t: noise level, with the leading axes of `x`.
        deviation: s.
    """
    s, level = deviation, expand(t, x)
    d = s**2 * (1 - level).square() + level.square()
    return ((level - s**2 * (1 - level)) * x - level * before) / d + s * out / d.sqrt()


def row_noise(keys: Tensor, count: Tensor, shape: Sequence[int]) -> Tensor:
    """Normal noise `(B,*shape)` on the CPU, so that it is identical on every device.

    Row i is a function of (keys[i], count[i]) alone, so the futures of a row do not depend on the other rows.

    Args:
        keys: `(B,)` int64 noise keys.
        count: `(B,)` int64, such as the number of the frame.
        shape: shape of a row.
    """
    out = torch.empty(len(keys), *shape, device="cpu")
    generator = torch.Generator()
    for row, (key, number) in enumerate(zip(keys.tolist(), count.tolist(), strict=True)):
        generator.manual_seed((key * 1_000_003 + number) % (2**63))
        torch.randn(tuple(shape), generator=generator, out=out[row])
    return out


# -- levels ------------------------------------------------------------------------------------------------------------
def uniform(shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
    """Levels drawn uniformly from [0, 1)."""
    return rand(shape, generator, CPU)


@dataclass(frozen=True)
class LogitNormalTimes:
    """`t = sigmoid(n)`, n normal (Esser et al. 2024, section 3.1).

    Args:
        mean: mean of n; values above 0 give more noise.
        std: standard deviation of n.
    """

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Draw noise levels."""
        return (self.mean + self.std * randn(shape, generator, CPU)).sigmoid()


@dataclass(frozen=True)
class PowerTimes:
    """`t = 1 - s (1 - u^(1/a))`, u uniform: the levels of pi0 (arXiv 2410.24164, section IV), noisier for a > 1.

    Args:
        a: `1 - (1 - t) / s` is beta(a, 1) distributed.
        s: largest 1 - t.
    """

    a: float = 1.5
    s: float = 0.999

    def __call__(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Draw noise levels."""
        u = rand(shape, generator, CPU)
        return 1 - self.s * (1 - u ** (1 / self.a))


@dataclass(frozen=True)
class BetaTimes:
    """Levels from Beta(a, 1), `t = u^(1/a)`: mostly noise for a > 1 (DreamZero-Flash, arXiv 2602.15922: a = 7).

    Args:
        a: first parameter.
    """

    a: float = 7.0

    def __call__(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Draw noise levels."""
        return rand(shape, generator, CPU) ** (1 / self.a)


@dataclass(frozen=True)
class ShiftedTimes:
    """Levels of another sampler, shifted to noise: `t' = s t / (1 + (s - 1) t)` (Esser et al. 2024, section 5.3.2).

    Args:
        inner: the other sampler.
        shift: s; 1 means no shift.
    """

    inner: TimeSampler = uniform
    shift: float = 3.0

    def __call__(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Draw noise levels."""
        t = self.inner(shape, generator)
        return shifted(t, self.shift)


@dataclass(frozen=True)
class MixedTimes:
    """Pure noise for a fraction of the groups, levels of another sampler for the rest.

    Args:
        inner: the other sampler.
        pure: fraction of groups with t = 1, in [0, 1].
    """

    inner: TimeSampler = uniform
    pure: float = 0.5

    def __call__(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Draw noise levels."""
        chosen = rand(shape, generator, CPU) < self.pure
        levels = self.inner(shape, generator)
        return torch.where(chosen.to(levels.device), torch.ones_like(levels), levels)


def shifted(t: Any, shift: float) -> Any:
    """Compute `s t / (1 + (s - 1) t)` for a number or a tensor."""
    return shift * t / (1 + (shift - 1) * t)
