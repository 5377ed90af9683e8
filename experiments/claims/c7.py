"""C7: latent actions that predict features of later frames (VLA-JEPA), with and without a leak of the future.

SFT from scratch on 30 demonstrations per task, at equal steps, tokens and initial weights
(`experiments.claims.auxiliary_arms`). The published perturbations are of camera, light, background, layout, noise and
instruction. The suite has held-out splits in their place: `unseen_scene` (dark table, one distractor more),
`unseen_object` (a colour of no training scene) and `unseen_instruction` (paraphrases).

The leaky arm shows the last target frame to the policy in training, and the current frame in its place afterwards. A
second one, which is reported only, gives the target's features to the predictor, as the published code does.

Example::

    from experiments.claims.c7 import CLAIM
    CLAIM.refuted_if
"""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.claims.arms import Arm
from experiments.claims.auxiliary_arms import with_loss
from experiments.claims.claim import Claim, Ruling, difference, said
from experiments.claims.presets import ClaimPreset
from experiments.claims.records import Records
from experiments.reports.charts import IntervalRow, interval_chart, standalone
from worldgym.evaluation.statistics import Interval, seeds_bootstrap

NAME = "C7"
DEMOS = 30  # per task
PERTURBED = ("unseen_scene", "unseen_object", "unseen_instruction")
SPLITS = ("seen", *PERTURBED)
NONE, JEPA, LEAKY, CONTEXT = ((NAME, f"jepa-{arm}") for arm in ("none", "causal", "leaky", "context"))
LABELS = {
    NONE: "the same tokens without the loss", JEPA: "VLA-JEPA, no leak", LEAKY: "VLA-JEPA, the policy sees the target",
    CONTEXT: "VLA-JEPA, the predictor sees the target",
}  # fmt: skip
VALUES: dict[tuple[str, str], dict[str, Any]] = {
    NONE: {"weight": 0.0}, JEPA: {}, LEAKY: {"leak": "policy"}, CONTEXT: {"leak": "context"},
}  # fmt: skip

OWN_ARMS = tuple(
    Arm(
        arm[1],
        LABELS[arm],
        with_loss(DEMOS, "vla_jepa", values, frozen=True),
        splits=SPLITS,
        evaluators=False,
    )
    for arm, values in VALUES.items()
)


def perturbed(records: Records, arm: tuple[str, str], seeds: list[int]) -> np.ndarray:
    """Outcomes on all perturbations, `(seeds, starts of all splits)`."""
    return np.concatenate([records.outcomes(*arm, f"{split}/greedy", seeds) for split in PERTURBED], 1)


def gain(records: Records, arm: tuple[str, str], seeds: list[int]) -> Interval:
    """Success on the perturbations minus that of the same tokens without the loss, paired by start."""
    return seeds_bootstrap(*(perturbed(records, which, seeds) for which in (arm, NONE)))


def rule(records: Records, preset: ClaimPreset, seeds: list[int]) -> Ruling:
    """Compare the arms without and with a leak with the tokens alone; seen starts and the other leak are reported."""
    effect, leaky = gain(records, JEPA, seeds), gain(records, LEAKY, seeds)
    why = (
        f"under perturbations, minus the same tokens: no leak {said(effect)}, leak into the policy {said(leaky)}; on "
        f"seen starts, no leak {said(difference(records, JEPA, NONE, seeds))}"
    )
    if set(seeds) <= set(records.seeds(*CONTEXT)):
        why += (
            f"; under perturbations, leak into the predictor's context {said(gain(records, CONTEXT, seeds))}"
        )
    if effect.mean <= 0:
        return Ruling(False, effect, f"{why}; the loss does not help")
    if leaky.low > 0:
        return Ruling(False, effect, f"{why}; the loss with a leak helps, too")
    if effect.low > 0 and leaky.mean <= 0:
        return Ruling(True, effect, why)
    return Ruling(None, effect, f"{why}; the means or their intervals do not decide")


def figures(records: Records, preset: ClaimPreset, seeds: list[int]) -> dict[str, str]:
    """Chart of the gains under perturbations."""
    rows = []
    for arm in (JEPA, LEAKY, CONTEXT):
        if set(seeds) <= set(records.seeds(*arm)):
            d = gain(records, arm, seeds)
            rows.append(IntervalRow(LABELS[arm], d.mean, d.low, d.high))
    return {"gains": standalone(interval_chart(rows, zero=True, width=760))}


def tables(records: Records, preset: ClaimPreset, seeds: list[int]) -> str:
    """Success by split and seed, and what a linear probe reads from the latent actions."""
    lines = ["| arm | " + " | ".join(SPLITS) + " | probe, R^2 |", "|---|" + "---|" * (len(SPLITS) + 1)]
    for arm in (NONE, JEPA, LEAKY, CONTEXT):
        if set(seeds) <= set(records.seeds(*arm)):
            cells = [
                " / ".join(f"{row.mean():.3f}" for row in records.outcomes(*arm, f"{split}/greedy", seeds))
                for split in SPLITS
            ]
            probe = " / ".join(str(records.read(*arm, seed)["settings"].get("probe", "-")) for seed in seeds)
            lines.append(f"| {LABELS[arm]} | {' | '.join(cells)} | {probe} |")
    note = (
        "By seed. The perturbations are the held-out splits of the suite; there is none of camera or noise. Probe: "
        "ridge regression from the latent-action tokens to the next action, on episodes that it was not fitted on."
    )
    return "\n".join([*lines, "", note]) + "\n"


CLAIM = Claim(
    NAME,
    "predicting later frames from latent actions helps under perturbations, and not if the policy sees these frames",
    "VLA-JEPA (arXiv 2602.10098): 79.5 % on LIBERO-Plus, 62.9 without video of people and 69.6 for OpenVLA-OFT",
    "the mean success under perturbations is not above that of the same tokens without the loss, or the interval of "
    f"the leaky arm's gain over them is above 0. The perturbations are the suite's splits {', '.join(PERTURBED)}; it "
    "has none of camera or noise",
    arms=lambda preset: [NONE, JEPA, LEAKY, CONTEXT],
    needs=lambda preset: [NONE, JEPA, LEAKY],
    rule=rule,
    figures=figures,
    tables=tables,
    own_arms=OWN_ARMS,
)
