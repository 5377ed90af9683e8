"""C1: RL inside the world model beats supervised fine-tuning in Real.

Example::

    from experiments.claims.c1 import CLAIM
    CLAIM.refuted_if
"""

from __future__ import annotations

from experiments.claims.claim import Claim, Ruling, difference, ratio, said, times
from experiments.claims.figures import gains, way
from experiments.claims.presets import SPLITS, ClaimPreset
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


def tables(records: Records, preset: ClaimPreset, seeds: list[int]) -> str:
    """Success over that of SFT, as World-Gymnast reports it, and the most that it could be: 1 over SFT's."""
    tasks = records.read(*RL, seeds[0])["tasks"]
    parts = [(split, f"{split}/greedy", slice(None)) for split in SPLITS]
    parts += [(f"seen, {task}", "seen/greedy", slice(i, None, len(tasks))) for i, task in enumerate(tasks)]
    lines = ["| starts | imagined RL / SFT | the most it could be |", "|---|---|---|"]
    for name, what, rows in parts:
        base = float(records.outcomes(*SFT, what, [0])[:, rows].mean())
        most = f"{1 / base:.2f}" if base else "-"
        lines.append(f"| {name} | {times(ratio(records, RL, SFT, seeds, what, rows))} | {most} |")
    return "\n".join(lines) + "\n"


CLAIM = Claim(
    "C1",
    "RL inside the world model beats supervised fine-tuning in Real",
    "World-Gymnast (arXiv 2602.02454): 2.4 times SFT's success over four tasks",
    "the interval of the paired difference of success in Real, imagined RL less SFT, does not lie above 0",
    arms=lambda preset: ARMS,
    needs=lambda preset: ARMS,
    rule=rule,
    figures=figures,
    tables=tables,
)
