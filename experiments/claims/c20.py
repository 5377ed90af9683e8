"""C20: the world model as an evaluator of policies, compared with a misspecified simulator.

Every policy trained for any claim is evaluated from the same starts in Real, in imagination and in Soft at the frozen
gap. Policies with noise on their weights are added, because ranking policies of equal success is not informative.

Example::

    from experiments.claims.c20 import CLAIM
    CLAIM.refuted_if
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.claims.arms import Arm, Trained
from experiments.claims.claim import Claim, Ruling
from experiments.claims.context import ClaimContext
from experiments.claims.presets import ClaimPreset
from experiments.claims.records import Records
from experiments.reports.charts import COLOURS, STYLE
from worldgym.evaluation.ranking import agreement
from worldgym.evaluation.statistics import Interval

NAME = "C20"
NOISES = (0.1, 0.2, 0.3, 0.45, 0.6)
POLICIES = 10
WORLDS = {"imagined": "looked/imagined", "soft": "looked/soft", "real": "looked/real"}


def _disturbed(share: float) -> Arm:
    def train(lab: ClaimContext, seed: int, folder: Path) -> Trained:
        from experiments.claims.arms import saved
        from experiments.pipelines.finetune import save_policy
        from experiments.pipelines.perturbed_policies import graded_policies

        worse = graded_policies(lab.bundle.policy(), (share,), (), seed)[0].policy
        save_policy(worse, folder / "policy")
        return Trained(saved(folder), {"updates": 0.0}, settings={"noise": share})

    return Arm(f"disturbed-{share:g}", f"SFT, weight noise {share:g}", train, splits=("seen",))


OWN_ARMS = tuple(map(_disturbed, NOISES))


def arms(preset: ClaimPreset) -> list[tuple[str, str]]:
    """SFT and its perturbed versions. Policies of other claims are added by `pool` if their results exist."""
    return [("C1", "sft"), *((NAME, f"disturbed-{share:g}") for share in NOISES)]


def pool(records: Records) -> list[tuple[str, str, int]]:
    """All policies with results in all three environments, as (claim, arm, seed)."""
    found = []
    for claim in ("C1", "C2", "C5", NAME):
        for arm in records.arms(claim):
            for seed in records.seeds(claim, arm):
                if set(WORLDS.values()) <= set(records.read(claim, arm, seed)["evaluations"]):
                    found.append((claim, arm, seed))
    return found


def said_by(records: Records) -> dict[str, np.ndarray]:
    """Success in each environment, as `(policies, starts)` bool."""
    policies = pool(records)
    return {
        world: np.stack([records.outcomes(c, arm, key, [seed])[0] for c, arm, seed in policies])
        for world, key in WORLDS.items()
    }


def rule(records: Records, preset: ClaimPreset, seeds: list[int]) -> Ruling:
    """Compare the Pearson correlation with Real between imagination and Soft."""
    policies = pool(records)
    tables = said_by(records)
    found = {w: agreement(tables[w], tables["real"]) for w in ("imagined", "soft")}
    row, other = found["imagined"]["pearson"], found["soft"]["pearson"]
    effect = Interval(row["mean"], row["low"], row["high"], len(policies))
    why = (
        f"Pearson correlation with Real over {len(policies)} policies: imagination {row['mean']:.3f} "
        f"[{row['low']:.3f}, {row['high']:.3f}], Soft at the frozen gap {other['mean']:.3f} [{other['low']:.3f}, "
        f"{other['high']:.3f}]; mean maximum rank violation: imagination {found['imagined']['mmrv']['mean']:.3f}, "
        f"Soft {found['soft']['mmrv']['mean']:.3f}"
    )
    if len(policies) < POLICIES:
        return Ruling(None, effect, f"{why}; only {len(policies)} of the {POLICIES} required policies")
    if row["mean"] < 0.7 or row["mean"] < other["low"]:
        return Ruling(False, effect, why)
    if row["low"] >= 0.7 and row["mean"] >= other["mean"]:
        return Ruling(True, effect, why)
    return Ruling(None, effect, f"{why}; the intervals allow no decision")


def figures(records: Records, preset: ClaimPreset, seeds: list[int]) -> dict[str, str]:
    """Scatter plot of success in imagination and in Soft against success in Real, one dot per policy."""
    tables = said_by(records)
    real = tables["real"].mean(1)
    side, edge = 320, 44
    at = lambda v: edge + v * (side - edge - 12)  # noqa: E731
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side} {side + 26}" width="{side}">'
        f"<style>{STYLE}</style>"
        f'<rect width="100%" height="100%" fill="#fff"/>'
        f'<line class="zero" x1="{at(0):.1f}" y1="{side - at(0):.1f}" x2="{at(1):.1f}" y2="{side - at(1):.1f}"/>'
    ]
    for v in (0, 0.25, 0.5, 0.75, 1):
        out.append(f'<text class="tick" x="{at(v):.1f}" y="{side - 24}" text-anchor="middle">{v:g}</text>')
        out.append(
            f'<text class="tick" x="{edge - 8}" y="{side - at(v) + 4:.1f}" text-anchor="end">{v:g}</text>'
        )
    out.append(f'<text x="{side / 2:.0f}" y="{side - 6}" text-anchor="middle">success in Real</text>')
    for i, world in enumerate(("imagined", "soft")):
        for x, y in zip(real, tables[world].mean(1), strict=True):
            out.append(
                f'<circle cx="{at(x):.1f}" cy="{side - at(y):.1f}" r="4" fill="{COLOURS[i]}" opacity=".7"/>'
            )
        out.append(
            f'<circle cx="{edge + 130 * i}" cy="{side + 12}" r="5" fill="{COLOURS[i]}"/>'
            f'<text x="{edge + 10 + 130 * i}" y="{side + 16}">{("imagination", "Soft, frozen gap")[i]}</text>'
        )
    return {"evaluators": "".join(out) + "</svg>\n"}


CLAIM = Claim(
    NAME,
    "success measured in the world model correlates with success in Real, better than in a misspecified simulator",
    "WorldGym (arXiv 2506.00613) and SIMPLER: Pearson correlation above 0.9 over a few policies",
    "the Pearson correlation with Real is below 0.7, or below the interval of that of Soft",
    arms=arms,
    needs=arms,
    rule=rule,
    figures=figures,
    own_arms=OWN_ARMS,
)
