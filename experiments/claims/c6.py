"""C6: FLARE, future tokens that agree with an encoding of the future, against the same tokens without that loss.

SFT from scratch on 10, 30 and 100 demonstrations per task, at equal steps, initial weights and demonstrations
(`experiments.claims.auxiliary_arms`). The control has the same tokens, as the released GR00T N1.5 has, so it has the
same capacity. Beside it: video of unseen objects without actions, with 10 demonstrations per task.

Example::

    from experiments.claims.c6 import CLAIM
    CLAIM.refuted_if
"""

from __future__ import annotations

import numpy as np

from experiments.claims.arms import Arm
from experiments.claims.auxiliary_arms import VIDEO_SPLIT, with_loss
from experiments.claims.claim import Claim, Ruling, difference, said
from experiments.claims.presets import ClaimPreset
from experiments.claims.records import Records
from experiments.reports.charts import IntervalRow, interval_chart, standalone
from worldgym.evaluation.statistics import Interval, seeds_bootstrap

NAME = "C6"
DEMOS = (10, 30, 100)
SPLITS = ("seen", VIDEO_SPLIT)
SEEN, UNSEEN = "seen/greedy", f"{VIDEO_SPLIT}/greedy"
LATENCY = 1.15
"""Highest ratio of the time of an action with tokens to that without, which the claim's source expects."""
FLARE = {n: (NAME, f"flare-{n}") for n in DEMOS}
TOKENS = {n: (NAME, f"flare_tokens-{n}") for n in DEMOS}
VIDEO = (NAME, f"flare_video-{DEMOS[0]}")


def _arm(name: str, label: str, demos: int, weight: float, video: bool = False) -> Arm:
    train = with_loss(demos, "flare", {"weight": weight}, video=video)
    return Arm(name, f"{label}, {demos} demonstrations per task", train, splits=SPLITS, evaluators=False)


OWN_ARMS = (
    *(_arm(TOKENS[n][1], "the same tokens without the loss", n, 0.0) for n in DEMOS),
    *(_arm(FLARE[n][1], "FLARE", n, 0.2) for n in DEMOS),
    _arm(VIDEO[1], "FLARE and video of unseen objects without actions", DEMOS[0], 0.2, video=True),
)


def pooled(records: Records, seeds: list[int]) -> Interval:
    """FLARE minus tokens alone, mean over the numbers of demonstrations, paired by start."""
    tables = [
        np.mean([records.outcomes(*arms[n], SEEN, seeds) for n in DEMOS], axis=0) for arms in (FLARE, TOKENS)
    ]
    return seeds_bootstrap(*tables)


def rule(records: Records, preset: ClaimPreset, seeds: list[int]) -> Ruling:
    """Compare at every number of demonstrations; video and latency are reported."""
    effect = pooled(records, seeds)
    by_size = {n: difference(records, FLARE[n], TOKENS[n], seeds) for n in DEMOS}
    parts = [f"FLARE minus the same tokens, {n} demonstrations per task: {said(by_size[n])}" for n in DEMOS]
    parts.append(f"mean of these: {said(effect)}")
    if set(seeds) <= set(records.seeds(*VIDEO)):
        gain = difference(records, VIDEO, FLARE[DEMOS[0]], seeds, UNSEEN)
        parts.append(f"video of unseen objects minus no video, on these objects: {said(gain)}")
    if ratios := latencies(records, seeds):
        parts.append(
            f"time of an action with tokens: {np.median(ratios):.2f} times (expected up to {LATENCY})"
        )
    why = "; ".join(parts)
    if all(d.low <= 0 for d in by_size.values()):
        return Ruling(False, effect, f"{why}; no interval is above 0")
    if effect.mean > 0:
        return Ruling(True, effect, why)
    return Ruling(None, effect, f"{why}; one interval is above 0, but not the mean")


def latencies(records: Records, seeds: list[int]) -> list[float]:
    """Ratios of the time of an action with tokens to that without, of all FLARE arms and seeds."""
    found = [records.read(*FLARE[n], seed)["settings"].get("latency_ratio") for n in DEMOS for seed in seeds]
    return [float(ratio) for ratio in found if ratio is not None]


def figures(records: Records, preset: ClaimPreset, seeds: list[int]) -> dict[str, str]:
    """Chart of the gain by number of demonstrations."""
    rows = []
    for n in DEMOS:
        d = difference(records, FLARE[n], TOKENS[n], seeds)
        rows.append(IntervalRow(f"{n} demonstrations per task", d.mean, d.low, d.high))
    return {"gains": standalone(interval_chart(rows, zero=True, width=760))}


def tables(records: Records, preset: ClaimPreset, seeds: list[int]) -> str:
    """Success by number of demonstrations and seed, on seen starts and on unseen objects."""
    lines = ["| arm | seen, by seed | unseen objects, by seed | latency ratio |", "|---|---|---|---|"]
    for arm in (*TOKENS.values(), *FLARE.values(), VIDEO):
        if set(seeds) <= set(records.seeds(*arm)):
            cells = [
                " / ".join(f"{row.mean():.3f}" for row in records.outcomes(*arm, what, seeds))
                for what in (SEEN, UNSEEN)
            ]
            facts = [records.read(*arm, seed) for seed in seeds]
            ratios = [str(row["settings"].get("latency_ratio", "-")) for row in facts]
            lines.append(f"| {facts[0]['label']} | {' | '.join(cells)} | {' / '.join(ratios)} |")
    note = (
        "Latency: median time of one action on the CPU, divided by that of the policy without tokens. The target of "
        "the alignment is trained beside the policy, not before it as in the paper."
    )
    return "\n".join([*lines, "", note]) + "\n"


CLAIM = Claim(
    NAME,
    "aligning future tokens with the future raises success over the same tokens without that loss",
    "FLARE (arXiv 2505.15659): 70.1 against 61.9 % on RoboCasa and 55.0 against 44.0 % on GR1; one demonstration per "
    "novel object with video of people, 60 %",
    f"at {', '.join(map(str, DEMOS[:-1]))} and {DEMOS[-1]} demonstrations per task, no interval of the gain over the "
    "same tokens is above 0",
    arms=lambda preset: [*TOKENS.values(), *FLARE.values(), VIDEO],
    needs=lambda preset: [*TOKENS.values(), *FLARE.values()],
    rule=rule,
    figures=figures,
    tables=tables,
    own_arms=OWN_ARMS,
)
