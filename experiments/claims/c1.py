"""C1: RL inside the world model beats supervised fine-tuning in Real.

Example::

    from experiments.claims.c1 import CLAIM
    CLAIM.refuted_if
"""

from __future__ import annotations

from experiments.claims.claim import Claim, Ruling, difference, said
from experiments.claims.figures import gains, way
from experiments.claims.presets import ClaimPreset
from experiments.claims.records import Records

RL, SFT, BC = ("C1", "imagined_rl"), ("C1", "sft"), ("C1", "bc_only")
ARMS = (SFT, BC, ("C1", "filtered_bc"), ("C1", "iter_sft"), RL)


def rule(records: Records, preset: ClaimPreset, seeds: list[int]) -> Ruling:
    """Against SFT greedily and sampled, and against as many updates of cloning alone."""
    effect = difference(records, RL, SFT, seeds)
    sampled = difference(records, RL, SFT, seeds, "seen/sampled")
    updates = difference(records, RL, BC, seeds)
    why = f"imagined RL less SFT {said(effect)}; sampled {said(sampled)}; less as many updates of BC {said(updates)}"
    if effect.low <= 0:
        return Ruling(False, effect, f"{why}; the first interval does not lie above 0")
    if min(sampled.low, updates.low) <= 0:
        return Ruling(None, effect, f"{why}; sharpening or more updates may do as well")
    return Ruling(True, effect, f"{why}; all intervals lie above 0")


def figures(records: Records, preset: ClaimPreset, seeds: list[int]) -> dict[str, str]:
    """Gains over the others; imagined and true success on the way."""
    return {**gains(records, RL, [arm for arm in ARMS if arm != RL]), **way(records, RL)}


CLAIM = Claim(
    "C1",
    "RL inside the world model beats supervised fine-tuning in Real",
    "World-Gymnast (arXiv 2602.02454): 2.4 times SFT's success over four tasks",
    "the interval of the paired difference of success in Real, imagined RL less SFT, does not lie above 0",
    arms=lambda preset: ARMS,
    needs=lambda preset: ARMS,
    rule=rule,
    figures=figures,
)
