"""C9: DreamZero on diverse against repetitive logs of as many episodes.

Both have as many episodes of the same demonstrators. In the diverse logs every episode has its own start; in the
repetitive ones each start is demonstrated twenty times with other randomness. Task progress with unseen objects and in
an unseen scene decides, as in the source.

Example::

    from experiments.claims.c9 import CLAIM
    CLAIM.refuted_if
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.claims.arms import Arm
from experiments.claims.c24 import LOG_SEED0
from experiments.claims.claim import Claim, Ruling, by_gain, said
from experiments.claims.context import ClaimContext
from experiments.claims.joint_arms import by_start, measure, progress, recorded, success_table, trained
from experiments.claims.presets import ClaimPreset
from experiments.claims.records import Records
from worldgym.evaluation.statistics import seeds_bootstrap

NAME = "C9"
DIVERSE, REPETITIVE = (NAME, "diverse"), (NAME, "repetitive")
REPEATS = 20
"""Demonstrations of each start in the repetitive logs."""
UNSEEN = ("unseen_object/greedy", "unseen_scene/greedy")


def repetitive(lab: ClaimContext) -> Path:
    """Logs of few starts; the first ones of the diverse logs."""
    count = lab.preset.logs
    return recorded(
        lab, "repetitive_logs", seed=LOG_SEED0, episodes=count, starts=max(len(lab.tasks), count // REPEATS)
    )


def rule(records: Records, preset: ClaimPreset, seeds: list[int]) -> Ruling:
    """Compare progress with unseen objects and in the unseen scene together; seen starts are reported."""
    rows = [
        np.concatenate([by_start(records, arm, what, seeds) for what in UNSEEN], 1)
        for arm in (DIVERSE, REPETITIVE)
    ]
    effect = seeds_bootstrap(*rows)
    seen = progress(records, DIVERSE, REPETITIVE, seeds, "seen/greedy")
    why = (
        f"progress with unseen objects and in the unseen scene, diverse minus repetitive logs: {said(effect)}; on seen "
        f"starts {said(seen)}"
    )
    return by_gain(effect, why)


CLAIM = Claim(
    NAME,
    "a joint world-action model learns more from diverse than from repetitive logs of as many episodes",
    "DreamZero (arXiv 2602.15922): task progress 50 % from 500 diverse hours, 33 % from 500 repetitive ones",
    "mean task progress away from the data is not higher with diverse logs",
    arms=lambda preset: [REPETITIVE, DIVERSE],
    needs=lambda preset: [REPETITIVE, DIVERSE],
    rule=rule,
    figures=lambda records, preset, seeds: {},
    tables=lambda records, preset, seeds: success_table(records, [REPETITIVE, DIVERSE], seeds),
    own_arms=(
        Arm("diverse", "every episode another start", trained("dreamzero"), measure=measure),
        Arm(
            "repetitive", f"each start {REPEATS} times", trained("dreamzero", logs=repetitive), measure=measure
        ),
    ),
)
