"""Confidence intervals for success rates, paired differences and the confusion matrix of a judge.

Means over sixty episodes are off by 8 to 15 percentage points. Every rate therefore has a Wilson interval, and every
comparison is a bootstrap over the *same* start states: "A beats B" means that the 95 % interval of the paired
difference excludes 0. The module needs only NumPy and does not import torch.

Example::

    from worldgym.evaluation import paired_bootstrap, wilson
    wilson(150, 200)                            # Interval(mean=0.75, low=0.686, high=0.805, n=200)
    paired_bootstrap(after, before, seed=0)     # mean of after - before, with its interval
    Confusion.of(imagined, true).precision      # Interval, or None if no success was predicted
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Interval:
    """A mean with a 95 % interval.

    Args:
        mean: point estimate.
        low: lower end of the interval, <= mean.
        high: upper end of the interval, >= mean.
        n: number of episodes (or pairs).
    """

    mean: float
    low: float
    high: float
    n: int

    def excludes(self, value: float = 0.0) -> bool:
        """Whether the interval lies entirely on one side of `value`."""
        return self.low > value or self.high < value

    def to_dict(self, count_key: str = "episodes") -> dict[str, float | int]:
        """`{"mean", "low", "high", count_key}`, the format in results.json."""
        return {"mean": self.mean, "low": self.low, "high": self.high, count_key: self.n}

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(successes: int, n: int, z: float = Z95) -> Interval:
    """Wilson score interval of a binomial rate; valid also at 0 % and 100 %, where the normal interval has no width.

    Args:
        successes: number of successes, 0 <= successes <= n.
        n: number of episodes, >= 1.
        z: normal quantile; the default gives 95 %.

    Raises:
        ValueError: n < 1, or `successes` is out of range.
    """
    successes, n = int(successes), int(n)
    if n < 1:
        raise ValueError(f"wilson needs at least one episode, got n={n}; evaluate on some start states first")
    if not 0 <= successes <= n:
        raise ValueError(f"wilson needs 0 <= successes <= n, got successes={successes}, n={n}")
    rate = successes / n
    denominator = 1.0 + z * z / n
    centre = (rate + z * z / (2 * n)) / denominator
    half = z / denominator * float(np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)))
    # At rates of 0 and 1 one end equals the estimate exactly, but rounding may move it past the estimate.
    return Interval(rate, max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half)), n)


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    *,
    seed: int | np.random.Generator = 0,
    n_boot: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """Percentile-bootstrap interval of `mean(a - b)` over paired per-start outcomes.

    Args:
        a: `(N,)` outcomes (success 0/1, or progress) of one policy, in the order of the starts.
        b: `(N,)` outcomes of the other policy on the same starts in the same order.
        seed: integer seed or NumPy generator of the bootstrap.
        n_boot: number of resamples.
        level: confidence level, 0.95 by default.

    Returns:
        Mean difference with its interval; the difference is significant if the interval excludes 0.

    Raises:
        ValueError: the outcomes are not one-dimensional, of equal length and finite.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(
            f"paired_bootstrap needs two lists of outcomes of equal length, got shapes {first.shape} and "
            f"{second.shape}; evaluate both policies on the same starts"
        )
    if not first.size:
        raise ValueError("paired_bootstrap needs at least one pair, got none")
    difference = first - second
    if not np.isfinite(difference).all():
        raise ValueError("paired_bootstrap got outcomes that are not finite")
    rng = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)
    n = difference.size
    # Resampling N pairs is equivalent to a multinomial draw over the distinct differences (at most three for 0/1
    # outcomes), which needs no (n_boot, N) array.
    values, counts = np.unique(difference, return_counts=True)
    means = rng.multinomial(n, counts / n, size=n_boot) @ values / n
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    mean = float(difference.mean())
    return Interval(mean, min(mean, float(low)), max(mean, float(high)), n)


def resampled_means(table: ArrayLike, *, seed: int = 0, n_boot: int = 10_000) -> NDArray[np.float64]:
    """`(n_boot,)` means of an outcome table `(S, N)` over resampled training seeds and starts.

    Tables of the same shape get the same draws, so statistics computed from several tables are paired.
    """
    table = np.asarray(table, np.float64)
    seeds, starts = table.shape
    seed_counts, start_counts = _resamples(seeds, starts, seed, n_boot)
    return np.einsum("bs,sn,bn->b", seed_counts / seeds, table, start_counts / starts, optimize=True)


@functools.lru_cache(maxsize=4)
def _resamples(seeds: int, starts: int, seed: int, n_boot: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """How often each seed `(n_boot,S)` and each start `(n_boot,N)` is drawn; a page needs the same draws many times.

    The counts give a weighted mean, which needs no `(n_boot,S,N)` array.
    """
    rng = np.random.default_rng(seed)
    drawn = [rng.multinomial(n, np.full(n, 1 / n), n_boot).astype(np.int32) for n in (seeds, starts)]
    for counts in drawn:
        counts.flags.writeable = False
    return drawn[0], drawn[1]


def seeds_bootstrap(
    a: ArrayLike, b: ArrayLike, *, seed: int = 0, n_boot: int = 10_000, level: float = 0.95
) -> Interval:
    """Bootstrap interval of `mean(a - b)` over both training seeds and starts.

    A resample draws S seeds and N starts, both with replacement; all seeds use the same starts (paired across
    policies). With a single seed only the starts vary, so the interval does not cover the variation between training
    runs.

    Args:
        a: `(S, N)` outcomes of one method; one row per training seed, one column per start.
        b: `(S, N)` outcomes of the other method, or `(1, N)` if it has no training seed, e.g. an untrained policy.
        seed: seed of the bootstrap.
        n_boot: number of resamples.
        level: confidence level.

    Raises:
        ValueError: the shapes of the tables do not match, or an outcome is not finite.
    """
    first, second = _paired_tables(a, b)
    difference = first - second
    drawn = resampled_means(difference, seed=seed, n_boot=n_boot)
    return _bounded(float(difference.mean()), drawn, level, difference.size)


def seeds_ratio(
    a: ArrayLike, b: ArrayLike, *, seed: int = 0, n_boot: int = 10_000, level: float = 0.95
) -> Interval:
    """Bootstrap interval of `mean(a) / mean(b)`; arguments and resampling as in `seeds_bootstrap`.

    Published gains are often ratios ("2.4 times"). In contrast to a difference, a ratio grows without bound as the
    success rate of the weaker method approaches zero.

    Raises:
        ValueError: the shapes of the tables do not match, or `b` has no success.
    """
    first, second = _paired_tables(a, b)
    if not second.any():
        raise ValueError("seeds_ratio needs successes in the second table; without any, report the difference")
    second = np.broadcast_to(second, first.shape)
    above, below = (resampled_means(table, seed=seed, n_boot=n_boot) for table in (first, second))
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = np.where(below > 0, above / below, np.inf)
    return _bounded(float(first.mean() / second.mean()), drawn, level, first.size)


def _paired_tables(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = np.atleast_2d(np.asarray(a, np.float64)), np.atleast_2d(np.asarray(b, np.float64))
    if first.ndim != 2 or first.shape[1] != second.shape[1] or len(second) not in (1, len(first)) or not first.size:
        raise ValueError(
            f"expected tables (seeds, starts) over the same starts, got {first.shape} and {second.shape}"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("outcomes must be finite; drop episodes without an outcome from both tables")
    return first, second


def _bounded(mean: float, drawn: NDArray[np.float64], level: float, size: int) -> Interval:
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], method="linear" if np.isfinite(drawn).all() else "nearest")
    return Interval(mean, min(mean, float(low)), max(mean, float(high)), size)


@dataclass(frozen=True)
class Confusion:
    """Confusion counts of imagined (predicted) and real success; false positives are the most harmful for RL.

    Args:
        fp: imagined success, real failure.
        tp: imagined success, real success.
        fn: imagined failure, real success.
        tn: imagined failure, real failure.
    """

    fp: int = 0
    tp: int = 0
    fn: int = 0
    tn: int = 0

    @classmethod
    def of(cls, predicted: ArrayLike, true: ArrayLike) -> Confusion:
        """Count from two `(N,)` boolean lists.

        Raises:
            ValueError: the lists differ in shape.
        """
        imagined, real = np.asarray(predicted, dtype=bool), np.asarray(true, dtype=bool)
        if imagined.shape != real.shape:
            raise ValueError(f"predicted and true outcomes differ in shape: {imagined.shape} and {real.shape}")
        return cls(
            fp=int((imagined & ~real).sum()),
            tp=int((imagined & real).sum()),
            fn=int((~imagined & real).sum()),
            tn=int((~imagined & ~real).sum()),
        )

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.fp + other.fp, self.tp + other.tp, self.fn + other.fn, self.tn + other.tn)

    @property
    def n(self) -> int:
        """Number of episodes."""
        return self.fp + self.tp + self.fn + self.tn

    @property
    def precision(self) -> Interval | None:
        """Share of imagined successes that are also real successes; None if there are no imagined ones."""
        return wilson(self.tp, self.tp + self.fp) if self.tp + self.fp else None

    @property
    def recall(self) -> Interval | None:
        """Share of real successes that are also imagined successes; None if there are no real ones."""
        return wilson(self.tp, self.tp + self.fn) if self.tp + self.fn else None

    @property
    def accuracy(self) -> Interval | None:
        """Share of episodes where imagined and real success agree; None if there are no episodes."""
        return wilson(self.tp + self.tn, self.n) if self.n else None

    def to_dict(self) -> dict[str, Any]:
        """Counts, false positives first, then precision, recall and accuracy (None where undefined)."""
        rates = {name: getattr(self, name) for name in ("precision", "recall", "accuracy")}
        return {**asdict(self), **{k: v.to_dict() if v is not None else None for k, v in rates.items()}}


def mean_interval(values: Sequence[float] | np.ndarray, *, seed: int = 0, n_boot: int = 10_000) -> Interval:
    """Bootstrap interval of a mean, for outcomes that are not 0/1 (task progress)."""
    array = np.asarray(values, dtype=np.float64)
    return paired_bootstrap(array, np.zeros_like(array), seed=seed, n_boot=n_boot)
