"""C16: a penalty on epistemic uncertainty, and true success over its weight, in the setting of RWM-U.

States in place of pictures: an ensemble of recurrent models is trained on 60 logged episodes of mixed quality, PPO
practises in its imagination alone with reward `r - lambda * u`, and the policy is measured in Real
(`experiments.pipelines.rwm_u`). The moderate weight, 3, and the number of steps were fixed with one seed, which is not
among those of the verdict: training seed s here is seed s + 1 there.

Example::

    from experiments.claims.c16 import CLAIM
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
from experiments.pipelines.rwm_u import PENALTIES, RwmUSettings, run_arm
from experiments.reports.charts import IntervalRow, interval_chart, standalone
from worldgym.evaluation.statistics import Interval, seeds_bootstrap

NAME = "C16"
TRUE, IMAGINED = "states/true", "states/imagined"
ARMS = {penalty: (NAME, f"lambda-{penalty:g}") for penalty in PENALTIES}
NONE, MODERATE, LARGE = (ARMS[penalty] for penalty in (0.0, 3.0, 10.0))
EXPLORED = 1
"""Seeds that were used to fix the settings, the lowest ones."""


def _arm(penalty: float) -> Arm:
    def train(lab: ClaimContext, seed: int, folder: Path) -> Trained:
        preset = lab.preset
        settings = RwmUSettings(model_steps=preset.state_updates, audit_episodes=preset.episodes)
        shared = lab.folder("states_shared", seed)
        found = run_arm(
            penalty, seed + EXPLORED, preset.state_episodes, preset.state_steps, settings=settings, out=shared
        )
        budget = {"real_episodes": float(preset.state_episodes), "imagined_steps": float(preset.state_steps)}
        return Trained(lab.sft, budget, settings=found)

    return Arm(f"lambda-{penalty:g}", f"PPO on states, lambda {penalty:g}", train, measure=measure)


def measure(lab: ClaimContext, made: Trained) -> dict[str, Any]:
    """True success by start, and imagined success from held-out starts."""
    names = {TRUE: "success_by_start", IMAGINED: "imagined_by_start"}
    return {key: {"success": pack(np.array(made.settings[name], bool))} for key, name in names.items()}


def difference(records: Records, a: tuple[str, str], b: tuple[str, str], seeds: list[int]) -> Interval:
    """True success of arm `a` minus that of arm `b`, paired by start."""
    return seeds_bootstrap(records.outcomes(*a, TRUE, seeds), records.outcomes(*b, TRUE, seeds))


def rule(records: Records, preset: ClaimPreset, seeds: list[int]) -> Ruling:
    """Compare lambda 3 with no penalty and with the largest one."""
    effect, second = difference(records, MODERATE, NONE, seeds), difference(records, MODERATE, LARGE, seeds)
    why = f"true success at lambda 3 minus lambda 0: {said(effect)}; minus lambda 10: {said(second)}"
    if min(effect.mean, second.mean) <= 0:
        return Ruling(False, effect, f"{why}; there is no maximum at lambda 3")
    if min(effect.low, second.low) > 0:
        return Ruling(True, effect, f"{why}; both intervals are above 0")
    return Ruling(None, effect, f"{why}; both means are above 0, but not both intervals")


def figures(records: Records, preset: ClaimPreset, seeds: list[int]) -> dict[str, str]:
    """Chart of true success over lambda."""
    rows = []
    for penalty, arm in ARMS.items():
        if set(seeds) <= set(records.seeds(*arm)):
            table = records.outcomes(*arm, TRUE, seeds)
            rate = seeds_bootstrap(table, np.zeros((1, table.shape[1])))
            rows.append(IntervalRow(f"lambda {penalty:g}", rate.mean, rate.low, rate.high))
    return {"lambda": standalone(interval_chart(rows))} if rows else {}


def tables(records: Records, preset: ClaimPreset, seeds: list[int]) -> str:
    """True and imagined success by lambda and seed, with the uncertainty under the policy."""
    head = "| lambda | true success, by seed | imagined success, by seed | uncertainty per step |"
    lines = [head, "|---|---|---|---|"]
    for penalty, arm in ARMS.items():
        if not set(seeds) <= set(records.seeds(*arm)):
            continue
        cells = [
            " / ".join(f"{row.mean():.2f}" for row in records.outcomes(*arm, what, seeds)) for what in (TRUE, IMAGINED)
        ]
        doubt = np.mean([records.read(*arm, seed)["settings"]["imagined_uncertainty"] for seed in seeds])
        lines.append(f"| {penalty:g} | {' | '.join(cells)} | {doubt:.2f} |")
    facts = [records.read(*NONE, seed)["settings"] for seed in seeds]
    spearman = " / ".join(f"{row['spearman']:.2f}" for row in facts if row["spearman"] is not None)
    logs = " / ".join(f"{row['log_success']:.2f}" for row in facts)
    note = (
        f"Rank correlation of uncertainty and true 8-step error: {spearman}. Success of the logs: {logs}. An imagined "
        "episode is successful when the model's probability of success exceeds 0.5 at a step."
    )
    return "\n".join([*lines, "", note]) + "\n"


CLAIM = Claim(
    NAME,
    "a penalty on the ensemble's uncertainty raises true success, and a large one lowers it",
    "RWM-U (arXiv 2504.16680): without a penalty imagined and true return part; true return has a maximum over lambda",
    "the mean true success at lambda 3 is not above that at lambda 0, or not above that at lambda 10",
    arms=lambda preset: list(ARMS.values()),
    needs=lambda preset: [NONE, MODERATE, LARGE],
    rule=rule,
    figures=figures,
    tables=tables,
    own_arms=tuple(map(_arm, PENALTIES)),
)
