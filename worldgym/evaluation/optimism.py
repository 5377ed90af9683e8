"""Optimism: how often failing action sequences are judged successful in imagination.

Successful and failing sequences are executed in the real domain from the same start states and imagined from them. An
optimistic world model shows success for both. The share of failures that are judged successful is meaningless alone: a
judge that never says success has none. It therefore comes with the share of successes that are recognised, with the
AUROC of the judge's probability, and with the difference of its means (the figures of CureWM, arXiv 2610.09134).

Sequences of one start are not independent, so intervals resample the starts.

Example::

    found = Optimism(starts, families, severities, scores, true, threshold=0.85)
    found.optimism(), found.auroc(), found.gap()        # Interval(mean=0.12, ...), ...
    found.of("missed_grasp", 5.0).optimism()
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from worldgym.evaluation.statistics import Interval

DRAWS = 2000
"""Resamples of the starts."""


@dataclass(frozen=True)
class Optimism:
    """Scores and true outcomes of N action sequences.

    Args:
        starts: `(N,)` int, which start state each sequence begins in.
        families: N names of perturbations.
        severities: `(N,)` float.
        scores: `(N,)`, highest probability of success that the judge stated in the episode.
        true: `(N,)` bool, success in the real domain at any check.
        threshold: probability that counts as judged successful.
    """

    starts: NDArray[np.int64]
    families: tuple[str, ...]
    severities: NDArray[np.float64]
    scores: NDArray[np.float64]
    true: NDArray[np.bool_]
    threshold: float

    def __post_init__(self) -> None:
        sizes = {name: len(getattr(self, name)) for name in ("starts", "families", "severities", "scores", "true")}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"one value per sequence is needed, got {sizes}")
        if not np.isfinite(self.scores).all():
            raise ValueError("a score is not finite; leave out the sequences that the judge did not judge")

    def where(self, chosen: NDArray[np.bool_]) -> Optimism:
        """The sequences where `chosen (N,)` is True."""
        names = tuple(name for name, keep in zip(self.families, chosen, strict=True) if keep)
        values = (self.starts[chosen], names, self.severities[chosen], self.scores[chosen], self.true[chosen])
        return Optimism(*values, self.threshold)

    def of(self, family: str, severity: float | None = None) -> Optimism:
        """The sequences of a family, optionally of one severity."""
        chosen = np.array(self.families) == family
        return self.where(chosen if severity is None else chosen & (self.severities == severity))

    def optimism(self) -> Interval | None:
        """Share of failing sequences that are judged successful; None without failures."""
        return self._rate(~self.true)

    def recognised(self) -> Interval | None:
        """Share of successful sequences that are judged successful; None without successes."""
        return self._rate(self.true)

    def auroc(self) -> Interval | None:
        """Probability that a successful sequence gets a higher score than a failing one; None without either.

        Ties count half.
        """
        good, bad = self.scores[self.true], self.scores[~self.true]
        above = (good[:, None] > bad) + 0.5 * (good[:, None] == bad)
        won = self._by_start(self.true, above)  # (S, failures)
        pairs = self._by_start(~self.true, won.T).T  # (S, S): by start of the success and of the failure
        return self._interval(
            lambda weight: np.einsum("bs,st,bt->b", weight, pairs, weight, optimize=True)
            / ((weight @ self._count(self.true)) * (weight @ self._count(~self.true))),
            len(self.true),
        )

    def gap(self) -> Interval | None:
        """Mean score of the successful minus that of the failing sequences; None without either."""

        def difference(weight: NDArray[np.float64]) -> NDArray[np.float64]:
            means = [
                weight @ self._by_start(among, self.scores[among]) / (weight @ self._count(among))
                for among in (self.true, ~self.true)
            ]
            return np.asarray(means[0] - means[1])

        return self._interval(difference, len(self.true))

    def _rate(self, among: NDArray[np.bool_]) -> Interval | None:
        hits = self._by_start(among, (self.scores[among] >= self.threshold).astype(np.float64))
        return self._interval(lambda weight: weight @ hits / (weight @ self._count(among)), int(among.sum()))

    @cached_property
    def _places(self) -> tuple[int, NDArray[np.int64]]:
        """Number of starts S, and the start of each sequence as 0 to S - 1."""
        names, places = np.unique(self.starts, return_inverse=True)
        return len(names), places

    def _by_start(self, among: NDArray[np.bool_], values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums of `values (M,...)` of the M sequences `among (N,)` by start, `(S,...)`."""
        sums = np.zeros((self._places[0], *values.shape[1:]))
        np.add.at(sums, self._places[1][among], values)
        return sums

    def _count(self, among: NDArray[np.bool_]) -> NDArray[np.float64]:
        return self._by_start(among, np.ones(int(among.sum())))

    def _interval(self, statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]], count: int) -> Interval | None:
        """95 % percentile interval of a statistic of weights `(B,S)` of the starts; draws without a value are left out.

        The first weights are ones: the estimate.
        """
        starts = self._places[0]
        if not starts:
            return None
        drawn = np.random.default_rng(0).multinomial(starts, np.full(starts, 1 / starts), DRAWS)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean, *values = statistic(np.concatenate([np.ones((1, starts)), drawn]))
        if not np.isfinite(mean):
            return None
        low, high = np.nanquantile(values, [0.025, 0.975])
        return Interval(float(mean), min(float(mean), float(low)), max(float(mean), float(high)), count)
