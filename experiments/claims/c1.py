"""C1: RL inside the world model beats supervised fine-tuning in Real.

Example::

    from experiments.claims.c1 import CLAIM
    CLAIM.refuted_if
"""

from __future__ import annotations

from experiments.claims.claim import (
    ENOUGH_SEEDS,
    INCONCLUSIVE,
    REFUTED,
    SUPPORTED,
    Claim,
    Verdict,
    common_seeds,
    difference,
    missing,
    said,
)  # fmt: skip
from experiments.claims.figures import gains, way
from experiments.claims.presets import ClaimPreset
from experiments.claims.records import Records

NAME = "C1"
RL, SFT = (NAME, "imagined_rl"), (NAME, "sft")
CONTROLS = ((NAME, "bc_only"), (NAME, "filtered_bc"), (NAME, "iter_sft"))
ARMS = (SFT, *CONTROLS, RL)


def decide(records: Records, preset: ClaimPreset) -> Verdict:
    """The rule: against SFT greedily and sampled, and against as many updates of cloning alone."""
    seeds, absent = common_seeds(records, ARMS)
    if absent:
        return missing(NAME, absent)
    effect = difference(records, RL, SFT, seeds)
    sampled = difference(records, RL, SFT, seeds, "seen/sampled")
    updates = difference(records, RL, CONTROLS[0], seeds)
    why = f"imagined RL less SFT {said(effect)}; sampled {said(sampled)}; less as many updates of BC {said(updates)}"
    if len(seeds) < ENOUGH_SEEDS:
        return Verdict(INCONCLUSIVE, effect, len(seeds), f"{why}; {len(seeds)} of {ENOUGH_SEEDS} seeds")
    if effect.low <= 0:
        return Verdict(REFUTED, effect, len(seeds), f"{why}; the first interval does not lie above 0")
    if min(sampled.low, updates.low) <= 0:
        return Verdict(INCONCLUSIVE, effect, len(seeds), f"{why}; sharpening or more updates may do as well")
    return Verdict(SUPPORTED, effect, len(seeds), f"{why}; all intervals lie above 0")


def figures(records: Records, preset: ClaimPreset) -> dict[str, str]:
    """Gains over SFT; imagined and true success on the way."""
    return {
        **gains(records, RL, [arm for arm in ARMS if arm != RL], "imagined RL less"),
        **way(records, RL, "imagined RL"),
    }


CLAIM = Claim(
    NAME,
    "RL inside the world model beats supervised fine-tuning in Real",
    "World-Gymnast (arXiv 2602.02454): 2.4 times SFT's success over four tasks",
    "the interval of the paired difference of success in Real, imagined RL less SFT, does not lie above 0",
    lambda preset: ARMS,
    decide,
    figures,
)
