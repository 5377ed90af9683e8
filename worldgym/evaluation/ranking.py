"""Agreement of two rankings of policies, e.g. imagined and real: Pearson, Spearman and mean maximum rank violation.

Example::

    agreement(imagined, real)      # two (P, N) boolean tables: P policies on the same N starts
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson correlation; nan if one of the inputs is constant."""
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / scale) if scale > 0 else float("nan")


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman rank correlation; ties get their mean rank."""
    return pearson(rankdata(x), rankdata(y))


def mmrv(x: ArrayLike, y: ArrayLike) -> float:
    """Mean maximum rank violation of evaluator `x` against true values `y` (SIMPLER, Li et al. 2024, section 4).

    For each policy, the largest true difference to a policy that the evaluator ranks in the wrong order; the mean over
    policies is returned. 0 is a perfect ranking.
    """
    estimate, true = np.asarray(x, np.float64), np.asarray(y, np.float64)
    gap = np.abs(true[:, None] - true[None])
    wrong = (estimate[:, None] < estimate[None]) != (true[:, None] < true[None])
    return float((gap * wrong).max(1).mean())


def agreement(said: np.ndarray, true: np.ndarray, *, seed: int = 0, resamples: int = 2000) -> dict[str, Any]:
    """`{"pearson", "spearman", "mmrv"}` of success rates, each `{"mean", "low", "high", "policies"}`.

    The 95 % intervals cover the choice of the starts, for the given policies.

    Args:
        said: `(P, N)` bool, estimated success of P policies on N starts.
        true: `(P, M)` bool, true success; paired with `said` by start if M == N.
        seed: seed of the bootstrap over starts.
        resamples: number of bootstrap resamples.

    Raises:
        ValueError: there are fewer than three policies, or the tables differ in their number of policies.
    """
    if said.ndim != 2 or true.ndim != 2 or len(said) != len(true) or len(said) < 3:
        raise ValueError(
            f"agreement needs two tables of at least 3 policies, got {said.shape} and {true.shape}"
        )
    rng = np.random.default_rng(seed)
    rates = np.empty((resamples, 2, len(said)))
    for sample in rates:
        i = rng.integers(said.shape[1], size=said.shape[1])
        j = i if true.shape[1] == said.shape[1] else rng.integers(true.shape[1], size=true.shape[1])
        sample[0], sample[1] = said[:, i].mean(1), true[:, j].mean(1)
    ranks = rankdata(rates, axis=2)  # of all resamples at once, which is ten times as fast
    measures = {"pearson": (pearson, rates), "spearman": (pearson, ranks), "mmrv": (mmrv, rates)}
    given = np.stack([said.mean(1), true.mean(1)])
    values = {"pearson": pearson(*given), "spearman": spearman(*given), "mmrv": mmrv(*given)}
    return {
        name: {
            **_around(values[name], [measure(*pair) for pair in drawn], name == "mmrv"),
            "policies": len(said),
        }
        for name, (measure, drawn) in measures.items()
    }


def _around(value: float, drawn: list[float], plain: bool) -> dict[str, float]:
    """Normal interval around `value` with the standard deviation of the resamples.

    Correlations are transformed by Fisher's z = atanh r, unless `plain`. Percentiles of the resamples are not used: a
    resample adds the noise of the starts a second time, which lowers every correlation, so that the percentiles of a
    high correlation are below it.
    """
    limit = 1 - 1e-9

    def transform(x: Any) -> Any:
        return x if plain else np.arctanh(np.clip(x, -limit, limit))

    defined = [x for x in drawn if not np.isnan(x)]
    if not defined or np.isnan(value):
        return {"mean": value, "low": float("nan"), "high": float("nan")}
    half = 1.959964 * float(np.std(transform(np.array(defined))))
    low, high = float(transform(value)) - half, float(transform(value)) + half
    bounds = (max(0.0, low), high) if plain else (float(np.tanh(low)), float(np.tanh(high)))
    return {"mean": value, "low": min(value, bounds[0]), "high": max(value, bounds[1])}
