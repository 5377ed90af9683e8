"""Charts that several claims share, as SVG text, and the labels of arms.

Example::

    gains(records, ("C1", "imagined_rl"), [("C1", "sft")])["gains"][:4]     # "<svg"
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.claims.claim import common_seeds, difference
from experiments.claims.records import Records
from experiments.reports.charts import IntervalRow, Series, interval_chart, line_chart, standalone

EARLIER_LABELS = {
    "BC only, as many updates": "BC only, same number of updates",
    "Iter-SFT, judged imagined successes of SFT": "Iter-SFT, imagined successes of the SFT policy",
    "RL in Real, the judge's reward": "RL in Real, reward from the judge",
    "RL in Soft, only dynamics wrong (gap 1)": "RL in Soft, only dynamics misspecified (gap 1)",
    "RL in Soft, only looks wrong (gap 1)": "RL in Soft, only appearance misspecified (gap 1)",
    "BC on the mixture, told nothing": "BC on the mixture, no conditioning",
    "told who succeeded, no critic": "conditioned on episode success, no critic",
    "RECAP: told the advantage": "RECAP: conditioned on the advantage",
    "RAMP: told what is foreseen too": "RAMP: conditioned on advantage and predicted latents",
    "RAMP, efficient: foresight left out": "RAMP, inference without predicted latents",
    **{f"SFT, weights disturbed by {noise}": f"SFT, weight noise {noise}" for noise in (0.1, 0.2, 0.3, 0.45, 0.6)},
    "SFT, 10 demonstrations a verb": "SFT, 10 demonstrations per task",
    "the same, as many updates of BC": "SFT, 10 demonstrations per task, then BC",
    "the same, imagined RL": "SFT, 10 demonstrations per task, then imagined RL",
}
"""Labels in results of earlier versions, and the current labels of the same arms."""


def label_of(records: Records, arm: tuple[str, str]) -> str:
    """Label of an arm in reports: the recorded label, or the current one of an earlier label."""
    seeds = records.seeds(*arm)
    label = str(records.read(*arm, seeds[0])["label"]) if seeds else arm[1]
    return EARLIER_LABELS.get(label, label)


def gains(records: Records, ours: tuple[str, str], others: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Chart of paired differences of success in Real, over the seeds that both arms have."""
    rows = []
    for other in others:
        seeds, absent = common_seeds(records, [ours, other])
        if absent:
            continue
        d = difference(records, ours, other, seeds)
        rows.append(IntervalRow(f"minus {label_of(records, other)}", d.mean, d.low, d.high))
    return {"gains": standalone(interval_chart(rows, zero=True, width=760))} if rows else {}


def way(records: Records, arm: tuple[str, str]) -> dict[str, str]:
    """Chart of imagined and true success during training: mean over seeds, with minimum and maximum."""
    runs = [records.read(*arm, seed)["way"] for seed in records.seeds(*arm)]
    rows = [[row for row in run if "true" in row] for run in runs]
    if not rows or not all(rows):
        return {}
    count = min(len(run) for run in rows)
    steps = [sum(run[i]["steps"] for run in rows) / len(rows) / 1000 for i in range(count)]
    series = []
    for key, label in (("imagined", "imagined success"), ("true", "success in Real")):
        values = [[run[i][key] for run in rows] for i in range(count) if all(key in run[i] for run in rows)]
        if len(values) == count:
            series.append(
                Series(label, steps, [sum(v) / len(v) for v in values], low=[min(v) for v in values],
                       high=[max(v) for v in values])
            )  # fmt: skip
    chart = line_chart(series, x_label="thousand environment steps", y_range=(0.0, 1.0))
    return {"way": standalone(chart, [s.label for s in series])}
