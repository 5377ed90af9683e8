"""C17: denoising world-model learning (DWL) on the tabletop's states, trained in Soft and measured in Real.

The hand reaches for an object that noisy, late sensors show (`experiments.pipelines.dwl`): noise of 0.1 m, latency of
two steps, randomised dynamics in Soft. All arms take as many environment steps. Within the whole horizon of 40 steps
every arm reaches nearly every object, so the outcome is success within 10 steps (2 s). Outcome, noise and number of
steps were fixed with one seed, which is not among those of the verdict: training seed s here is seed s + 1 there.

Example::

    from experiments.claims.c17 import CLAIM
    CLAIM.refuted_if
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.claims.arms import Arm, Trained
from experiments.claims.claim import Claim, Ruling, said
from experiments.claims.context import ClaimContext
from experiments.claims.presets import ClaimPreset
from experiments.claims.records import Records, pack
from experiments.pipelines.dwl import ARMS, DWLSettings, run_arm
from experiments.reports.charts import IntervalRow, interval_chart, standalone
from worldgym.evaluation.statistics import Interval, seeds_bootstrap

NAME = "C17"
NOISE, LEVELS, WITHIN = 0.1, (0.1, 0.0), 10
LABELS = {
    "plain": "PPO with history", "own": "PPO, reconstructs its own observation", "dwl": "DWL",
    "teacher_student": "teacher and student", "oracle": "PPO on the true state",
}  # fmt: skip
PLAIN, OWN, DWL, TEACHER, ORACLE = ((NAME, f"dwl-{arm}") for arm in ARMS)
EXPLORED = 1
"""Seeds that were used to fix the settings, the lowest ones."""


def _arm(name: str) -> Arm:
    def train(lab: ClaimContext, seed: int, folder: Path) -> Trained:
        preset = lab.preset
        settings = DWLSettings(episodes=preset.episodes)
        found = run_arm(name, seed + EXPLORED, NOISE, preset.dwl_steps, settings, LEVELS)
        return Trained(lab.sft, {"soft_steps": float(preset.dwl_steps)}, settings=found)

    return Arm(f"dwl-{name}", LABELS[name], train, measure=measure)


def measure(lab: ClaimContext, made: Trained) -> dict[str, Any]:
    """Success within `WITHIN` steps and within the horizon, by noise of the sensors in Real."""
    found = {}
    for level, row in made.settings["real"].items():
        success, length = np.array(row["success"], bool), np.array(row["length"])
        found[f"real/{level}"] = {"success": pack(success & (length <= WITHIN))}
        found[f"horizon/{level}"] = {"success": pack(success)}
    return found


def difference(
    records: Records, a: tuple[str, str], b: tuple[str, str], seeds: list[int], level: float = NOISE
) -> Interval:
    """Success of arm `a` within the limit minus that of arm `b`, paired by start."""
    return seeds_bootstrap(*(records.outcomes(*arm, f"real/{level:g}", seeds) for arm in (a, b)))


def rule(records: Records, preset: ClaimPreset, seeds: list[int]) -> Ruling:
    """Compare DWL with plain PPO and with the teacher-student baseline, under noise."""
    effect, second = difference(records, DWL, PLAIN, seeds), difference(records, DWL, TEACHER, seeds)
    why = f"DWL minus PPO with history: {said(effect)}; DWL minus teacher and student: {said(second)}"
    if min(effect.mean, second.mean) <= 0:
        return Ruling(False, effect, f"{why}; DWL is not above both")
    if min(effect.low, second.low) > 0:
        return Ruling(True, effect, f"{why}; both intervals are above 0")
    return Ruling(None, effect, f"{why}; DWL is above both in the mean, but not both intervals are above 0")


def figures(records: Records, preset: ClaimPreset, seeds: list[int]) -> dict[str, str]:
    """Chart of the differences between DWL and the other arms."""
    rows = []
    for other in (PLAIN, OWN, TEACHER, ORACLE):
        if set(seeds) <= set(records.seeds(*other)):
            d = difference(records, DWL, other, seeds)
            rows.append(IntervalRow(f"minus {LABELS[other[1].removeprefix('dwl-')]}", d.mean, d.low, d.high))
    return {"gains": standalone(interval_chart(rows, zero=True, width=760))} if rows else {}


def tables(records: Records, preset: ClaimPreset, seeds: list[int]) -> str:
    """Success within the limit and within the horizon, by arm, seed and noise in Real."""
    columns = [f"{what}/{level:g}" for level in LEVELS for what in ("real", "horizon")]
    limits = {"real": f"within {WITHIN} steps", "horizon": "within 40 steps"}
    heads = [f"{limits[what]}, noise {level:g} m" for level in LEVELS for what in limits]
    lines = ["| arm | " + " | ".join(heads) + " |", "|---|" + "---|" * len(columns)]
    for arm in (PLAIN, OWN, DWL, TEACHER, ORACLE):
        if set(seeds) <= set(records.seeds(*arm)):
            cells = [" / ".join(f"{row.mean():.2f}" for row in records.outcomes(*arm, c, seeds)) for c in columns]
            lines.append(f"| {LABELS[arm[1].removeprefix('dwl-')]} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "By seed. All arms were trained at a noise of 0.1 m."]) + "\n"


CLAIM = Claim(
    NAME,
    "a policy that learns to reconstruct the true state from noisy sensors acts better under noise",
    "DWL (arXiv 2408.14472): zero-shot on a humanoid, one training phase in place of teacher and student",
    "the mean success of DWL within 10 steps under noise is not above that of PPO with history, or not above that of "
    "teacher and student",
    arms=lambda preset: [PLAIN, OWN, DWL, TEACHER, ORACLE],
    needs=lambda preset: [PLAIN, DWL, TEACHER],
    rule=rule,
    figures=figures,
    tables=tables,
    own_arms=tuple(map(_arm, ARMS)),
)
