"""Velocity caching: a sampler reuses the last output of the network at some passes (DreamZero, arXiv 2602.15922).

Any sampler of flows can use it: it asks a `Reused` for the outputs of pass i, and gives it a function that computes
them. The sampler still takes every step, with its own noise level.

Example::

    reused = Reused(Reuse(plan="static", passes=6), steps=16)
    for i, t in enumerate(levels):
        velocity, = reused(i, lambda: (net(x, t),))
    reused.computed                                    # 6
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from worldgym.errors import ConfigError

STATIC: dict[int, tuple[int, ...]] = {
    5: (0, 1, 2, 7, 12),
    6: (0, 1, 5, 10, 14, 15),
    7: (0, 1, 2, 6, 10, 14, 15),
    8: (0, 1, 2, 6, 10, 13, 14, 15),
}
"""Passes of 16 that run the network, by their number (dreamzero0/dreamzero)."""


@dataclass(frozen=True)
class Reuse:
    """Which passes run the network.

    Args:
        plan: `none`, all; `static`, `passes` of the steps, dense at the start, as in `STATIC`; `adaptive`, the first
            two and then until two consecutive velocities point the same way: a cosine above `similar[0]` skips four
            passes, one above `similar[1]` skips two.
        passes: passes that run the network, for `static`; 16 steps take 5, 6, 7 or 8, other numbers of steps spread
            them evenly from the first one.
        similar: cosines, the larger first.

    Raises:
        ConfigError: a value outside its range.
    """

    plan: Literal["none", "static", "adaptive"] = "none"
    passes: int = 6
    similar: tuple[float, float] = (0.95, 0.93)

    def __post_init__(self) -> None:
        if self.plan not in ("none", "static", "adaptive"):
            raise ConfigError(f"plan is {self.plan!r}, expected 'none', 'static' or 'adaptive'")
        if self.passes < 1:
            raise ConfigError(f"passes is {self.passes}, expected at least 1; try passes=6")
        if len(self.similar) != 2 or not 0 < self.similar[1] <= self.similar[0] < 1:
            raise ConfigError(
                f"similar is {self.similar}, expected two cosines, the larger first; try (0.95, 0.93)"
            )

    def fixed(self, steps: int) -> tuple[bool, ...] | None:
        """Whether each of `steps` passes runs the network; None if that depends on the velocities.

        Raises:
            ConfigError: more passes than steps.
        """
        if self.plan == "none":
            return (True,) * steps
        if self.plan == "adaptive":
            return None
        if self.passes > steps:
            raise ConfigError(f"{self.passes} passes do not fit into {steps} steps; give at most {steps}")
        if steps == 16 and self.passes in STATIC:
            chosen = set(STATIC[self.passes])
        else:
            chosen = {i * steps // self.passes for i in range(self.passes)}
        return tuple(i in chosen for i in range(steps))


@dataclass
class Reused:
    """Outputs of a network over the passes of one sample.

    Args:
        reuse: which passes run the network.
        steps: passes of the sampler.
    """

    reuse: Reuse
    steps: int
    computed: int = 0
    """Passes that ran the network."""
    _last: list[tuple[Tensor, ...]] = field(default_factory=list)
    _skip: int = 0

    def __call__(self, i: int, compute: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The outputs of pass i: computed, or those of the last computed pass.

        The first output decides for `adaptive`; its cosine is taken over the whole batch.
        """
        if not self._runs(i):
            return self._last[-1]
        out = compute()
        self.computed += 1
        self._last = [*self._last[-1:], out]
        return out

    def _runs(self, i: int) -> bool:
        fixed = self.reuse.fixed(self.steps)
        if fixed is not None:
            return fixed[i] or not self._last
        if len(self._last) < 2:
            return True
        if self._skip > 0:
            self._skip -= 1
            return self._skip == 0  # the pass after the skipped ones is computed
        before, last = (outputs[0].detach().flatten().float() for outputs in self._last)
        cosine = float(before @ last / (before.norm() * last.norm()).clamp_min(1e-12))
        skips = 4 if cosine > self.reuse.similar[0] else 2 if cosine > self.reuse.similar[1] else 0
        self._skip = skips
        return skips == 0
