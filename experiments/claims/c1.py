"""C1: RL in the world model achieves higher success in Real than supervised fine-tuning (SFT).

Example::

    from experiments.claims.c1 import CLAIM
    CLAIM.refuted_if
"""

from __future__ import annotations

from experiments.claims.claim import Claim, Ruling, difference, ratio, said, times
from experiments.claims.figures import gains, way
from experiments.claims.presets import ClaimPreset
from experiments.claims.records import Records

RL, SFT, BC = ("C1", "imagined_rl"), ("C1", "sft"), ("C1", "bc_only")
ARMS = (SFT, BC, ("C1", "filtered_bc"), ("C1", "iter_sft"), RL)


def rule(records: Records, preset: ClaimPreset, seeds: list[int]) -> Ruling:
    """Compare with SFT (greedy and sampled actions), and with behaviour cloning with as many updates."""
    effect = difference(records, RL, SFT, seeds)
    sampled = difference(records, RL, SFT, seeds, "seen/sampled")
    updates = difference(records, RL, BC, seeds)
    why = (
        f"imagined RL minus SFT: {said(effect)} (with sampled actions {said(sampled)}); imagined RL minus BC with as "
        f"many updates: {said(updates)}"
    )
    multiple = ratio(records, RL, SFT, seeds)
    if effect.low <= 0:
        return Ruling(False, effect, f"{why}; the first interval is not above 0", multiple)
    if min(sampled.low, updates.low) <= 0:
        why = f"{why}; sharper action distributions or more updates may explain the gain"
        return Ruling(None, effect, why, multiple)
    return Ruling(True, effect, f"{why}; all intervals are above 0", multiple)


def figures(records: Records, preset: ClaimPreset, seeds: list[int]) -> dict[str, str]:
    """Charts of the gains over the other arms, and of imagined and true success during training."""
    return {**gains(records, RL, [arm for arm in ARMS if arm != RL]), **way(records, RL)}


def tables(records: Records, preset: ClaimPreset, seeds: list[int]) -> str:
    """Ratio of success to that of SFT, as World-Gymnast reports it, with its upper bound (1 / success of SFT)."""
    tasks = records.read(*RL, seeds[0])["tasks"]
    parts = [(split, f"{split}/greedy", slice(None)) for split in preset.splits]
    parts += [(f"seen, {task}", "seen/greedy", slice(i, None, len(tasks))) for i, task in enumerate(tasks)]
    lines = ["| starts | imagined RL / SFT | upper bound (1 / SFT) |", "|---|---|---|"]
    for name, what, rows in parts:
        base = float(records.outcomes(*SFT, what, [0])[:, rows].mean())
        most = f"{1 / base:.2f}" if base else "-"
        lines.append(f"| {name} | {times(ratio(records, RL, SFT, seeds, what, rows))} | {most} |")
    return "\n".join(lines) + "\n"


CLAIM = Claim(
    "C1",
    "RL in the world model achieves higher success in Real than supervised fine-tuning (SFT)",
    "World-Gymnast (arXiv 2602.02454): 2.4 times the success of SFT over four tasks",
    "the interval of the paired difference in success in Real, imagined RL minus SFT, is not above 0",
    arms=lambda preset: ARMS,
    needs=lambda preset: ARMS,
    rule=rule,
    figures=figures,
    tables=tables,
)
