"""Claims: arms, an effect size, and the rule that supports or refutes the claim.

Published effect sizes are given for comparison; they are not targets. A refuted claim is a result, too.

Example::

    verdict = CLAIMS["C1"].decide(Records(folder, "small"), PRESETS["small"])
    verdict.verdict, verdict.effect, verdict.why      # "supported", Interval(...), "..."
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from experiments.claims.arms import SHARED_ARMS, Arm
from experiments.claims.presets import ClaimPreset
from experiments.claims.records import Records
from worldgym.errors import ConfigError
from worldgym.evaluation.statistics import Interval, seeds_bootstrap, seeds_ratio

SUPPORTED, REFUTED, INCONCLUSIVE = "supported", "refuted", "inconclusive"
NOT_MEASURED = "not measured"
ENOUGH_SEEDS = 3


@dataclass(frozen=True)
class Verdict:
    """Outcome of a claim's rule.

    Args:
        verdict: `supported`, `refuted`, `inconclusive`, or `not measured` while results are missing.
        effect: the effect on which the verdict is based, with its interval; None while results are missing.
        seeds: number of training seeds that the effect is computed from.
        why: the reason, in one sentence with numbers.
        ratio: success of the claim's method divided by that of the arm that it is compared with (C1 and E2: SFT; C2: RL
            in Soft at the frozen gap); None for other claims.
    """

    verdict: str
    effect: Interval | None
    seeds: int
    why: str
    ratio: Interval | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of `worldgym claims report --json`."""
        facts = {"verdict": self.verdict, "effect": _plain(self.effect), "seeds": self.seeds, "why": self.why}
        return facts if self.ratio is None else {**facts, "ratio": _plain(self.ratio)}


def _plain(interval: Interval | None) -> dict[str, float] | None:
    if interval is None:
        return None
    return {k: round(v, 4) for k, v in interval.to_dict().items() if k != "episodes"}


class Ruling(NamedTuple):
    """Result of a claim's rule: whether the claim holds (None: undecided), the effect, the reason, a ratio or None."""

    holds: bool | None
    effect: Interval
    why: str
    ratio: Interval | None = None


@dataclass(frozen=True)
class Claim:
    """A published claim as an experiment.

    Args:
        name: identifier, such as `C1`.
        title: the claim as one sentence.
        source: publication, with the published effect size.
        refuted_if: the rule in words.
        arms: maps a preset to its arms in the order of the tables, each as `(claim that owns the result, arm)`.
        needs: the subset of `arms` without which the rule cannot be applied.
        rule: maps results to a `Ruling`, on the seeds that all needed arms have.
        figures: maps results to SVG charts by name.
        tables: markdown that the page shows besides success, splits and cost.
        own_arms: arms that only this claim defines; each must be seeded.
    """

    name: str
    title: str
    source: str
    refuted_if: str
    arms: Callable[[ClaimPreset], Sequence[tuple[str, str]]]
    needs: Callable[[ClaimPreset], Sequence[tuple[str, str]]]
    rule: Callable[[Records, ClaimPreset, list[int]], Ruling]
    figures: Callable[[Records, ClaimPreset, list[int]], dict[str, str]]
    tables: Callable[[Records, ClaimPreset, list[int]], str] = lambda records, preset, seeds: ""
    own_arms: tuple[Arm, ...] = ()

    def seeds(self, records: Records, preset: ClaimPreset) -> tuple[list[int], list[str]]:
        """Return the seeds that all needed arms have, and the needed arms without results."""
        return common_seeds(records, self.needs(preset))

    def decide(self, records: Records, preset: ClaimPreset) -> Verdict:
        """Apply the rule. The verdict is `not measured` without results, and `inconclusive` with too few seeds."""
        seeds, absent = self.seeds(records, preset)
        if absent:
            return Verdict(NOT_MEASURED, None, 0, f"arms without results: {', '.join(absent)}")
        if mixed := self.mixed(records, preset, seeds):
            why = f"its results are of different checkpoints ({mixed}); type: worldgym claims run {self.name} --again"
            return Verdict(INCONCLUSIVE, None, 0, why)
        ruling = self.rule(records, preset, seeds)
        if len(seeds) < ENOUGH_SEEDS:
            why = f"{ruling.why}; only {len(seeds)} of the {ENOUGH_SEEDS} required seeds"
            return Verdict(INCONCLUSIVE, ruling.effect, len(seeds), why, ruling.ratio)
        verdict = {True: SUPPORTED, False: REFUTED, None: INCONCLUSIVE}[ruling.holds]
        return Verdict(verdict, ruling.effect, len(seeds), ruling.why, ruling.ratio)

    def mixed(self, records: Records, preset: ClaimPreset, seeds: Sequence[int]) -> str:
        """Parts of the checkpoint that differ between the needed results, with their hashes; "" if none does."""
        found: dict[str, set[str]] = {}
        for owner, arm in self.needs(preset):
            for seed in [0] if unseeded(arm) else seeds:
                for name, value in records.read(owner, arm, seed)["hashes"].items():
                    found.setdefault(name, set()).add(str(value))
        return "; ".join(f"{name} {', '.join(sorted(v))}" for name, v in found.items() if len(v) > 1)


def common_seeds(records: Records, arms: Sequence[tuple[str, str]]) -> tuple[list[int], list[str]]:
    """Return the seeds for which all of these arms are finished, and the arms without any result.

    Unseeded arms have only seed 0 and do not restrict the seeds.
    """
    found: list[set[int]] = []
    absent = []
    for owner, arm in arms:
        seeds = set(records.seeds(owner, arm))
        if not seeds:
            absent.append(f"{owner}-{arm}")
        elif not unseeded(arm):
            found.append(seeds)
    shared = sorted(set.intersection(*found)) if found and not absent else []
    if not absent and found and not shared:
        absent = ["a common seed of all arms"]
    return shared, absent


def unseeded(arm: str) -> bool:
    """Whether an arm is identical for all seeds. Only shared arms can be."""
    return any(shared.name == arm and not shared.seeded for shared in SHARED_ARMS)


def all_arms(claims: Iterable[Claim]) -> dict[str, Arm]:
    """Return the shared arms and the arms of `claims`, by name.

    Raises:
        ConfigError: two arms have the same name, or a claim's own arm is unseeded.
    """
    found = {arm.name: arm for arm in SHARED_ARMS}
    for claim in claims:
        for arm in claim.own_arms:
            if arm.name in found or not arm.seeded:
                raise ConfigError(
                    f"the arm {arm.name!r} of {claim.name} is defined twice, or it is unseeded. Give it another name, "
                    "or move it to SHARED_ARMS"
                )
            found[arm.name] = arm
    return found


def difference(
    records: Records, a: tuple[str, str], b: tuple[str, str], seeds: Sequence[int], what: str = "seen/greedy"
) -> Interval:
    """Success of arm `a` minus success of arm `b`, paired by start; bootstrap over training seeds and starts."""
    return seeds_bootstrap(*_paired(records, a, b, seeds, what))


def ratio(
    records: Records, a: tuple[str, str], b: tuple[str, str], seeds: Sequence[int], what: str = "seen/greedy",
    rows: slice = slice(None),
) -> Interval | None:  # fmt: skip
    """Success of arm `a` divided by that of arm `b`, resampled as in `difference`, on the starts `rows`.

    Returns None if `b` never succeeds.
    """
    first, second = (table[:, rows] for table in _paired(records, a, b, seeds, what))
    return seeds_ratio(first, second) if second.any() else None


def _paired(
    records: Records, a: tuple[str, str], b: tuple[str, str], seeds: Sequence[int], what: str
) -> list[np.ndarray]:
    rows = [records.outcomes(*arm, what, [0] if unseeded(arm[1]) else seeds) for arm in (a, b)]
    if len(rows[0]) < len(rows[1]):  # an unseeded arm is compared with a seeded one
        rows[0] = rows[0].repeat(len(rows[1]), 0)
    return rows


def by_gain(effect: Interval, why: str) -> Ruling:
    """Ruling of a claim that a difference is above 0: refuted if its mean is not, open if the interval contains 0."""
    if effect.mean <= 0:
        return Ruling(False, effect, f"{why}; no gain")
    if effect.low > 0:
        return Ruling(True, effect, why)
    return Ruling(None, effect, f"{why}; the mean is above 0, but the interval contains 0")


def times(interval: Interval | None) -> str:
    """Format a ratio with its interval."""
    return "-" if interval is None else f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def said(interval: Interval) -> str:
    """Format a difference in percentage points with its interval."""
    return f"{100 * interval.mean:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}] points"
