"""C14: UWM, one checkpoint as forward dynamics and as a policy.

Forward mode must follow its actions: frames imagined with the logged actions are compared with those imagined with the
actions of another episode. Policy mode is compared with the same network without the video loss, which is a diffusion
policy of equal size.

Example::

    from experiments.claims.c14 import CLAIM
    CLAIM.refuted_if
"""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.claims.arms import Arm, Trained
from experiments.claims.claim import Claim, Ruling, difference, said
from experiments.claims.context import ClaimContext
from experiments.claims.joint_arms import forward, measure, success_table, trained
from experiments.claims.presets import ClaimPreset
from experiments.claims.records import Records
from worldgym.evaluation.statistics import seeds_bootstrap

NAME = "C14"
UWM, ALONE = (NAME, "uwm"), (NAME, "uwm_no_video")
LEAST = 1.0
"""Least gain in dB of the logged actions over those of another episode."""


def both(lab: ClaimContext, made: Trained) -> dict[str, Any]:
    """Success of the policy, and frames of the forward mode."""
    return measure(lab, made) | forward(lab, made)


def rule(records: Records, preset: ClaimPreset, seeds: list[int]) -> Ruling:
    """The gain of the logged actions decides; the policy must not be worse than without the video."""
    gains = np.array([records.read(*UWM, seed)["evaluations"]["forward"]["gains"] for seed in seeds])
    effect = seeds_bootstrap(gains, np.zeros((1, gains.shape[1])))
    policy = difference(records, UWM, ALONE, seeds)
    why = (
        f"PSNR with the logged actions minus that with those of another episode: {effect.mean:+.2f} "
        f"[{effect.low:+.2f}, {effect.high:+.2f}] dB; success with minus without the video loss: {said(policy)}"
    )
    if effect.mean < LEAST or policy.high < 0:
        return Ruling(False, effect, why)
    if effect.low >= LEAST:
        return Ruling(True, effect, why)
    return Ruling(None, effect, f"{why}; the interval contains {LEAST:g} dB")


def tables(records: Records, preset: ClaimPreset, seeds: list[int]) -> str:
    """Success by arm and split, and the PSNR of the forward mode by seed."""
    rows = [records.read(*UWM, seed)["evaluations"]["forward"] for seed in seeds]
    cells = " / ".join(f"{row['psnr']:.2f} against {row['psnr_others']:.2f}" for row in rows)
    note = f"Frames one chunk ahead, by seed: {cells} dB with the logged actions and with those of another episode."
    return success_table(records, [ALONE, UWM], seeds) + "\n" + note + "\n"


CLAIM = Claim(
    NAME,
    "one network is forward dynamics that follow actions, and a policy as good as without the video",
    "UWM (arXiv 2504.02792): mean success .79 on LIBERO against .71 of a diffusion policy",
    f"frames imagined with the logged actions are less than {LEAST:g} dB better than with those of another episode, or "
    "the policy is worse than without the video loss",
    arms=lambda preset: [ALONE, UWM],
    needs=lambda preset: [ALONE, UWM],
    rule=rule,
    figures=lambda records, preset, seeds: {},
    tables=tables,
    own_arms=(
        Arm("uwm", "UWM", trained("uwm"), measure=both),
        Arm("uwm_no_video", "no video loss", trained("uwm", ("video_coef=0.0",)), measure=measure),
    ),
)
