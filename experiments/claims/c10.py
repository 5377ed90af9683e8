"""C10: video of another robot without actions, and a task that the robot itself has never done.

The logs have actions of all tasks but the first one, on the tabletop `pick_place`, which the others do not contain. One
arm also learns from video of that task in the suite's misspecified simulator at its largest gap, where camera, light,
colours and dynamics differ; the control from video of the logs' own tasks there, in as many windows. The body of the
robot is the same, which makes the transfer easier than in the source. Task progress in the first task decides.

Example::

    from experiments.claims.c10 import CLAIM
    CLAIM.refuted_if
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.claims.arms import Arm
from experiments.claims.c24 import LOG_SEED0
from experiments.claims.claim import Claim, Ruling, by_gain, said
from experiments.claims.context import ClaimContext
from experiments.claims.joint_arms import (
    WATCHING,
    by_start,
    measure,
    recorded,
    success_table,
    trained,
)
from experiments.claims.presets import ClaimPreset
from experiments.claims.records import Records
from worldgym.evaluation.statistics import seeds_bootstrap

NAME = "C10"
WATCHED, CONTROL, ALONE = (NAME, "watched_task"), (NAME, "watched_others"), (NAME, "watched_nothing")
VIDEO_SEED0 = 700_000
GAP = 1.0


def own_logs(lab: ClaimContext) -> Path:
    """Logs of all tasks but the first one."""
    return recorded(
        lab, "logs_but_one", seed=LOG_SEED0, episodes=lab.preset.logs, tasks=list(lab.tasks[1:])
    )


def videos(held_out: bool) -> Callable[[ClaimContext], Path]:
    """Video of the expert in the misspecified simulator: of the first task, or of the others."""

    def make(lab: ClaimContext) -> Path:
        tasks = lab.tasks[:1] if held_out else lab.tasks[1:]
        return recorded(
            lab, f"other_robot_{'held_out' if held_out else 'others'}", seed=VIDEO_SEED0, episodes=lab.preset.wam_video,
            domain=lab.suite.domains[-1], gap=GAP, mix={"expert": 1.0}, tasks=list(tasks),
        )  # fmt: skip

    return make


def held_out_task(
    records: Records, arm: tuple[str, str], seeds: list[int], what: str = "seen/greedy"
) -> np.ndarray:
    """Task progress `(seeds, starts)` in the first task; the tasks take turns in the list of starts."""
    count = len(records.read(*arm, seeds[0])["tasks"])
    return by_start(records, arm, what, seeds)[:, ::count]


def rule(records: Records, preset: ClaimPreset, seeds: list[int]) -> Ruling:
    """Compare progress in the first task with that of the control."""
    effect = seeds_bootstrap(held_out_task(records, WATCHED, seeds), held_out_task(records, CONTROL, seeds))
    why = f"progress in the task without actions, video of it minus video of other tasks: {said(effect)}"
    if set(seeds) <= set(records.seeds(*ALONE)):
        other = seeds_bootstrap(held_out_task(records, WATCHED, seeds), held_out_task(records, ALONE, seeds))
        why += f"; minus no video: {said(other)}"
    return by_gain(effect, why)


CLAIM = Claim(
    NAME,
    "video of another robot without actions raises progress in a task that the robot's own data lack",
    "DreamZero (arXiv 2602.15922): task progress on unseen tasks 38.3 % without, 55.4 % with 20 minutes of video of "
    "another robot, 54.3 % with 12 minutes of video of humans",
    "mean progress in the task is not above that with as many windows of video of other tasks",
    arms=lambda preset: [ALONE, CONTROL, WATCHED],
    needs=lambda preset: [CONTROL, WATCHED],
    rule=rule,
    figures=lambda records, preset, seeds: {},
    tables=lambda records, preset, seeds: success_table(records, [ALONE, CONTROL, WATCHED], seeds),
    own_arms=(
        Arm("watched_nothing", "no video", trained("dreamzero", shares=WATCHING, logs=own_logs), measure=measure),
        Arm(
            "watched_others", "video of the own tasks",
            trained("dreamzero", shares=WATCHING, logs=own_logs, video=videos(False)), measure=measure,
        ),
        Arm(
            "watched_task", "video of the task without actions",
            trained("dreamzero", shares=WATCHING, logs=own_logs, video=videos(True)), measure=measure,
        ),
    ),
)  # fmt: skip
