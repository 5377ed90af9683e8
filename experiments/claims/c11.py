"""C11: the error of the predicted frames predicts failure.

The policies and world models are the DreamZero arms of C8, each predicting its own chunks in Real. The score is the
mean error of the first two chunks (2 seconds), among the episodes that go on after them; the control is the change
of the frame, for which no world model is needed (`worldgym.evaluation.surprise`).

Example::

    from experiments.claims.c11 import CLAIM
    CLAIM.refuted_if
"""

from __future__ import annotations

import numpy as np

from experiments.claims.c8 import JOINT
from experiments.claims.claim import Claim, Ruling
from experiments.claims.joint_arms import SURPRISE
from experiments.claims.presets import ClaimPreset
from experiments.claims.records import Records, unpack
from worldgym.evaluation.fidelity import auroc
from worldgym.evaluation.statistics import Interval

NAME = "C11"
LEAST = 0.65


def scores(records: Records, seed: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Score and failure of every episode that goes on after two chunks."""
    found = records.read(*JOINT, seed)["evaluations"][SURPRISE]
    value = np.array([np.nan if x is None else x for x in found[what]], float)
    open_ = np.isfinite(value)
    return value[open_], ~unpack(found["success"])[open_]


def pooled(records: Records, seeds: list[int], what: str, n_boot: int = 2000) -> Interval | None:
    """Mean AUROC over seeds, with a bootstrap over seeds and episodes; None if a seed has no failure or no success."""
    rng, tables = np.random.default_rng(0), [scores(records, seed, what) for seed in seeds]
    values = [auroc(*table) for table in tables]
    if any(value is None for value in values):
        return None
    drawn = []
    for _ in range(n_boot):
        again = []
        for number in rng.integers(0, len(tables), len(tables)):
            score, failed = tables[number]
            rows = rng.integers(0, len(score), len(score))
            again.append(auroc(score[rows], failed[rows]))
        kept = [value for value in again if value is not None]
        if kept:
            drawn.append(np.mean(kept))
    low, high = np.percentile(drawn, [2.5, 97.5])
    mean = float(np.mean([value for value in values if value is not None]))
    return Interval(
        mean, float(min(low, mean)), float(max(high, mean)), sum(len(score) for score, _ in tables)
    )


def rule(records: Records, preset: ClaimPreset, seeds: list[int]) -> Ruling:
    """Compare the AUROC of the error with the bound; that of the change of the frame is reported."""
    effect, change = (pooled(records, seeds, what) for what in ("errors", "changes"))
    if effect is None:
        return Ruling(
            None, Interval(0.5, 0.0, 1.0, 0), "a seed has only failures or only successes after two chunks"
        )
    other = "-" if change is None else f"{change.mean:.2f} [{change.low:.2f}, {change.high:.2f}]"
    why = (
        f"AUROC of the error of the first two chunks {effect.mean:.2f} [{effect.low:.2f}, {effect.high:.2f}], of the "
        f"change of the frame {other}"
    )
    if effect.mean <= LEAST:
        return Ruling(False, effect, why)
    if effect.low > LEAST:
        return Ruling(True, effect, why)
    return Ruling(None, effect, f"{why}; the interval contains {LEAST}")


CLAIM = Claim(
    NAME,
    "the prediction error of a joint model's video predicts that the episode fails",
    "DreamZero (arXiv 2602.15922) reports that wrong video comes with wrong actions, without a figure",
    f"the mean AUROC of the error of the first two chunks for failure is at most {LEAST}",
    arms=lambda preset: [JOINT],
    needs=lambda preset: [JOINT],
    rule=rule,
    figures=lambda records, preset, seeds: {},
)
