"""C4: a success head that is trained in the same steps as the world model, and near successes in its data.

Three arms add as many episodes in Real to the same logs, which have no near successes, and train the bundled world
model for as many steps. Two add near misses of the demonstrators: in one the success head is trained with the dynamics
(`worldgym train world-model --success-head`), in the other afterwards, with the same loss, optimizer, batches and
number of updates, while the dynamics stays as it is (`--head-only`). The third adds demonstrations, with the head
trained along. All begin with the bundled weights of the dynamics and, if there is one, of the latent judge, which have
seen near misses.

They are measured as in C24, on perturbed demonstrations that are executed and imagined.

Example::

    from experiments.claims.c4 import CLAIM
    CLAIM.refuted_if
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from experiments.claims.arms import Arm, Trained
from experiments.claims.c24 import (
    built,
    by_start,
    episodes_stage,
    loop_cells,
    measure,
    shared_logs,
    world_model_stage,
)
from experiments.claims.claim import Claim, Ruling, said
from experiments.claims.context import ClaimContext
from experiments.claims.presets import ClaimPreset
from experiments.claims.records import Records
from worldgym.evaluation.statistics import Interval, seeds_bootstrap

NAME = "C4"
JOINT, AFTER, NO_NEAR = ((NAME, arm) for arm in ("joint_head", "head_after", "joint_head_no_near"))
LOGS = {"expert": 0.4, "noisy": 0.4, "random": 0.2}
"""Behaviours of the shared logs: without near misses."""
NEAR, DEMONSTRATIONS = {"near_miss": 1.0}, {"expert": 1.0}
COEF = 0.05
"""Weight of the success head in the loss of the world model."""
PICTURE = 0.6
"""Share of the training steps of a chunk world model in which its predictions, and so the head, are trained."""


def _initial(lab: ClaimContext) -> Path | None:
    """The latent judge of the bundle, with whose weights the head begins; None if it has none."""
    folder = lab.bundle.folder / "judge_latent"
    return folder if folder.is_dir() else None


def trained(mix: dict[str, float], joint: bool) -> Any:
    """Train function: world model and success head, with added episodes of the behaviours in `mix`."""

    def train(lab: ClaimContext, seed: int, folder: Path) -> Trained:
        from worldgym.utils.staging import copy_folder

        preset, head = lab.preset, {"success_head": COEF, "judge": _initial(lab)}
        logs = lab.once("logs without near misses", lambda: shared_logs(lab, "logs_without_near_misses", LOGS))
        copy_folder(logs, folder / "data")
        stages = [episodes_stage(lab, seed, folder, mix), world_model_stage(lab, seed, folder, head if joint else {})]
        if not joint:
            initial, out = folder / "world_model/export", folder / "head"
            after = {**head, "head_only": True, "initial": initial, "out": out}
            stages.append(dataclasses.replace(world_model_stage(lab, seed, folder, after), name="head"))
        built(NAME, tuple(stages), folder)
        updates = float(preset.world_steps + (0 if joint else round(PICTURE * preset.world_steps)))
        budget = {"real_episodes": float(preset.extra_episodes), "updates": updates}
        parts = {
            "world_model": str(folder / "world_model/export"),
            "judge": str(folder / ("world_model/judge" if joint else "head/judge")),
        }
        settings = {"mix": mix, "logs": LOGS, "coef": COEF}
        return Trained(lab.sft, budget, settings=settings, parts=parts)

    return train


OWN_ARMS = (
    Arm(JOINT[1], "success head trained with the dynamics", trained(NEAR, True), measure=measure),
    Arm(AFTER[1], "the same head trained afterwards", trained(NEAR, False), measure=measure),
    Arm(
        NO_NEAR[1], "head trained with the dynamics, no near successes", trained(DEMONSTRATIONS, True), measure=measure
    ),
)


def alignment(records: Records, arm: tuple[str, str], seeds: list[int]) -> np.ndarray:
    """Mean of the shares of failures and of successes with the right verdict in imagination: `(seeds, starts)`."""
    rows = []
    for seed in seeds:
        evaluations = records.read(*arm, seed)["evaluations"]
        both = np.intersect1d(*(evaluations[f"optimism/{what}"]["starts"] for what in ("failures", "successes")))
        failures, successes = (
            by_start(records, arm, f"optimism/{what}", [seed])[0][
                np.isin(np.unique(evaluations[f"optimism/{what}"]["starts"]), both)
            ]
            for what in ("failures", "successes")
        )
        rows.append((1 - failures + successes) / 2)
    return np.array(rows)


def compared(records: Records, other: tuple[str, str], seeds: list[int]) -> Interval:
    """Alignment of the head trained with the dynamics minus that of another arm."""
    return seeds_bootstrap(*(alignment(records, arm, seeds) for arm in (JOINT, other)))


def rule(records: Records, preset: ClaimPreset, seeds: list[int]) -> Ruling:
    """Compare with the head trained afterwards, and with data without near successes."""
    effect, second = compared(records, AFTER, seeds), compared(records, NO_NEAR, seeds)
    why = (
        f"right verdicts in imagination, head trained with the dynamics minus afterwards: {said(effect)}; with minus "
        f"without near successes: {said(second)}"
    )
    if min(effect.mean, second.mean) <= 0:
        return Ruling(False, effect, f"{why}; not both are above 0")
    if min(effect.low, second.low) > 0:
        return Ruling(True, effect, f"{why}; both intervals are above 0")
    return Ruling(None, effect, f"{why}; both means are above 0, but not both intervals")


def tables(records: Records, preset: ClaimPreset, seeds: list[int]) -> str:
    """Alignment and its two parts, and precision and recall in closed loop, by arm and seed."""
    lines = [
        "| arm | right verdicts | failures judged successful | successes judged successful | precision | recall |",
        "|---|---|---|---|---|---|",
    ]
    for arm in (JOINT, AFTER, NO_NEAR):
        shares = [alignment(records, arm, seeds).mean(1)]
        shares += [
            np.array([by_start(records, arm, f"optimism/{what}", [seed]).mean() for seed in seeds])
            for what in ("failures", "successes")
        ]
        cells = [" / ".join(f"{100 * share:.1f}" for share in values) for values in shares]
        label = records.read(*arm, seeds[0])["label"]
        lines.append(f"| {label} | {' | '.join([*cells, *loop_cells(records, arm, seeds)])} |")
    note = (
        "By seed; shares in percent, mean over starts. Right verdicts: mean of the shares of failures not judged "
        "successful and of successes judged successful. Precision and recall: SFT policy in closed loop."
    )
    return "\n".join([*lines, "", note]) + "\n"


CLAIM = Claim(
    NAME,
    "a success head trained with the world model, on data with near successes, agrees more often with Real",
    "World-VLA-Loop (arXiv 2602.06508): agreement of imagined outcomes 85 and 95 % on two tasks, 60 and 65 without "
    "near successes, 60 and 70 without the head; a vision-language judge 50 and 55 against 75 and 90 of the head",
    "the mean share of right verdicts is not above that of the same head trained afterwards, or not above that without "
    "near successes in the added data",
    arms=lambda preset: [JOINT, AFTER, NO_NEAR],
    needs=lambda preset: [JOINT, AFTER, NO_NEAR],
    rule=rule,
    figures=lambda records, preset, seeds: {},
    tables=tables,
    own_arms=OWN_ARMS,
)
