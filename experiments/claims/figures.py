"""Figures that several claims share, as SVG text.

Example::

    gains(records, ("C1", "imagined_rl"), [("C1", "sft")])["gains"][:4]     # "<svg"
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.claims.claim import common_seeds, difference
from experiments.claims.records import Records
from experiments.reports.charts import IntervalRow, Series, interval_chart, line_chart, standalone


def label_of(records: Records, arm: tuple[str, str]) -> str:
    """How an arm is called in reports."""
    seeds = records.seeds(*arm)
    return str(records.read(*arm, seeds[0])["label"]) if seeds else arm[1]


def gains(records: Records, ours: tuple[str, str], others: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Paired differences of success in Real, over the seeds that both arms have."""
    rows = []
    for other in others:
        seeds, absent = common_seeds(records, [ours, other])
        if absent:
            continue
        d = difference(records, ours, other, seeds)
        rows.append(IntervalRow(f"less {label_of(records, other)}", d.mean, d.low, d.high))
    return {"gains": standalone(interval_chart(rows, zero=True, width=760))} if rows else {}


def way(records: Records, arm: tuple[str, str]) -> dict[str, str]:
    """Imagined and true success during training, the mean over seeds with their spread."""
    runs = [records.read(*arm, seed)["way"] for seed in records.seeds(*arm)]
    rows = [[row for row in run if "true" in row] for run in runs]
    if not rows or not all(rows):
        return {}
    count = min(len(run) for run in rows)
    steps = [sum(run[i]["steps"] for run in rows) / len(rows) / 1000 for i in range(count)]
    series = []
    for key, label in (("imagined", "imagined success"), ("true", "true success")):
        values = [[run[i][key] for run in rows] for i in range(count) if all(key in run[i] for run in rows)]
        if len(values) == count:
            series.append(
                Series(label, steps, [sum(v) / len(v) for v in values], low=[min(v) for v in values],
                       high=[max(v) for v in values])
            )  # fmt: skip
    chart = line_chart(series, x_label="thousand environment steps", y_range=(0.0, 1.0))
    return {"way": standalone(chart, [s.label for s in series])}
