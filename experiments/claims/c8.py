"""C8: DreamZero, predicting video with the actions, against the same network without the video loss.

Task progress on an unseen scene decides, because the published gain is largest away from the training data. The unseen
task of the split is not measured: the bundle's tasks do not cover it.

Example::

    from experiments.claims.c8 import CLAIM
    CLAIM.refuted_if
"""

from __future__ import annotations

from experiments.claims.arms import Arm
from experiments.claims.claim import Claim, Ruling, by_gain, difference, said
from experiments.claims.joint_arms import measure, progress, success_table, surprised, trained
from experiments.claims.presets import ClaimPreset
from experiments.claims.records import Records

NAME = "C8"
JOINT, ALONE = (NAME, "dreamzero"), (NAME, "dreamzero_no_video")
UNSEEN = "unseen_scene/greedy"


def rule(records: Records, preset: ClaimPreset, seeds: list[int]) -> Ruling:
    """Compare progress in the unseen scene; seen starts and success are reported."""
    effect = progress(records, JOINT, ALONE, seeds, UNSEEN)
    seen = progress(records, JOINT, ALONE, seeds, "seen/greedy")
    rates = difference(records, JOINT, ALONE, seeds, UNSEEN)
    why = (
        f"progress in the unseen scene, with minus without the video loss: {said(effect)}; on seen starts {said(seen)}"
        f"; success in the unseen scene {said(rates)}"
    )
    return by_gain(effect, why)


CLAIM = Claim(
    NAME,
    "predicting video together with actions raises task progress in an unseen scene",
    "DreamZero (arXiv 2602.15922): progress 39.5 % on unseen tasks against 16.3 % of the best pretrained "
    "vision-language-action policy",
    "mean task progress in the unseen scene is not above that of the same network without the video loss",
    arms=lambda preset: [ALONE, JOINT],
    needs=lambda preset: [ALONE, JOINT],
    rule=rule,
    figures=lambda records, preset, seeds: {},
    tables=lambda records, preset, seeds: success_table(records, [ALONE, JOINT], seeds),
    own_arms=(
        Arm("dreamzero", "video and actions", trained("dreamzero"), measure=surprised),
        Arm(
            "dreamzero_no_video", "no video loss", trained("dreamzero", ("video_coef=0.0",)), measure=measure
        ),
    ),
)
