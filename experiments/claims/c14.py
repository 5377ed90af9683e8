"""C14: UWM, one checkpoint as forward dynamics and as a policy.

Forward mode must follow its actions: frames imagined with the logged actions are compared with those imagined with the
actions of another episode. Policy mode is compared with the same network without the video loss, which is a diffusion
policy of equal size. Beside it: UWM that also learns from video of unseen objects without actions.

Example::

    from experiments.claims.c14 import CLAIM
    CLAIM.refuted_if
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.claims.arms import Arm, Trained
from experiments.claims.claim import Claim, Ruling, difference, said
from experiments.claims.context import ClaimContext
from experiments.claims.joint_arms import WATCHING, forward, measure, recorded, success_table, trained
from experiments.claims.presets import ClaimPreset
from experiments.claims.records import Records
from worldgym.evaluation.statistics import seeds_bootstrap

NAME = "C14"
UWM, ALONE, WATCHED = (NAME, "uwm"), (NAME, "uwm_no_video"), (NAME, "uwm_watched")
VIDEO_SPLIT, VIDEO_SEED0 = "unseen_object", 300_000
LEAST = 1.0
"""Least gain in dB of the logged actions over those of another episode."""


def videos(lab: ClaimContext) -> Path:
    """Episodes with unseen objects, whose actions are ignored."""
    return recorded(lab, "wam_video", seed=VIDEO_SEED0, episodes=lab.preset.wam_video, split=VIDEO_SPLIT)


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
    if set(seeds) <= set(records.seeds(*WATCHED)):
        gain = difference(records, WATCHED, UWM, seeds, f"{VIDEO_SPLIT}/greedy")
        why += f"; video of unseen objects without actions, success on these objects: {said(gain)}"
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
    return success_table(records, [ALONE, UWM, WATCHED], seeds) + "\n" + note + "\n"


CLAIM = Claim(
    NAME,
    "one network is forward dynamics that follow actions, and a policy as good as without the video",
    "UWM (arXiv 2504.02792): mean success .79 on LIBERO against .71 of a diffusion policy",
    f"frames imagined with the logged actions are less than {LEAST:g} dB better than with those of another episode, or "
    "the policy is worse than without the video loss",
    arms=lambda preset: [ALONE, UWM, WATCHED],
    needs=lambda preset: [ALONE, UWM],
    rule=rule,
    figures=lambda records, preset, seeds: {},
    tables=tables,
    own_arms=(
        Arm("uwm", "UWM", trained("uwm", shares=WATCHING), measure=both),
        Arm("uwm_no_video", "no video loss", trained("uwm", ("video_coef=0.0",), WATCHING), measure=measure),
        Arm(
            "uwm_watched", "UWM and video without actions", trained("uwm", shares=WATCHING, video=videos),
            measure=measure,
        ),
    ),
)
