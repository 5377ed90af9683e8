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

from worldgym.evaluation.fidelity import auroc
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
        """Probability that a successful sequence gets a higher score than a failing one; None without either."""
        return self._interval(lambda rows: auroc(self.scores[rows], self.true[rows]))

    def gap(self) -> Interval | None:
        """Mean score of the successful minus that of the failing sequences; None without either."""

        def difference(rows: NDArray[np.int64]) -> float | None:
            scores, true = self.scores[rows], self.true[rows]
            return float(scores[true].mean() - scores[~true].mean()) if true.any() and not true.all() else None

        return self._interval(difference)

    def _rate(self, among: NDArray[np.bool_]) -> Interval | None:
        def share(rows: NDArray[np.int64]) -> float | None:
            chosen = among[rows]
            return float((self.scores[rows][chosen] >= self.threshold).mean()) if chosen.any() else None

        return self._interval(share, int(among.sum()))

    @cached_property
    def _draws(self) -> list[NDArray[np.int64]]:
        """Sequences of the starts that each resample draws."""
        names, place = np.unique(self.starts, return_inverse=True)
        rows = [np.flatnonzero(place == i) for i in range(len(names))]
        rng = np.random.default_rng(0)
        return [np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))]) for _ in range(DRAWS)]

    def _interval(
        self, statistic: Callable[[NDArray[np.int64]], float | None], count: int | None = None
    ) -> Interval | None:
        """95 % percentile interval of a statistic of the sequences; draws without a value are left out."""
        mean = statistic(np.arange(len(self.true))) if len(self.true) else None
        if mean is None:
            return None
        drawn = [value for value in (statistic(rows) for rows in self._draws) if value is not None]
        low, high = np.quantile(drawn, [0.025, 0.975])
        return Interval(mean, min(mean, float(low)), max(mean, float(high)), count or len(self.true))
