"""C25: FastWAM, a video loss in training and no future frame at inference.

Two statements: the video loss helps although no frame is made at inference, and the success is that of making the
frame (DreamZero's way, from claim C8) at a fraction of its time.

Example::

    from experiments.claims.c25 import CLAIM
    CLAIM.refuted_if
"""

from __future__ import annotations

import numpy as np

from experiments.claims.arms import Arm
from experiments.claims.c8 import JOINT
from experiments.claims.claim import Claim, Ruling, difference, said
from experiments.claims.joint_arms import measure, success_table, trained
from experiments.claims.presets import ClaimPreset
from experiments.claims.records import Records

NAME = "C25"
FAST, ALONE = (NAME, "fastwam"), (NAME, "fastwam_no_video")
MARGIN = 0.05
"""Success that FastWAM may lose to making the frame."""


def rule(records: Records, preset: ClaimPreset, seeds: list[int]) -> Ruling:
    """The gain of the video loss decides, with the comparison to making the frame."""
    effect = difference(records, FAST, ALONE, seeds)
    other = difference(records, FAST, JOINT, seeds)
    times = [
        np.median([records.read(*arm, seed)["settings"]["latency_ms"] for seed in seeds])
        for arm in (FAST, JOINT)
    ]
    why = (
        f"success with minus without the video loss: {said(effect)}; minus making the frame: {said(other)}, at "
        f"{times[0] / times[1]:.2f} of its time"
    )
    if effect.mean <= 0 or other.high < -MARGIN or times[0] >= times[1]:
        return Ruling(False, effect, why)
    if effect.low > 0 and other.low > -MARGIN:
        return Ruling(True, effect, why)
    return Ruling(None, effect, f"{why}; the means agree with the claim, but not both intervals")


CLAIM = Claim(
    NAME,
    "a video loss in training helps a policy that makes no video, as much as making it and faster",
    "FastWAM (LeRobot policies/fastwam), which publishes no ablation that we could verify",
    "the video loss does not raise mean success, or success is over 5 points below that of making the frame, or it "
    "is not faster",
    arms=lambda preset: [ALONE, FAST, JOINT],
    needs=lambda preset: [ALONE, FAST, JOINT],
    rule=rule,
    figures=lambda records, preset, seeds: {},
    tables=lambda records, preset, seeds: success_table(records, [ALONE, FAST, JOINT], seeds),
    own_arms=(
        Arm("fastwam", "FastWAM", trained("fastwam"), measure=measure),
        Arm("fastwam_no_video", "no video loss", trained("fastwam", ("video_coef=0.0",)), measure=measure),
    ),
)
