"""What a claim is: arms, a number, and the rule that refutes it.

Published magnitudes are context, never targets. A refuted claim is a result.

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
ENOUGH_SEEDS = 3


@dataclass(frozen=True)
class Verdict:
    """What the results say.

    Args:
        verdict: `supported`, `refuted` or `inconclusive`.
        effect: the number that decides, with its interval; None while results are missing.
        seeds: behind it.
        why: the rule, applied.
    """

    verdict: str
    effect: Interval | None
    seeds: int
    why: str

    def to_dict(self) -> dict[str, Any]:
        """For `worldgym claims report --json`."""
        effect = (
            None
            if self.effect is None
            else {k: round(v, 4) for k, v in self.effect.to_dict().items() if k != "episodes"}
        )
        return {"verdict": self.verdict, "effect": effect, "seeds": self.seeds, "why": self.why}


class Ruling(NamedTuple):
    """What a claim's rule says of results: whether they support it (None: neither way), the number, and why."""

    holds: bool | None
    effect: Interval
    why: str


@dataclass(frozen=True)
class Claim:
    """A published claim as an experiment.

    Args:
        name: such as `C1`.
        title: what is claimed.
        source: who claims it, with the published magnitude.
        refuted_if: the rule in words.
        arms: of a preset, in the order of the tables; `(claim that owns the result, arm)`.
        needs: those of them without which nothing is decided.
        rule: applied to results, on the seeds that all needed arms have.
        figures: name -> SVG, of results.
        tables: markdown of what this claim shows beside success, cost and splits.
        own_arms: arms that this claim brings, beside the shared ones; each has seeds.
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
        """Seeds that all needed arms have, and the needed arms that are absent."""
        return common_seeds(records, self.needs(preset))

    def decide(self, records: Records, preset: ClaimPreset) -> Verdict:
        """The rule, or why it cannot be applied yet: results are missing, or seeds too few."""
        seeds, absent = self.seeds(records, preset)
        if absent:
            return Verdict(
                INCONCLUSIVE, None, 0, f"{self.name} needs results that are missing: {', '.join(absent)}"
            )
        ruling = self.rule(records, preset, seeds)
        if len(seeds) < ENOUGH_SEEDS:
            why = f"{ruling.why}; {len(seeds)} of {ENOUGH_SEEDS} seeds"
            return Verdict(INCONCLUSIVE, ruling.effect, len(seeds), why)
        verdict = {True: SUPPORTED, False: REFUTED, None: INCONCLUSIVE}[ruling.holds]
        return Verdict(verdict, ruling.effect, len(seeds), ruling.why)


def common_seeds(records: Records, arms: Sequence[tuple[str, str]]) -> tuple[list[int], list[str]]:
    """Seeds for which all of these arms are finished (arms that have only seed 0 need no other), and absent arms."""
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
        absent = ["a seed that all arms have"]
    return shared, absent


def unseeded(arm: str) -> bool:
    """Whether an arm is the same for all seeds; only shared arms can be."""
    return any(shared.name == arm and not shared.seeded for shared in SHARED_ARMS)


def all_arms(claims: Iterable[Claim]) -> dict[str, Arm]:
    """The shared arms and those of `claims`, by name.

    Raises:
        ConfigError: two arms of one name, or a claim's own arm that is the same for all seeds.
    """
    found = {arm.name: arm for arm in SHARED_ARMS}
    for claim in claims:
        for arm in claim.own_arms:
            if arm.name in found or not arm.seeded:
                raise ConfigError(
                    f"the arm {arm.name!r} of {claim.name} exists already, or has no seeds; give it another name, or "
                    "put it into SHARED_ARMS"
                )
            found[arm.name] = arm
    return found


def difference(
    records: Records, a: tuple[str, str], b: tuple[str, str], seeds: Sequence[int], what: str = "seen/greedy"
) -> Interval:
    """Success of arm `a` less that of arm `b`, paired by start, over training seeds and starts."""
    return seeds_bootstrap(*_paired(records, a, b, seeds, what))


def ratio(
    records: Records, a: tuple[str, str], b: tuple[str, str], seeds: Sequence[int], what: str = "seen/greedy",
    rows: slice = slice(None),
) -> Interval | None:  # fmt: skip
    """Success of arm `a` over that of arm `b`, likewise; on the starts `rows`. None where `b` never succeeds."""
    first, second = (table[:, rows] for table in _paired(records, a, b, seeds, what))
    return seeds_ratio(first, second) if second.any() else None


def _paired(
    records: Records, a: tuple[str, str], b: tuple[str, str], seeds: Sequence[int], what: str
) -> list[np.ndarray]:
    rows = [records.outcomes(*arm, what, [0] if unseeded(arm[1]) else seeds) for arm in (a, b)]
    if len(rows[0]) < len(rows[1]):  # an arm without seeds against one with them
        rows[0] = rows[0].repeat(len(rows[1]), 0)
    return rows


def times(interval: Interval | None) -> str:
    """A ratio with its interval."""
    return "-" if interval is None else f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def said(interval: Interval) -> str:
    """Points with their interval."""
    return f"{100 * interval.mean:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}] points"
